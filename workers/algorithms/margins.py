"""How far the chosen completion of a pair is ahead of the rejected one, and what that costs. Pure torch.

A completion's score is its log-ratio, log π(y) − log π_ref(y), or what stands in for it:

    loss_type      score                                 cost of h = β (score_c − score_r) − handicap
    sigmoid        log π(y) − log π_ref(y)               −(1 − s) log σ(h) − s log σ(−h)
    hinge          the same                              max(0, 1 − h)
    robust         the same                              (−(1 − s) log σ(h) + s log σ(−h)) / (1 − 2s)
    sigmoid_norm   (log π(y) − log π_ref(y)) / |y|       as sigmoid
    ipo            the same                              ((h − 1/2) / β)²
    simpo          log π(y) / |y|                        as sigmoid, of h − γ

The handicap is what the pair must be ahead by before it counts as ahead:

    margin_weight · (score of the dataset or scorer: chosen − rejected)
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
    """Negative log-likelihood of a label that is wrong with probability s (cDPO): least at σ(h) = 1 − s."""
    s = config.label_smoothing
    return -(1 - s) * logsigmoid(h) - s * logsigmoid(-h)


def robust(h: Tensor, config: DpoConfig) -> Tensor:
    """Its mean over labels flipped with probability s is −log σ(h) of the true ones (arXiv 2403.00409)."""
    s = config.label_smoothing
    return (-(1 - s) * logsigmoid(h) + s * logsigmoid(-h)) / (1 - 2 * s)


def hinge(h: Tensor, config: DpoConfig) -> Tensor:
    """Nothing to pay from a margin of 1 on (SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - h)


def ipo(h: Tensor, config: DpoConfig) -> Tensor:
    """(score_c − score_r − 1/(2β))² (arXiv 2310.12036, equation 17 with τ = β)."""
    return ((h - 0.5) / config.beta).square()


def simpo(h: Tensor, config: DpoConfig) -> Tensor:
    """The sigmoid loss of a margin that should be `simpo_gamma` (arXiv 2405.14734, equation 6)."""
    return sigmoid(h - config.simpo_gamma, config)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCost:
    """Example: IPO is `PairCost(cost=ipo, per_token=True)`."""

    cost: Callable[[Tensor, DpoConfig], Tensor]  # of h [P], each pair on its own
    per_token: bool = False  # a completion's score is divided by its length


COSTS: Mapping[str, PairCost] = {
    "sigmoid": PairCost(cost=sigmoid),
    "hinge": PairCost(cost=hinge),
    "robust": PairCost(cost=robust),
    "sigmoid_norm": PairCost(cost=sigmoid, per_token=True),
    "ipo": PairCost(cost=ipo, per_token=True),
    "simpo": PairCost(cost=simpo, per_token=True),
}


def log_ratios(logprobs: Tensor, batch: MicroBatch, config: DpoConfig) -> Tensor:
    """log π(y) − log π_ref(y) of each completion, log π(y) without a reference: [T] -> [2P].

    With `ld_alpha` α (LD-DPO, arXiv 2409.06411) the tokens beyond the shorter completion's length weigh α.
    """
    differences = per_token(batch, logprobs)
    if config.needs_reference:
        differences = differences - per_token(batch, batch.reference_logprobs)
    if config.ld_alpha is not None:
        differences = torch.where(_is_beyond(batch), config.ld_alpha * differences, differences)
    return completion_sums(differences, batch)


def margin(ratios: Tensor, batch: MicroBatch, config: DpoConfig) -> Tensor:
    """h of each pair, from the log-ratios of its completions: [2P] -> [P]."""
    scores = ratios / batch.lengths if COSTS[config.loss_type].per_token else ratios
    chosen, rejected = by_side(scores)
    return config.beta * (chosen - rejected) - _handicap(ratios, batch, config)


def by_side(per_completion: Tensor) -> tuple[Tensor, Tensor]:
    """Figures of the chosen and of the rejected completions: [2P] -> [P], [P]."""
    chosen, rejected = per_completion.view(-1, 2).unbind(1)
    return chosen, rejected


def _handicap(ratios: Tensor, batch: MicroBatch, config: DpoConfig) -> Tensor:
    """What the arguments subtract from β (score_c − score_r): [P]. Zero with their defaults."""
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
    """Whether a token stands beyond the length that both completions of its pair have: [T]."""
    shared = batch.lengths.view(-1, 2).amin(1).repeat_interleave(2)  # [2P]
    begins = batch.lengths.cumsum(0) - batch.lengths
    places = torch.arange(len(batch.completion_of), device=batch.lengths.device) - begins[batch.completion_of]
    return places >= shared[batch.completion_of]
