"""Losses of preference pairs: the margin h between the chosen and the rejected completion, and its cost. Pure torch.

The score of a completion is its log-ratio log π(y) − log π_ref(y), or a variant of it:

    loss_type      score                                 cost of h = β (score_c − score_r) − handicap
    sigmoid        log π(y) − log π_ref(y)               −(1 − s) log σ(h) − s log σ(−h)
    hinge          the same                              max(0, 1 − h)
    robust         the same                              (−(1 − s) log σ(h) + s log σ(−h)) / (1 − 2s)
    sigmoid_norm   (log π(y) − log π_ref(y)) / |y|       as sigmoid
    ipo            the same                              ((h − 1/2) / β)²
    simpo          log π(y) / |y|                        as sigmoid, of h − γ
    sppo           log π(y) − log π_ref(y)               as ipo, of h_c = β score_c and of h_r = −β score_r, added

With soft labels (`soft_labels.py`) the cost of a margin h is its expectation over the label, p cost(h) + (1 − p)
cost(−h), where p is the probability that the chosen completion is preferred.

The handicap is the margin that the loss asks for:

    margin_weight · (difference of the scores in the data, or of the rewards: chosen − rejected)
    − length_alpha · (|y_c| − |y_r|)
    + β dpop_lambda · max(0, log π_ref(y_c) − log π(y_c))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from workers.algorithms.base import MicroBatch
from workers.algorithms.ops import completion_sums, per_token
from workers.config import DpoConfig


def sigmoid(h: Tensor, config: DpoConfig) -> Tensor:
    """Compute the negative log-likelihood of a label that is wrong with probability s (cDPO): least at σ(h) = 1 − s."""
    s = config.label_smoothing
    return -(1 - s) * logsigmoid(h) - s * logsigmoid(-h)


def robust(h: Tensor, config: DpoConfig) -> Tensor:
    """Compute the loss whose mean over labels flipped with probability s is −log σ(h) of the true labels (arXiv
    2403.00409)."""
    s = config.label_smoothing
    return (-(1 - s) * logsigmoid(h) + s * logsigmoid(-h)) / (1 - 2 * s)


def hinge(h: Tensor, config: DpoConfig) -> Tensor:
    """Compute the hinge loss, which is 0 from a margin of 1 on (SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - h)


def ipo(h: Tensor, config: DpoConfig) -> Tensor:
    """Compute (score_c − score_r − 1/(2β))² (IPO, arXiv 2310.12036, equation 17 with τ = β).

    Of each completion by itself it is the square loss of SPPO (arXiv 2405.00675, equation 4.7 with η = 1/β). With its
    label p the expectation is (score − (p − 1/2)/β)², up to a constant.
    """
    return ((h - 0.5) / config.beta).square()


def simpo(h: Tensor, config: DpoConfig) -> Tensor:
    """Compute the sigmoid loss with the target margin `simpo_gamma` (arXiv 2405.14734, equation 6)."""
    return sigmoid(h - config.simpo_gamma, config)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCost:
    """Cost of a pair's margin. Example: IPO is `PairCost(cost=ipo, per_token=True)`."""

    cost: Callable[[Tensor, DpoConfig], Tensor]  # (h [P], config) -> cost of each pair [P]
    per_token: bool = False  # divide a completion's score by its length
    separate: bool = False  # add the costs of β score_c and −β score_r instead of taking that of their sum


COSTS: Mapping[str, PairCost] = {
    "sigmoid": PairCost(cost=sigmoid),
    "hinge": PairCost(cost=hinge),
    "robust": PairCost(cost=robust),
    "sigmoid_norm": PairCost(cost=sigmoid, per_token=True),
    "ipo": PairCost(cost=ipo, per_token=True),
    "simpo": PairCost(cost=simpo, per_token=True),
    "sppo": PairCost(cost=ipo, separate=True),
}


def log_ratios(logprobs: Tensor, batch: MicroBatch, config: DpoConfig) -> Tensor:
    """Return log π(y) − log π_ref(y) of each completion, or log π(y) without a reference: [T] -> [2P].

    With `ld_alpha` (LD-DPO, arXiv 2409.06411) the tokens beyond the length of the shorter completion have this weight.
    """
    differences = per_token(batch, logprobs)
    if config.needs_reference:
        differences = differences - per_token(batch, batch.reference_logprobs)
    if config.ld_alpha is not None:
        differences = torch.where(_is_beyond(batch), config.ld_alpha * differences, differences)
    return completion_sums(differences, batch)


def margin(ratios: Tensor, batch: MicroBatch, config: DpoConfig) -> Tensor:
    """Return the margin h of each pair, given the log-ratios of its completions: [2P] -> [P]."""
    scores = ratios / batch.lengths if COSTS[config.loss_type].per_token else ratios
    chosen, rejected = by_side(scores)
    return config.beta * (chosen - rejected) - _handicap(ratios, batch, config)


def pair_losses(ratios: Tensor, batch: MicroBatch, config: DpoConfig) -> Tensor:
    """Return the loss of each pair, given the log-ratios of its completions: [2P] -> [P]."""
    record = COSTS[config.loss_type]

    def expected(h: Tensor, p: Tensor) -> Tensor:
        return p * record.cost(h, config) + (1 - p) * record.cost(-h, config)

    hard = ratios.new_tensor([1, 0]).repeat(batch.num_rows)
    chosen, rejected = by_side(hard if batch.soft_labels is None else batch.soft_labels)
    if not record.separate:
        return expected(margin(ratios, batch, config), chosen)
    chosen_h, rejected_h = by_side(config.beta * ratios)
    return expected(chosen_h, chosen) + expected(rejected_h, rejected)


def by_side(per_completion: Tensor) -> tuple[Tensor, Tensor]:
    """Separate the numbers of the chosen from those of the rejected completions: [2P] -> [P], [P]."""
    chosen, rejected = per_completion.view(-1, 2).unbind(1)
    return chosen, rejected


def _handicap(ratios: Tensor, batch: MicroBatch, config: DpoConfig) -> Tensor:
    """Return what the settings subtract from β (score_c − score_r): [P]. Zero with the defaults."""
    chosen, _ = by_side(ratios)
    handicap = torch.zeros_like(chosen)
    if config.margin_weight:
        assert batch.margins is not None, "the batch lacks margins"
        handicap = handicap + config.margin_weight * batch.margins
    if config.length_alpha:
        chosen_lengths, rejected_lengths = by_side(batch.lengths)
        handicap = handicap - config.length_alpha * (chosen_lengths - rejected_lengths)
    if config.dpop_lambda:
        handicap = handicap + config.beta * config.dpop_lambda * torch.relu(-chosen)
    return handicap


def _is_beyond(batch: MicroBatch) -> Tensor:
    """Return a mask of the tokens beyond the length of their pair's shorter completion: [T] bool."""
    shared = batch.lengths.view(-1, 2).amin(1).repeat_interleave(2)  # [2P]
    begins = batch.lengths.cumsum(0) - batch.lengths
    places = torch.arange(len(batch.completion_of), device=batch.lengths.device) - begins[batch.completion_of]
    return places >= shared[batch.completion_of]
