"""Direct preference optimisation (arXiv 2305.18290) and its variants: offline, online and iterative with one loss.

    L = mean over pairs of cost(h) + sft_weight · (−log π(y_c) / |y_c|)
                                   + exploration_alpha · (log π(y_c) + log π(y_r)) / 2

h is the margin by which the chosen y_c is ahead of the rejected y_r. `preference_losses.py` defines h and, for each
`loss_type`, its cost. For plain DPO h = β log(π(y_c)/π_ref(y_c)) − β log(π(y_r)/π_ref(y_r)) and cost(h) = −log σ(h).

Optimum. The optimum of E_π[r] − β KL(π‖π_ref) is π* ∝ π_ref exp(r/β), hence r = β log(π*/π_ref) + const. In the
Bradley–Terry model, P(y_c preferred) = σ(r(y_c) − r(y_r)), the constant cancels and the negative log-likelihood of the
model is L. Preferences that follow r therefore lead to the same π* as PPO, whatever distribution the completions were
drawn from, as long as it covers them. No KL is estimated. At π = π_ref the loss of every pair is log 2.

On its own samples (online or iterative) the distribution that pairs are drawn from follows the policy, and no gradient
flows through it. With ρ = β log(π/π_ref) the mean gradient is, up to a factor, Σ_y π(y) g(y) ∇log π(y) with

    g(y) = Σ_y' π(y') [σ(ρ(y) − ρ(y')) − σ(r(y) − r(y'))].

Σ_y c(y) ∇log π(y) vanishes only where c is a multiple of π, so g is constant. Since σ(a) + σ(−a) = 1, its mean under π
is zero, so g(y) = 0 for all y. At the y where ρ − r is greatest no term of g is negative, hence all are zero and ρ − r
is the same for all y: the optimum is π* again, and it is the only one. `refresh: every_round` replaces π_ref by the
last round's π, so that k rounds end at π_ref exp(k r/β).

This holds for labels drawn from the Bradley–Terry model. Where the completion with the greater score always wins, as in
pairs made from scores, the sigmoid loss has no interior optimum: log-ratios grow as long as training goes on, and β,
the learning rate and the number of updates determine how far. `ipo` has an interior optimum. So has every loss with
`soft_labels: margin`, which gives each pair the Bradley–Terry probability of its scores as its label: L is then the
mean over such labels, and leads to π* whichever completions are paired.

Optimum of each `loss_type`:

    sigmoid       π*; with `label_smoothing` s the loss rises again for σ(h) > 1 − s (https://ericmitchell.ai/cdpo.pdf)
    robust        π*, even if a share s of the labels is flipped at random (arXiv 2403.00409)
    sigmoid_norm  π = π_ref exp(|y| (r/β + c)), c such that it sums to 1: a reward per token
    simpo         as sigmoid_norm without π_ref, at γ = 0; γ > 0 asks for a larger margin than the preferences imply
    ipo           π = π_ref exp(|y| (p(y)/β + c)) with p(y) the probability that y is preferred to another
                  completion of the data (arXiv 2310.12036): finite even where one completion always wins
    hinge         any π in which the preferred completion of each pair is ahead by 1 (arXiv 2305.10425)
    sppo          log(π/π_ref) = (p(y) − 1/2)/β + c π/μ with p(y) as for ipo, completions drawn from μ, and c such that
                  π sums to 1 (arXiv 2405.00675)

`length_alpha` α (arXiv 2403.19159) uses r − α|y| as the reward: π ∝ π_ref exp((r − α|y|)/β). `ld_alpha`
(arXiv 2409.06411) reduces the weight of the tokens that only the longer completion has. `dpop_lambda` (arXiv
2402.13228) and `sft_weight` (arXiv 2404.19733) keep up the probability of the chosen completion, which may fall while
the margin grows. `margin_weight` asks for a larger margin where the scores are further apart. These three move the
optimum away from π*, towards the chosen completions.

Nash equilibrium. On its own samples μ is π, so that `sppo` with a fixed reference and random pairs ends where
π ∝ π_ref exp(P(y beats a draw from π)/β). This is the Nash equilibrium of the preferences with the regulariser
β KL(π‖π_ref), the limit of Nash-MD (arXiv 2312.00886). It exists for preferences that follow no reward, too. Nash-MD
itself is not provided: its opponent is sampled from π^(1 − b) π_ref^b, token by token, which needs the logits of two
models, and an engine holds one.

Self-play (SPIN, arXiv 2401.01335). Where y_c is drawn from the data p_data, y_r from π_ref, and both are always in this
order, L is the logistic loss of a classifier with the log-odds β log(π/π_ref), so that at the optimum these are
log(p_data/π_ref) + const: a round leads from π_ref to π_ref (p_data/π_ref)^(1/β). Repeated with `refresh: every_round`
it ends at p_data for every β > 1/2; at β = 1 the first round does.

Exploration (XPO, arXiv 2405.21046). The bonus lowers the probability of samples of the reference, so that more is left
for what the reference does not sample. The paper draws one completion of each pair from π and one from π_ref, and has
the bonus of the latter. In a round with `refresh: every_round` both are drawn from π_ref = π, and the bonus is the mean
over the two. Where pairs are left out (equal scores, duplicates, truncated completions), their completions are missing
from the bonus; this is an approximation. The paper's guarantee is for a π_ref that stays the same.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from workers.algorithms.base import Algorithm, MicroBatch, Stats
from workers.algorithms.metrics import num_tokens, rollout_metrics
from workers.algorithms.mixed_pairs import joined, mixed_pairs
from workers.algorithms.ops import by_objective, completion_means, completion_sums, share
from workers.algorithms.pairs import pair_metrics, pairs_of, penalised
from workers.algorithms.preference_losses import by_side, log_ratios, pair_losses
from workers.algorithms.soft_labels import soft_labels
from workers.config import DpoConfig
from workers.given import batch_without_given, is_given
from workers.gold import sampled_batch
from workers.stats import Metrics
from workers.types import ScoredBatch, TrainBatch


def prepare(scored: ScoredBatch, config: DpoConfig) -> tuple[TrainBatch, Metrics]:
    """Make one row of each pair, chosen before rejected: those of the samples, then given ones.

    The batch is empty if no pair has a margin. The metrics are those of the samples and of their pairs.
    """
    experience, reference = scored.experience, scored.reference_logprobs
    assert reference is not None or not config.needs_reference
    sampled, samples = experience.logprobs is not None, batch_without_given(scored)
    settings = config.pairs if sampled else config.pairs.for_dataset()
    own, scores = pairs_of(samples, settings)
    facts = rollout_metrics(sampled_batch(samples)) if sampled else {}
    facts |= pair_metrics(own, samples.experience, settings if sampled else None)
    pairs = own
    if is_given(experience).any():
        assert scored.rewards is not None
        scores = penalised(scored.rewards, experience, settings)
        given = mixed_pairs(own, experience, scores, settings, seed=scored.seed)
        facts |= {"pairs/mixed": float(len(given)), "pairs/mixed_duplicates": float(given.num_duplicates)}
        pairs = joined(own, given)
    picked = np.stack([pairs.chosen, pairs.rejected], axis=1).reshape(-1)  # [2P]
    batch = TrainBatch(
        prompts=experience.prompt_tokens.take(experience.group_of[pairs.chosen]),
        completions=experience.completions.take(picked),
        row_offsets=2 * np.arange(len(pairs) + 1),
        reference_logprobs=None if reference is None else reference[experience.completions.positions(picked)],
        margins=pairs.margins,
        soft_labels=soft_labels(scored, scores, picked, config),
        sources=picked,
    )
    facts["num_tokens"] = float(num_tokens(samples.experience))
    if experience.temperature != 1:
        for name in ("objective/kl", "objective/kl_error", "drift/saturated"):
            facts.pop(name, None)  # the reference's log-probabilities are at temperature 1
    return batch, facts


def loss(logprobs: Tensor, batch: MicroBatch, config: DpoConfig) -> tuple[Tensor, Stats]:
    """Compute the loss of `loss_type` plus the supervised term and the exploration bonus. `logprobs`: [T].

    The reward of a completion in the stats is β times its log-ratio; without a reference, β times its mean
    log-probability.
    """
    assert len(batch.lengths) == 2 * batch.num_rows, "a row is a chosen and a rejected completion"
    ratios = log_ratios(logprobs, batch, config)
    losses = pair_losses(ratios, batch, config)
    nll, _ = by_side(-completion_means(logprobs, batch))
    chosen_logps, rejected_logps = by_side(completion_sums(logprobs, batch))
    losses = losses + config.sft_weight * nll + config.exploration_alpha * (chosen_logps + rejected_logps) / 2
    chosen, rejected = by_side(config.beta * (ratios if config.needs_reference else ratios / batch.lengths))
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
        **by_objective(batch, loss=losses, accuracy=chosen > rejected, margin=chosen - rejected),
    }


ALGORITHM = Algorithm(prepare=prepare, loss=loss)
