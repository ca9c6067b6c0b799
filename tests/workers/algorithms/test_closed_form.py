"""Check that each algorithm, trained with its own `prepare` and `loss`, reaches its closed-form optimum.

The world is that of benchmarks/world.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.world import (
    BETA,
    ONE_TOKEN,
    PROMPTS,
    TWO_TOKENS,
    Trainer,
    World,
    array,
    assert_reaches,
    hyperbolic,
    kl,
    tilted,
)
from workers.algorithms.base import MicroBatch, totals_of
from workers.ragged import Ragged
from workers.types import TrainBatch

pytestmark = pytest.mark.slow


def test_ppo() -> None:
    world = World(TWO_TOKENS, seed=0)
    trainer = Trainer(
        world,
        steps=150,
        lr=0.05,
        type="ppo",
        kl_coef=BETA,
        prompts_per_step=256,
        num_ppo_epochs=2,
        num_mini_batches=2,
    )
    assert_reaches(tilted(world), trainer.run(), world)


def test_dpo() -> None:
    world = World(TWO_TOKENS, seed=0)
    trainer = Trainer(
        world,
        steps=400,
        lr=0.1,
        type="dpo",
        beta=BETA,
        num_generations=2,
        prompts_per_step=512,
        batch_size=1536,
    )
    assert_reaches(tilted(world), trainer.run(), world)


@pytest.mark.parametrize(("scale_rewards", "loss_type"), [("none", "dapo"), ("group", "dapo"), ("none", "grpo")])
def test_grpo_with_the_kl_in_the_reward(scale_rewards: str, loss_type: str) -> None:
    """Check the optimum for all scales and weights: there all completions have the same penalised reward."""
    world = World(TWO_TOKENS, seed=0)
    settings = {
        "beta": BETA,
        "kl_placement": "reward",
        "scale_rewards": scale_rewards,
        "loss_type": loss_type,
    }
    trainer = Trainer(world, steps=300, lr=0.1, type="grpo", num_generations=64, prompts_per_step=1, **settings)
    assert_reaches(tilted(world), trainer.run(), world)


@pytest.mark.parametrize("group_size", [4, 128])
def test_grpo_with_the_kl_in_the_loss(group_size: int) -> None:
    """Check the optimum of the forward KL. In small groups the group's own mean raises β by G/(G − 1)."""
    world = World(ONE_TOKEN, seed=0)
    settings = {"beta": BETA, "kl_placement": "loss", "scale_rewards": "none"}
    groups = {"num_generations": group_size, "prompts_per_step": 256 // group_size}
    policy = Trainer(world, steps=200, lr=0.1, type="grpo", **groups, **settings).run()
    assert_reaches(hyperbolic(world, BETA * group_size / (group_size - 1)), policy, world)
    assert kl(policy, tilted(world)) > 0.02
    if group_size > 100:
        assert_reaches(hyperbolic(world, BETA), policy, world)


def test_distillation_by_policy_gradient_reaches_the_teacher() -> None:
    world = World(TWO_TOKENS, seed=0)
    settings = {"type": "distill", "objective": "policy_gradient", "beta": 1.0, "num_generations": 64}
    policy = Trainer(world, steps=200, lr=0.1, prompts_per_step=1, **settings).run()
    assert_reaches(world.probabilities(world.teacher), policy, world)


def test_the_policy_gradient_of_distillation_is_that_of_the_reverse_kl_in_each_state() -> None:
    """Check Σ_y π(y) Σ_t ∇(−ρ_t A_t) = Σ_s π(s) ∇KL(π(·|s)‖π_T) over all 13 completions."""
    world = World(TWO_TOKENS, seed=1)
    trainer = Trainer(world, steps=1, lr=0.1, type="distill", objective="policy_gradient", beta=1.0, num_generations=13)
    policy, probabilities = trainer.policy, world.probabilities(trainer.policy)
    prompts, completions = np.repeat(np.arange(PROMPTS), 13), np.tile(np.arange(13), PROMPTS)
    old, teacher = (array(world.logprobs(table, prompts, completions)) for table in (policy, world.teacher))
    tokens = world.tokens.take(completions)
    batch = TrainBatch(
        prompts=Ragged.of([[p] for p in prompts]),
        completions=tokens,
        row_offsets=np.arange(len(prompts) + 1),
        old_logprobs=old,
        advantages=teacher - old,
    )
    estimated = torch.zeros_like(policy)
    for row in range(len(prompts)):
        rows = np.array([row])
        micro_batch = MicroBatch.of(batch, rows, totals_of(batch, rows))
        logprobs = world.logprobs(policy, prompts[rows], completions[rows])
        mean = trainer.algorithm.loss(logprobs, micro_batch, trainer.config)[0]
        weight = probabilities[prompts[row], completions[row]] * tokens.lengths[row]
        estimated += weight * torch.autograd.grad(mean, policy)[0]

    ours, theirs = policy.log_softmax(-1), world.teacher.log_softmax(-1)
    kls = (ours.exp() * (ours - theirs)).sum(-1)  # [prompt, state]
    occupancy = torch.cat(
        [torch.ones(PROMPTS, 1), ours.detach().exp()[:, 0, 1:]], 1
    )  # state s > 0: its token came first
    exact = torch.autograd.grad((occupancy * kls).sum(), policy)[0]
    assert exact.abs().max() > 0.1
    torch.testing.assert_close(estimated, exact, atol=1e-6, rtol=1e-5)
