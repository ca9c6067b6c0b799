"""Check SPPO, soft labels, self-play and the exploration bonus, trained with DPO's `prepare` and `loss`, against their
optima.

The optima are those of `optima.py`. They are checked by what defines them, and compared with what a policy reaches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from optima import BETA_SPPO, EXPLORATION, equilibrium, explored, minimum, win_rates_of_data
from proof import EVERY_PAIR, PAIRS
from torch import Tensor
from worlds import Covered, Game, Scored, SelfPlay

from benchmarks.world import (
    BETA,
    ONE_TOKEN,
    PROMPTS,
    TWO_TOKENS,
    Index,
    Trainer,
    World,
    array,
    assert_reaches,
    kl,
    tilted,
)
from workers.gold import with_gold
from workers.types import ScoredBatch

pytestmark = pytest.mark.slow

ROUND: dict[str, Any] = {**PAIRS, "prompts_per_step": 65536, "reset_optimizer": True, "refresh": "every_round"}
GROUPS: dict[str, Any] = {"num_generations": 8, "prompts_per_step": 32, "batch_size": 96}


def train(world: World, *, steps: int = 400, trainer: type[Trainer] = Trainer, **settings: Any) -> Tensor:
    return trainer(world, steps=steps, lr=0.1, type="dpo", **{**PAIRS, **settings}).run()


@pytest.mark.parametrize("selection", ["max_min", pytest.param("random", marks=pytest.mark.long)])
def test_soft_labels_lead_to_the_optimum_of_the_scores(selection: str) -> None:
    """Check π_ref exp(r/β) for pairs made from scores, whichever are paired. With hard labels it is passed by."""
    world = Scored(TWO_TOKENS, seed=0)
    settings = {**GROUPS, "own_samples": True, "beta": BETA, "pairs": {**EVERY_PAIR, "selection": selection}}
    assert_reaches(tilted(world), train(world, soft_labels="margin", **settings), world)
    assert kl(train(Scored(TWO_TOKENS, seed=0), **settings), tilted(world)) > 0.1


def test_the_temperature_of_labels_divides_the_reward() -> None:
    """Check π_ref exp(r/(2β)) where a score difference of 2 makes a preference of σ(1)."""
    world = Scored(TWO_TOKENS, seed=1)
    settings = {**GROUPS, "own_samples": True, "beta": BETA, "soft_labels": "margin", "label_temperature": 2.0}
    assert_reaches(tilted(world, 2 * BETA), train(world, **settings), world)


@pytest.mark.parametrize("loss_type", ["sigmoid_norm", "ipo"])
def test_soft_labels_have_the_optimum_of_drawn_labels(loss_type: str) -> None:
    """Check that a loss reaches the same policy from the probability of a label as from labels drawn with it."""
    settings = {"loss_type": loss_type, "beta": BETA}
    soft = train(Scored(TWO_TOKENS, seed=0), soft_labels="margin", **settings)
    assert kl(train(World(TWO_TOKENS, seed=0), **settings), soft) < 0.01


def test_sppo_on_a_dataset() -> None:
    """Check that log(π/π_ref) − (p − 1/2)/β is a multiple of π/μ at the optimum, and that training reaches it."""
    world = World(TWO_TOKENS, seed=0)
    optimum = win_rates_of_data(world)
    data, rewards = world.probabilities(torch.zeros_like(world.reference)), torch.from_numpy(world.rewards).double()
    p = ((rewards[:, :, None] - rewards[:, None]).sigmoid() * data[:, None]).sum(2)
    rest = (optimum / world.probabilities(world.reference)).log() - (p - 0.5) / BETA_SPPO
    multiple = rest / (optimum / data)
    assert multiple.std(1).max() < 1e-5 * multiple.abs().min()
    assert_reaches(optimum, train(world, beta=BETA_SPPO, loss_type="sppo"), world)


def test_sppo_with_soft_labels() -> None:
    """Check the minimum of (log(π/π_ref) − (P(y beats y′) − 1/2)/β)² over pairs of different completions of the data.

    Equal completions have equal scores and make no pair.
    """
    world = Scored(TWO_TOKENS, seed=0)
    data, rewards = world.probabilities(torch.zeros_like(world.reference)), torch.from_numpy(world.rewards).double()
    targets = ((rewards[:, :, None] - rewards[:, None]).sigmoid() - 0.5) / BETA_SPPO
    drawn = data[:, :, None] * data[:, None] * (1 - torch.eye(len(TWO_TOKENS)))
    log_reference = world.probabilities(world.reference).log()

    def objective(logprobs: Tensor) -> Tensor:
        return (drawn * ((logprobs - log_reference)[:, :, None] - targets).square()).sum()

    policy = train(world, beta=BETA_SPPO, loss_type="sppo", soft_labels="margin")
    assert_reaches(minimum(world, objective), policy, world)


def gain_of_best_response(game: Game, policy: Tensor) -> float:
    """Return what the best opponent wins against `policy` in the regularised game: 0 at the equilibrium alone.

    max over π′ of P(π′ beats π) − β KL(π′‖π_ref) + β KL(π‖π_ref) − 1/2, the largest over the prompts.
    """
    log_reference = game.probabilities(game.reference).log()
    wins = (torch.from_numpy(game.beats) * policy[:, None]).sum(2)
    best = BETA_SPPO * (log_reference + wins / BETA_SPPO).logsumexp(1)
    return float((best + BETA_SPPO * (policy * (policy.log() - log_reference)).sum(1) - 0.5).max())


def test_sppo_on_own_samples_reaches_the_nash_equilibrium() -> None:
    """Check it on preferences without a reward: no policy π_ref exp(r/β) is the answer to its own win rates there."""
    game = Game(TWO_TOKENS, seed=0)
    assert gain_of_best_response(game, equilibrium(game)) == pytest.approx(0, abs=1e-9)
    assert gain_of_best_response(game, game.probabilities(game.reference)) > 0.05
    policy = train(game, own_samples=True, beta=BETA_SPPO, loss_type="sppo")
    assert_reaches(equilibrium(game), policy, game)
    assert gain_of_best_response(game, policy) < 0.001


def test_nash_md_has_the_same_equilibrium() -> None:
    """Check the exact iteration of Nash-MD (arXiv 2312.00886, equation 5), whose opponent is a geometric mixture.

    Its error is of the order of the step size.
    """
    game = Game(TWO_TOKENS, seed=0)
    log_reference, beats = game.probabilities(game.reference).log(), torch.from_numpy(game.beats)
    distances = []
    for rate in (0.1, 0.01):
        policy = log_reference
        for _ in range(int(200 / rate)):
            mixture = ((1 - rate * BETA_SPPO) * policy + rate * BETA_SPPO * log_reference).log_softmax(1)
            policy = (mixture + rate * (beats * mixture.exp()[:, None]).sum(2)).log_softmax(1)
        distances.append(kl(policy.exp(), equilibrium(game)))
    assert distances[1] < distances[0] < 1e-3


def test_rounds_of_self_play_end_at_the_data() -> None:
    """Check SPIN's round π_ref (p_data/π_ref)^(1/β) with p_data = π_ref exp(r): a half of the way at β = 2."""
    world = World(TWO_TOKENS, seed=0)
    settings = {**ROUND, "own_samples": True, "trainer": SelfPlay}
    assert_reaches(tilted(world, 2.0), train(world, steps=1, beta=2.0, **settings), world)
    assert_reaches(tilted(world, 1.0), train(World(TWO_TOKENS, seed=0), steps=1, beta=1.0, **settings), world)
    assert_reaches(tilted(world, 1.0), train(World(TWO_TOKENS, seed=0), steps=2, beta=1.0, **settings), world)


class GoldAnswers(Trainer):
    """Groups of samples with a gold answer, drawn from the data π_ref exp(r). Their scores are against it."""

    def experience(self, step: int) -> tuple[ScoredBatch, Index, Index]:
        scored, prompts, completions = super().experience(step)
        world, size = self.world, self.config.num_generations
        cumulative = tilted(world, 1.0).cumsum(1).numpy()[prompts[::size]]
        gold = (world.rng.random((len(cumulative), 1)) * cumulative[:, -1:] > cumulative).sum(1)
        answers = [world.tokens[i].tolist() for i in gold]
        completions = np.concatenate([completions.reshape(-1, size), gold[:, None]], 1).reshape(-1)
        prompts = np.repeat(prompts[::size], size + 1)
        added = replace(
            scored,
            experience=with_gold(scored.experience, answers),
            rewards=np.tile(np.float32([1] * size + [0]), len(gold)),
            reference_logprobs=array(world.logprobs(self.reference, prompts, completions)),
            values=None,
        )
        return added, prompts, completions


def test_gold_answers_as_chosen_are_self_play() -> None:
    """Check that `pairs: {gold: chosen}` makes SPIN's pairs, whatever the scores: a round ends at the data."""
    world = World(ONE_TOKEN, seed=0)
    pairs = {**EVERY_PAIR, "gold": "chosen", "selection": "random", "per_prompt": None}
    smaller = {"prompts_per_step": 8192, "batch_size": 512, "pairs": pairs}
    settings = {**ROUND, **smaller, "own_samples": True, "trainer": GoldAnswers}
    assert_reaches(tilted(world, 1.0), train(world, steps=1, beta=1.0, **settings), world)


def test_the_exploration_bonus_moves_probability_off_the_samples() -> None:
    """Check a round against the minimum of its mean loss. The samples' log-probability is lower than without bonus."""
    world = Covered(ONE_TOKEN, seed=3)
    settings = {**ROUND, "own_samples": True, "steps": 1, "beta": BETA}
    plain = train(Covered(ONE_TOKEN, seed=3), **settings)
    policy = train(world, exploration_alpha=EXPLORATION, **settings)
    assert_reaches(explored(world), policy, world)
    assert_reaches(tilted(world), plain, world)
    reference = world.probabilities(world.reference)
    assert ((reference * policy.log()).sum(1) < (reference * plain.log()).sum(1) - 0.01).all()


@pytest.mark.parametrize("share_of_bound", [0.5, 1.5])
def test_a_large_exploration_bonus_has_no_optimum(share_of_bound: float) -> None:
    """Check the bound α < 2β π_ref(y) (1 − p(y)) of every y, p(y) its win rate against the others.

    Along the line that gives y all probability the mean loss falls without end if and only if α is above the bound.
    """
    world = Covered(ONE_TOKEN, seed=3)
    reference, rewards = world.probabilities(world.reference), torch.from_numpy(world.rewards).double()
    beats = (rewards[:, :, None] - rewards[:, None]).sigmoid()
    others = reference[:, None] * (1 - torch.eye(reference.shape[1]))
    loses = 1 - (beats * others).sum(2) / others.sum(2)
    bound = 2 * BETA * reference * loses
    for prompt in range(PROMPTS):
        y = int(bound[prompt].argmin())
        alpha = share_of_bound * bound[prompt, y]

        def mean_loss(k: float, prompt: int = prompt, y: int = y, alpha: Tensor = alpha) -> float:
            logprobs = reference[prompt].log().clone()
            logprobs[y] += k
            logprobs = logprobs.log_softmax(0)
            h = BETA * (logprobs - reference[prompt].log())
            drawn = reference[prompt, :, None] * reference[prompt]
            losses = -2 * drawn * beats[prompt] * torch.nn.functional.logsigmoid(h[:, None] - h)
            return float(losses.sum() + alpha * (reference[prompt] * logprobs).sum())

        slope = mean_loss(200.0) - mean_loss(199.0)
        assert np.sign(slope) == (1 if share_of_bound < 1 else -1)
