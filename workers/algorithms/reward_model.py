"""Reward model trained on preferences (Bradley–Terry, arXiv 1706.03741; with margins, arXiv 2307.09288).

With r the model's score at a completion's last token, for the chosen y_c and the rejected y_r of a pair:

    L = mean over pairs of −log σ(r_c − r_r − w m) + c (r_c + r_r)²

where m is the margin of the pair in the dataset (score of chosen minus score of rejected), w = `margin_weight` and
c = `center_rewards_coefficient`. Where the row has votes, with the share p for the chosen completion, −log σ(h) becomes
its expectation over the annotators, −p log σ(h) − (1 − p) log σ(−h), which is least at σ(h) = p.

Optimum. With w = c = 0, L is the negative log-likelihood of the Bradley–Terry model, P(y_c preferred) = σ(r_c − r_r).
It determines r up to a constant per prompt. The term (r_c + r_r)² (arXiv 2312.09244) chooses the constant that centres
a pair on 0, so that rewards of different prompts can be averaged. w > 0 asks for a larger difference where the margin
is larger. Equal scores for chosen and rejected give a loss of log 2 (at w = c = 0).

With `objectives` the model has a score for each, and a pair trains that of its row's objective alone.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import logsigmoid

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.metrics import num_tokens
from workers.algorithms.ops import by_objective, per_token, share
from workers.algorithms.pairs import make_pairs
from workers.algorithms.soft_labels import row_labels
from workers.config import PairsConfig, RewardModelConfig
from workers.stats import Metrics
from workers.types import ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: RewardModelConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of each prompt's best and worst completion, in this order, unless their scores are equal."""
    experience, rewards = scored.experience, scored.rewards
    assert rewards is not None
    pairs = make_pairs(experience, rewards, PairsConfig().for_dataset(), seed=scored.seed)
    picked = np.stack([pairs.chosen, pairs.rejected], axis=1).reshape(-1)  # [2P]
    batch = TrainBatch(
        prompts=experience.prompt_tokens.take(experience.group_of[pairs.chosen]),
        completions=experience.completions.take(picked),
        row_offsets=2 * np.arange(len(pairs) + 1),
        margins=pairs.margins,
        soft_labels=row_labels(experience, picked) if config.soft_labels == "votes" else None,
        sources=picked,
    )
    return batch, {"num_tokens": float(num_tokens(experience)), "pairs/count": float(len(pairs))}


def loss(scores: Tensor, batch: MicroBatch, config: RewardModelConfig) -> tuple[Tensor, Stats]:
    """Compute the negative log-likelihood of the pairs, averaged over the update's pairs. `scores`: [T] or [T, K]."""
    assert len(batch.lengths) == 2 * batch.num_rows, "a row is a chosen and a rejected completion"
    assert batch.margins is not None
    rewards = final_scores(scores, batch)
    chosen, rejected = rewards.view(-1, 2).unbind(1)  # [R], [R]
    difference = chosen - rejected
    h = difference - config.margin_weight * batch.margins
    losses = -logsigmoid(h)
    if batch.soft_labels is not None:
        preferred = batch.soft_labels.view(-1, 2)[:, 0]
        losses = preferred * losses - (1 - preferred) * logsigmoid(-h)
    losses = losses + config.center_rewards_coefficient * (chosen + rejected).square()
    pairs = batch.totals.rows
    return losses.sum() / pairs, {
        "loss": share(losses, pairs),
        "accuracy": share(difference > 0, pairs),
        "margin": share(difference, pairs),
        "mean_reward": share(rewards, 2 * pairs),
        **by_objective(batch, loss=losses, accuracy=difference > 0, margin=difference),
    }


def final_scores(scores: Tensor, batch: MicroBatch) -> Tensor:
    """Return the score of each completion, which is the score at its last token: [T] -> [n].

    Of scores for K objectives, [T, K], it is that of its row's objective.
    """
    last = batch.lengths.cumsum(0) - 1
    if scores.ndim == 1:
        return per_token(batch, scores)[last]
    assert batch.objectives is not None, "a reward model with several scores needs the objective of each row"
    return scores[last, batch.objectives[batch.row_of]]


ALGORITHM = Algorithm(prepare=prepare, loss=loss, range_of=("reward", final_scores))
