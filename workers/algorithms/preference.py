"""Direct preference optimisation (arXiv 2305.18290): offline, online and in rounds with one loss.

With h = β log(π(y_c)/π_ref(y_c)) − β log(π(y_r)/π_ref(y_r)) for the chosen y_c and the rejected y_r:

    L = mean over pairs of −(1 − s) log σ(h) − s log σ(−h) + sft_weight · (−log π(y_c) / |y_c|)

What is optimised. The optimum of E_π[r] − β KL(π‖π_ref) is π* ∝ π_ref exp(r/β), hence r = β log(π*/π_ref) +
const. In the Bradley–Terry model, P(y_c preferred) = σ(r(y_c) − r(y_r)), the constant cancels and the model's
negative log-likelihood is L with s = 0: preferences that follow r lead to the same π* as PPO, from whatever
distribution the completions were drawn, as long as it covers them. No KL is estimated.

`label_smoothing` s is the share of labels taken to be wrong (https://ericmitchell.ai/cdpo.pdf). `sft_weight`
holds up the chosen completion, whose probability may fall while the margin grows (arXiv 2404.19733); it moves
the optimum from π* towards what is chosen. At π = π_ref every pair costs log 2.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import logsigmoid

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.metrics import num_tokens, rollout_metrics
from workers.algorithms.ops import completion_means, completion_sums, per_token, share
from workers.algorithms.pairs import Pairs, best_with_worst
from workers.config import DpoConfig
from workers.needs import NEEDS
from workers.types import Evidence, Experience, Metrics, TrainBatch


def prepare(evidence: Evidence, config: DpoConfig) -> tuple[TrainBatch, Metrics]:
    """One pair per row, chosen before rejected. No row at all when no pair has a margin."""
    experience, rewards, reference = evidence.experience, evidence.rewards, evidence.reference_logprobs
    assert rewards is not None
    assert reference is not None
    pairs = best_with_worst(
        rewards,
        experience.group_offsets,
        pairs_per_prompt=config.pairs_per_prompt,
        min_margin=config.min_margin,
        seed=evidence.seed,
    )
    picked = np.stack([pairs.chosen, pairs.rejected], axis=1).reshape(-1)  # [2P]
    batch = TrainBatch(
        prompts=experience.prompt_tokens.take(experience.group_of[pairs.chosen]),
        completions=experience.completions.take(picked),
        row_offsets=2 * np.arange(len(pairs) + 1),
        reference_logprobs=reference[experience.completions.positions(picked)],
        margins=pairs.margins,
        sources=picked,
    )
    sampled = experience.logprobs is not None
    facts = rollout_metrics(evidence) if sampled else {"num_tokens": float(num_tokens(experience))}
    if experience.temperature != 1:
        facts.pop("objective/kl", None)  # the reference's log-probabilities are those at temperature 1
    return batch, facts | _pair_metrics(pairs, experience)


def loss(logprobs: Tensor, batch: MicroBatch, config: DpoConfig) -> tuple[Tensor, Stats]:
    """The sigmoid loss with its supervised term, averaged over the update's pairs. `logprobs`: [T]."""
    assert len(batch.lengths) == 2 * batch.num_rows, "a row is a chosen and a rejected completion"
    reference = per_token(batch, batch.reference_logprobs)
    chosen_logps, rejected_logps = _by_side(completion_sums(per_token(batch, logprobs), batch))
    rewards = config.beta * completion_sums(logprobs - reference, batch)
    chosen, rejected = _by_side(rewards)
    margins = chosen - rejected
    smoothing = config.label_smoothing
    losses = -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)
    nll, _ = _by_side(-completion_means(logprobs, batch))
    losses = losses + config.sft_weight * nll
    pairs = batch.totals.rows
    return losses.sum() / pairs, {
        "loss": share(losses, pairs),
        "nll_loss": share(nll, pairs),
        "rewards/chosen": share(chosen, pairs),
        "rewards/rejected": share(rejected, pairs),
        "rewards/margins": share(margins, pairs),
        "rewards/accuracies": share(margins > 0, pairs),
        "logps/chosen": share(chosen_logps, pairs),
        "logps/rejected": share(rejected_logps, pairs),
    }


def _by_side(per_completion: Tensor) -> tuple[Tensor, Tensor]:
    """Figures of the chosen and of the rejected completions: [2R] -> [R], [R]."""
    chosen, rejected = per_completion.view(-1, 2).unbind(1)
    return chosen, rejected


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
