"""Optima of the critic-free methods, and of PPO with the KL in its loss, in the world of benchmarks/world.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.world import BETA, ONE_TOKEN, TWO_TOKENS, Trainer, World, assert_reaches, hyperbolic, kl, tilted

pytestmark = pytest.mark.slow

COEFFICIENT = 2.0  # small ones have no optimum inside: the deviation vanishes as the policy becomes certain


def deviation(world: World, policy: Tensor) -> float:
    """Return the standard deviation of r − V over a step's completions, V being each prompt's mean: PPO's whitening."""
    rewards = torch.from_numpy(world.rewards).double()
    values = (policy * rewards).sum(1, keepdim=True)
    return float((policy * (rewards - values).square()).sum(1).mean().sqrt())


@pytest.mark.parametrize("group_size", [2, 16])
def test_rloo(group_size: int) -> None:
    """Check that the optimum does not depend on the group size: the completion is not in its own baseline."""
    world = World(TWO_TOKENS, seed=0)
    groups = {"num_generations": group_size, "prompts_per_step": 128 // group_size}
    trainer = Trainer(world, steps=200, lr=0.1, type="rloo", beta=BETA, **groups)
    assert_reaches(tilted(world), trainer.run(), world)


def test_reinforce_without_a_baseline() -> None:
    world = World(TWO_TOKENS, seed=0)
    groups: dict[str, Any] = {"num_generations": 1, "prompts_per_step": 512}
    trainer = Trainer(world, steps=300, lr=0.05, type="reinforce++", beta=BETA, **groups)
    assert_reaches(tilted(world), trainer.run(), world)


@pytest.mark.parametrize("group_size", [2, 128])
def test_reinforce_with_the_groups_mean(group_size: int) -> None:
    """Check that the group's own mean reduces the gradient of the score by (G − 1)/G but not that of the KL."""
    world = World(TWO_TOKENS, seed=0)
    groups = {"num_generations": group_size, "prompts_per_step": 512 // group_size}
    policy = Trainer(world, steps=250, lr=0.05, type="reinforce++", beta=BETA, baseline="group", **groups).run()
    assert_reaches(tilted(world, BETA * group_size / (group_size - 1)), policy, world)
    assert (kl(policy, tilted(world)) < 0.01) == (group_size > 100)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_ppo_with_the_kl_in_the_loss(estimator: str) -> None:
    """Check that β is in units of the advantages' deviation at the optimum: advantages are whitened, the KL is not."""
    world = World(ONE_TOKEN, seed=0)
    settings: dict[str, Any] = {"kl_placement": "loss", "kl_estimator": estimator, "num_ppo_epochs": 1}
    policy = Trainer(world, steps=300, lr=0.05, type="ppo", kl_coef=COEFFICIENT, prompts_per_step=512, **settings).run()
    beta = COEFFICIENT * deviation(world, policy)
    optima = {"k2": tilted(world, beta), "k3": hyperbolic(world, beta)}
    assert_reaches(optima.pop(estimator), policy, world)
    assert kl(policy, next(iter(optima.values()))) > 0.02


def test_grpo_with_the_ratio_of_a_sequence() -> None:
    """Check GSPO without the group's deviation: 1/|y| of each completion's gradient, and the same optimum."""
    world = World(TWO_TOKENS, seed=0)
    settings = {"beta": BETA, "kl_placement": "reward", "scale_rewards": "none", "loss_type": "grpo"}
    groups = {"num_generations": 64, "prompts_per_step": 1, "importance_sampling_level": "sequence"}
    assert_reaches(tilted(world), Trainer(world, steps=300, lr=0.1, type="grpo", **settings, **groups).run(), world)


def test_cispo() -> None:
    world = World(TWO_TOKENS, seed=0)
    settings = {"beta": BETA, "kl_placement": "reward", "scale_rewards": "none", "loss_type": "cispo"}
    groups = {"num_generations": 64, "prompts_per_step": 1, "epsilon_high": 5.0, "num_iterations": 2}
    assert_reaches(tilted(world), Trainer(world, steps=200, lr=0.1, type="grpo", **settings, **groups).run(), world)


def test_the_deviation_by_hand() -> None:
    # Rewards 1 and −1 at even odds have deviation 1, at ¾ to ¼ a mean of ½ and a variance of 1 − ¼.
    world = World([[0], [1]], seed=0)
    world.rewards = np.tile(np.array([1, -1], np.float32), (3, 1))
    assert deviation(world, torch.full((3, 2), 0.5, dtype=torch.float64)) == 1
    assert deviation(world, torch.tensor([[0.75, 0.25]] * 3, dtype=torch.float64)) == pytest.approx(0.75**0.5)
