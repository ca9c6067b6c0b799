"""Check that the DPO family and KTO, trained with their own `prepare` and `loss`, reach their closed-form optima.

The world is that of `benchmarks/world.py`. Completions of data are drawn uniformly and labelled by the Bradley–Terry
model of the rewards r. Where no optimum is finite (hinge, KTO), properties of the limit are tested.

Not tested here: label smoothing, `margin_weight`, `dpop_lambda`, `sft_weight` and a `simpo_gamma` above 0. The margin
that they ask for is not a difference of two numbers, one per completion, so the optimum has no closed form. Their
arithmetic is tested in `test_preference_losses.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.world import (
    BETA,
    PROMPTS,
    TWO_TOKENS,
    Index,
    Trainer,
    World,
    array,
    assert_reaches,
    kl,
    one_token_each,
    sources_of,
    tilted,
)
from workers.algorithms.base import MicroBatch, totals_of
from workers.algorithms.ops import completion_sums
from workers.types import Experience, Finish, Prompt, ScoredBatch, TrainBatch

pytestmark = pytest.mark.slow

EVERY_PAIR = {"duplicates": "keep", "truncated_chosen": True}
PAIRS: dict[str, Any] = {
    "type": "dpo",
    "num_generations": 2,
    "prompts_per_step": 512,
    "batch_size": 1536,
    "pairs": EVERY_PAIR,
}


class Labelled(World):
    """Pairs labelled by `label(r_first − r_second, lots in [0, 1))`: True if the first of a pair is preferred."""

    label: Callable[[Any, Any], Any]

    def preferences(self, prompts: Index, completions: Index) -> Any:
        first, second = self.rewards[prompts, completions].reshape(-1, 2).T
        wins = self.label(first - second, self.rng.random(len(first)))
        return np.stack([wins, ~wins], 1).reshape(-1).astype(np.float32)


class FlippedAtRandom(Labelled):
    """Bradley–Terry labels, of which a fifth is flipped."""

    @staticmethod
    def label(difference: Any, draws: Any) -> Any:
        wins = sigmoid(difference)
        return draws < 0.8 * wins + 0.2 * (1 - wins)


class Certain(Labelled):
    """Labels by which the greater reward always wins."""

    @staticmethod
    def label(difference: Any, draws: Any) -> Any:
        return difference > 0


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def train(world: World, *, steps: int = 400, lr: float = 0.1, **settings: Any) -> Tensor:
    return Trainer(world, steps=steps, lr=lr, **PAIRS, **settings).run()


def normalised(log_weights: Tensor, slopes: Tensor) -> Tensor:
    """Compute exp(log_weights + c · slopes), with c of each prompt such that it sums to 1."""
    low, high = torch.full((PROMPTS, 1), -50.0).double(), torch.full((PROMPTS, 1), 50.0).double()
    for _ in range(100):
        c = (low + high) / 2
        too_much = (log_weights + c * slopes).exp().sum(1, keepdim=True) > 1
        low, high = torch.where(too_much, low, c), torch.where(too_much, c, high)
    return (log_weights + (low + high) / 2 * slopes).exp()


def lengths_of(world: World) -> Tensor:
    return torch.from_numpy(world.tokens.lengths).double()


def test_robust_dpo_is_unaffected_by_flipped_labels() -> None:
    """Check π_ref exp(r/β), as if no label were flipped. The sigmoid loss trusts the labels and does not reach it."""
    world = FlippedAtRandom(TWO_TOKENS, seed=0)
    robust = train(world, beta=BETA, loss_type="robust", label_smoothing=0.2)
    assert_reaches(tilted(world), robust, world)
    sigmoid_policy = train(FlippedAtRandom(TWO_TOKENS, seed=0), beta=BETA)
    assert kl(sigmoid_policy, tilted(world)) > 0.05


def test_a_reward_per_token() -> None:
    """Check π = π_ref exp(|y| (r/β + c)): under sigmoid_norm (log π − log π_ref)/|y| of each pair differs by r/β."""
    world = World(TWO_TOKENS, seed=0)
    lengths, rewards = lengths_of(world), torch.from_numpy(world.rewards).double()
    optimum = normalised(world.probabilities(world.reference).log() + lengths * rewards / BETA, lengths)
    policy = train(world, beta=BETA, loss_type="sigmoid_norm")
    assert_reaches(optimum, policy, world)
    assert kl(policy, tilted(world)) > 0.05


def test_simpo_at_gamma_0() -> None:
    """Check the same without a reference: π = exp(|y| (r/β + c))."""
    world = World(TWO_TOKENS, seed=0)
    lengths, rewards = lengths_of(world), torch.from_numpy(world.rewards).double()
    optimum = normalised(lengths * rewards / 2, lengths)
    assert_reaches(optimum, train(world, beta=2.0, loss_type="simpo", simpo_gamma=0.0), world)


@pytest.mark.parametrize("kind", [World, Certain])
def test_ipo(kind: type[World]) -> None:
    """Check IPO. The target of a pair's score difference is ±1/(2β), (2P(y beats y′) − 1)/(2β) on average.

    Least squares over all pairs, with y and y′ drawn from μ, gives the score s(y) = p(y)/β + c, where p(y) is the
    probability to beat a draw from μ. Scores are log-ratios per token: π = π_ref exp(|y| (p/β + c)). It is finite even
    if the better completion always wins, where the log-ratios under the sigmoid loss diverge.
    """
    world = kind(TWO_TOKENS, seed=0)
    rewards = world.rewards.astype(np.float64)
    differences = rewards[:, :, None] - rewards[:, None, :]
    beats = np.where(differences == 0, 0.5, differences > 0) if kind is Certain else sigmoid(differences)
    uniform = world.probabilities(torch.zeros_like(world.reference)).numpy()  # μ: what the data are drawn from
    wins = torch.from_numpy(np.einsum("pij,pj->pi", beats, uniform))
    lengths = lengths_of(world)
    optimum = normalised(world.probabilities(world.reference).log() + lengths * wins / BETA, lengths)
    assert_reaches(optimum, train(world, beta=BETA, loss_type="ipo"), world)


def test_length_costs_reward() -> None:
    """Check R-DPO's optimum π_ref exp((r − α|y|)/β)."""
    world = World(TWO_TOKENS, seed=0)
    weights = tilted(world) * (-0.6 * lengths_of(world) / BETA).exp()
    policy = train(world, beta=BETA, length_alpha=0.6)
    assert_reaches(weights / weights.sum(1, keepdim=True), policy, world)
    assert kl(policy, tilted(world)) > 0.05


def test_the_hinge_loss_reaches_zero() -> None:
    """Check that every pair is ahead by 1 if labels are certain: log π/π_ref of the better is at least 1/β higher."""
    world = Certain(TWO_TOKENS, seed=0)
    policy = train(world, beta=2.0, loss_type="hinge")
    ratios = (policy / world.probabilities(world.reference)).log().numpy()
    for prompt in range(PROMPTS):
        steps = np.diff(ratios[prompt, np.argsort(world.rewards[prompt])])
        assert steps.min() > 0.98 / 2


def test_online_dpo_with_a_fixed_reference() -> None:
    """Check that the optimum is that of the offline run: it does not depend on the distribution of the pairs."""
    world = World(TWO_TOKENS, seed=0)
    assert_reaches(tilted(world), train(world, own_samples=True, beta=BETA), world)


def test_without_label_noise_the_policy_moves_beyond_the_optimum() -> None:
    """Check that without label noise, as in pairs from scores, the policy moves beyond π* to the best completion."""
    world = Certain(TWO_TOKENS, seed=0)
    policy = train(world, steps=150, own_samples=True, beta=BETA)
    best = world.rewards.argmax(1)
    assert tilted(world)[range(PROMPTS), best].min() < 0.3
    assert policy[range(PROMPTS), best].min() > 0.9


def rounds(world: World, *, steps: int, **settings: Any) -> Tensor:
    """Train in rounds, each of which samples a pool and makes many updates with a fresh optimizer."""
    pool = {**PAIRS, "prompts_per_step": 65536, "reset_optimizer": True}
    return Trainer(world, steps=steps, lr=0.1, own_samples=True, **pool, **settings).run()


def test_rounds_with_a_fixed_reference_reach_the_same() -> None:
    world = World(TWO_TOKENS, seed=0)
    assert_reaches(tilted(world), rounds(world, steps=3, beta=BETA), world)


def test_three_rounds_of_iterative_dpo() -> None:
    """Check π_ref exp(3r/β): each round multiplies its reference by exp(r/β), and the next one starts from there."""
    world = World(TWO_TOKENS, seed=0)
    first = rounds(world, steps=1, refresh="every_round", beta=3 * BETA)
    assert_reaches(tilted(world, 3 * BETA), first, world)
    world = World(TWO_TOKENS, seed=0)
    assert_reaches(tilted(world), rounds(world, steps=3, refresh="every_round", beta=3 * BETA), world)


class Feedback(Trainer):
    """Completions of a uniform policy, each with the next row's; desirable with the probability σ(r)."""

    def update_of(self, batch: TrainBatch, rows: Index, prompts: Index, completions: Index) -> MicroBatch:
        assert batch.baseline is not None
        baseline = self.mean_log_ratio(batch.baseline, prompts, completions)
        return MicroBatch.of(batch, rows, replace(totals_of(batch, rows), baseline=baseline))

    def mean_log_ratio(self, batch: TrainBatch, prompts: Index, completions: Index) -> float:
        rows = np.arange(batch.num_rows)
        micro = MicroBatch.of(batch, rows, totals_of(batch, rows))
        picked = sources_of(batch, rows)
        logprobs = self.world.logprobs(self.policy.detach(), prompts[picked], completions[picked])
        assert micro.reference_logprobs is not None
        return float(completion_sums(logprobs - micro.reference_logprobs, micro).mean())

    def experience(self, step: int) -> tuple[ScoredBatch, Index, Index]:
        world = self.world
        prompts, drawn = world.sample(torch.zeros_like(self.policy.detach()), 256)
        mixed = world.rng.permutation(len(prompts))
        prompts, drawn = prompts[mixed], drawn[mixed]
        completions = np.stack([drawn, np.roll(drawn, -1)], 1).reshape(-1)
        is_desirable = world.rng.random(len(drawn)) < sigmoid(world.rewards[prompts, drawn])
        both = np.repeat(prompts, 2)
        experience = Experience(
            prompts=(Prompt(id="", text=""),) * len(prompts),
            prompt_tokens=one_token_each(prompts),
            completions=world.tokens.take(completions),
            group_offsets=np.arange(0, len(both) + 1, 2),
            logprobs=None,
            versions=np.zeros(len(both), np.int32),
            finish=np.full(len(both), Finish.stop, np.int32),
        )
        rewards = np.stack([is_desirable, np.zeros_like(is_desirable)], 1).reshape(-1).astype(np.float32)
        reference = array(world.logprobs(world.reference, both, completions))
        return (
            ScoredBatch(experience=experience, rewards=rewards, reference_logprobs=reference, values=None, seed=step),
            both,
            completions,
        )


@pytest.mark.parametrize("undesirable_weight", [1.0, 2.0])
def test_kto_follows_the_majority_of_labels(undesirable_weight: float) -> None:
    """Check KTO's limit. Its loss is linear in σ(β (ρ − z)), so there is no interior optimum to compare with.

    In the limit all probability is on completions with desirable_weight · q > undesirable_weight · (1 − q), where q is
    the probability of being labelled desirable; a larger undesirable_weight raises the threshold. The distribution over
    these completions is not determined, because the loss is flat where σ is 1. Prompts without such a completion are
    left out.
    """
    world = World(TWO_TOKENS, seed=0)
    settings = {"type": "kto", "beta": 1.0, "undesirable_weight": undesirable_weight}
    policy = Feedback(world, steps=300, lr=0.1, **settings).run().numpy()
    q = sigmoid(world.rewards.astype(np.float64))
    gain = q - undesirable_weight * (1 - q)
    assert world.probabilities(world.reference).numpy()[gain < 0].max() > 0.2
    possible = np.flatnonzero(gain.max(1) > 0.1)
    assert len(possible) >= 2
    for prompt in possible:
        assert policy[prompt, gain[prompt] < -0.05].sum() < 0.01
