"""Direct preference optimisation (arXiv 2305.18290) and its kin: offline, online and in rounds with one loss.

    L = mean over pairs of cost(h) + sft_weight · (−log π(y_c) / |y_c|)

h says how far the chosen y_c is ahead of the rejected y_r, and `loss_type` what that costs: both stand in
`margins.py`. For plain DPO h = β log(π(y_c)/π_ref(y_c)) − β log(π(y_r)/π_ref(y_r)) and cost(h) = −log σ(h).

What is optimised. The optimum of E_π[r] − β KL(π‖π_ref) is π* ∝ π_ref exp(r/β), hence r = β log(π*/π_ref) +
const. In the Bradley–Terry model, P(y_c preferred) = σ(r(y_c) − r(y_r)), the constant cancels and the model's
negative log-likelihood is L: preferences that follow r lead to the same π* as PPO, from whatever distribution
the completions were drawn, as long as it covers them. No KL is estimated. At π = π_ref every pair costs log 2.

On its own samples, online or in rounds, the distribution that pairs are drawn from moves along and no gradient goes
through it. With ρ = β log(π/π_ref) the mean gradient is, up to a factor, Σ_y π(y) g(y) ∇log π(y) with

    g(y) = Σ_y' π(y') [σ(ρ(y) − ρ(y')) − σ(r(y) − r(y'))].

Σ_y c(y) ∇log π(y) vanishes only where c is a multiple of π, so g is constant, and since σ(a) + σ(−a) = 1 its mean
under π is zero: g(y) = 0 for all y. At the y where ρ − r is greatest no term of g is negative, hence all are zero and
ρ − r is the same for all y: π* again, and nothing else. `refresh: every_round` puts the last round's π in place of
π_ref, so that k rounds end at π_ref exp(k r/β).

All this is said of labels that are drawn by the Bradley–Terry model. Where the greater score always wins, as it does
when the scores themselves make the pairs, the sigmoid loss has no optimum inside: log-ratios grow for as long as it is
trained, and β, the learning rate and the number of updates say how far. `ipo` has one.

    sigmoid       π*; with `label_smoothing` a σ(h) above 1 − s costs again (https://ericmitchell.ai/cdpo.pdf)
    robust        π*, though a share s of the labels is flipped at random (arXiv 2403.00409)
    sigmoid_norm  π = π_ref exp(|y| (r/β + c)), c such that it sums to 1: a reward per token
    simpo         the same without π_ref, at γ = 0; γ > 0 asks for more than the preferences say
    ipo           π = π_ref exp(|y| (p(y)/β + c)) with p(y) the probability that y is preferred to another
                  completion of the data (arXiv 2310.12036): finite even where one always wins
    hinge         any π in which the preferred of each pair is ahead by 1 (arXiv 2305.10425)

`length_alpha` α (arXiv 2403.19159) takes r − α|y| for the reward: π ∝ π_ref exp((r − α|y|)/β). `ld_alpha`
(arXiv 2409.06411) makes what only the longer completion has count less. `dpop_lambda` (arXiv 2402.13228) and
`sft_weight` (arXiv 2404.19733) hold up the chosen completion, whose probability may fall while the margin
grows; `margin_weight` asks more of pairs whose scores are further apart. These three move the optimum away
from π*, towards what is chosen.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.margins import COSTS, by_side, log_ratios, margin
from workers.algorithms.metrics import num_tokens, rollout_metrics
from workers.algorithms.ops import completion_means, completion_sums, share
from workers.algorithms.pairs import SELECTIONS, Pairs
from workers.config import DpoConfig
from workers.needs import NEEDS
from workers.types import Experience, Metrics, ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: DpoConfig) -> tuple[TrainBatch, Metrics]:
    """One pair per row, chosen before rejected. No row at all when no pair has a margin."""
    experience, rewards, reference = scored.experience, scored.rewards, scored.reference_logprobs
    assert rewards is not None
    assert reference is not None or not config.needs_reference
    pairs = SELECTIONS[config.pair_selection](
        rewards,
        experience.group_offsets,
        pairs_per_prompt=config.pairs_per_prompt,
        min_margin=config.min_margin,
        seed=scored.seed,
    )
    picked = np.stack([pairs.chosen, pairs.rejected], axis=1).reshape(-1)  # [2P]
    batch = TrainBatch(
        prompts=experience.prompt_tokens.take(experience.group_of[pairs.chosen]),
        completions=experience.completions.take(picked),
        row_offsets=2 * np.arange(len(pairs) + 1),
        reference_logprobs=None if reference is None else reference[experience.completions.positions(picked)],
        margins=pairs.margins,
        sources=picked,
    )
    sampled = experience.logprobs is not None
    facts = rollout_metrics(scored) if sampled else {"num_tokens": float(num_tokens(experience))}
    if experience.temperature != 1:
        for name in ("objective/kl", "drift/saturated"):
            facts.pop(name, None)  # the reference's log-probabilities are those at temperature 1
    return batch, facts | _pair_metrics(pairs, experience)


def loss(logprobs: Tensor, batch: MicroBatch, config: DpoConfig) -> tuple[Tensor, Stats]:
    """The cost of `loss_type` with its supervised term, averaged over the update's pairs. `logprobs`: [T].

    A completion's reward is β times its log-ratio; without a reference, β times its mean log-probability.
    """
    assert len(batch.lengths) == 2 * batch.num_rows, "a row is a chosen and a rejected completion"
    ratios = log_ratios(logprobs, batch, config)
    losses = COSTS[config.loss_type].cost(margin(ratios, batch, config), config)
    nll, _ = by_side(-completion_means(logprobs, batch))
    losses = losses + config.sft_weight * nll
    chosen, rejected = by_side(config.beta * (ratios if config.needs_reference else ratios / batch.lengths))
    chosen_logps, rejected_logps = by_side(completion_sums(logprobs, batch))
    pairs = batch.totals.rows
    return losses.sum() / pairs, {
        "loss": share(losses, pairs),
        "nll_loss": share(nll, pairs),
        "rewards/chosen": share(chosen, pairs),
        "rewards/rejected": share(rejected, pairs),
        "rewards/margins": share(chosen - rejected, pairs),
        "rewards/accuracies": share(chosen > rejected, pairs),
        "logps/chosen": share(chosen_logps, pairs),
        "logps/rejected": share(rejected_logps, pairs),
    }


def _pair_metrics(pairs: Pairs, experience: Experience) -> Metrics:
    """How many pairs, how far apart, how long; the averages are left out when there is no pair.

    A group is saturated when it gave no pair: its scores are equal, or too close for `min_margin`.
    """
    num_groups = len(experience.prompts)
    num_paired = len(np.unique(experience.group_of[pairs.chosen]))
    metrics = {"pairs/count": float(len(pairs)), "pairs/saturated_groups": 1 - num_paired / num_groups}
    if len(pairs):
        lengths, margin = experience.completions.lengths, float(pairs.margins.mean(dtype=np.float64))
        metrics |= {
            "pairs/margin": margin,
            "objective/scores_margin": margin,
            "pairs/chosen_length": float(lengths[pairs.chosen].mean()),
            "pairs/rejected_length": float(lengths[pairs.rejected].mean()),
        }
    return metrics


DPO = Algorithm(needs=NEEDS["dpo"], prepare=prepare, loss=loss)
