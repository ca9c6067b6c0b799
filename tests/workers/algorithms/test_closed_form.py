"""Each algorithm, trained through its real `prepare` and `loss`, reaches the optimum it is said to have.

The world is small enough to list: 3 prompts, and completions of at most 2 tokens out of EOS, a, b, c: EOS
alone, or one of a, b, c and then any token, 13 in all. The policy is a table of logits, one row for each
state in which a token is chosen, and the critic a table of values. Reference and rewards are random, the
reference far from uniform.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from workers.algorithms import ALGORITHMS
from workers.algorithms.base import MicroBatch, totals_of
from workers.config import AlgorithmConfig
from workers.packing import updates
from workers.types import Evidence, Experience, Finish, Prompt, Ragged, TrainBatch

PROMPTS, VOCABULARY, EOS = 3, 4, 0
ONE_TOKEN = [[token] for token in range(VOCABULARY)]
TWO_TOKENS = [[EOS]] + [[first, second] for first in range(1, VOCABULARY) for second in range(VOCABULARY)]
BETA = 0.5

Index = NDArray[np.int64]


class World:
    """The completions of each prompt, their rewards, and a reference policy."""

    def __init__(self, completions: list[list[int]], seed: int) -> None:
        self.rng = np.random.Generator(np.random.Philox(seed))
        self.tokens = Ragged.of(completions)
        # State 0 is before the first token; afterwards the state is that token.
        self.states = Ragged.of([[0, *completion[:-1]] for completion in completions])
        self.rewards = self.rng.normal(size=(PROMPTS, len(completions))).astype(np.float32)
        self.reference = torch.from_numpy(self.rng.normal(size=(PROMPTS, VOCABULARY, VOCABULARY)))
        self.teacher = self.reference.flip(-1)

    def values(self, table: Tensor, prompts: Index, completions: Index) -> Tensor:
        """Of the state before each token, read off a table [prompt, state]: [T]."""
        return table[np.repeat(prompts, self.tokens.lengths[completions]), self.states.take(completions).values]

    def logprobs(self, table: Tensor, prompts: Index, completions: Index) -> Tensor:
        """Of each token, from a table of logits [prompt, state, token]: [T]."""
        rows = self.values(table.log_softmax(-1), prompts, completions)
        return rows[np.arange(len(rows)), self.tokens.take(completions).values]

    def probabilities(self, table: Tensor) -> Tensor:
        """Of whole completions: [PROMPTS, completions]."""
        n = len(self.tokens)
        prompts, completions = np.repeat(np.arange(PROMPTS), n), np.tile(np.arange(n), PROMPTS)
        logprobs = self.logprobs(table.detach(), prompts, completions)
        owner = torch.from_numpy(np.repeat(np.arange(PROMPTS * n), self.tokens.lengths[completions]))
        return logprobs.new_zeros(PROMPTS * n).index_add(0, owner, logprobs).exp().view(PROMPTS, n)

    def sample(self, table: Tensor, group_size: int) -> tuple[Index, Index]:
        """A group for each prompt: prompts [N], completions [N]."""
        cumulative = self.probabilities(table).cumsum(1).numpy()
        lots = self.rng.random((PROMPTS, group_size, 1)) * cumulative[:, None, -1:]
        return np.repeat(np.arange(PROMPTS), group_size), (lots > cumulative[:, None]).sum(2).reshape(-1)

    def preferences(self, prompts: Index, completions: Index) -> NDArray[np.float32]:
        """1 and 0 for the two of each pair, drawn from the Bradley–Terry model of the true rewards: [N]."""
        first, second = self.rewards[prompts, completions].reshape(-1, 2).T
        wins = self.rng.random(len(first)) < 1 / (1 + np.exp(second - first))
        return np.stack([wins, ~wins], 1).reshape(-1).astype(np.float32)


class Trainer:
    """The loop in small: sample, prepare, learn. The learning rate falls to zero, or with `reset_optimizer` does so in
    every step.

    DPO learns from a dataset, drawn from a uniform table, or with `own_samples` from what the policy says at the start
    of each step; `refresh` is that of its reference.
    """

    def __init__(
        self,
        world: World,
        *,
        steps: int,
        lr: float,
        own_samples: bool = False,
        refresh: Literal["never", "every_round"] = "never",
        **settings: Any,
    ) -> None:
        self.world, self.steps, self.lr = world, steps, lr
        self.own_samples, self.refresh = own_samples, refresh
        self.algorithm = ALGORITHMS[settings["type"]]
        self.config: Any = TypeAdapter(AlgorithmConfig).validate_python(settings)
        self.policy = world.reference.clone().requires_grad_()
        self.critic = torch.zeros(PROMPTS, VOCABULARY, dtype=torch.float64, requires_grad=True)
        self.reference = world.teacher if self.algorithm.needs.teacher else world.reference
        self.optimizer = self.fresh_optimizer()

    def fresh_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam([self.policy, self.critic], betas=(0.9, 0.99))

    def run(self) -> Tensor:
        for step in range(self.steps):
            evidence, prompts, completions = self.experience(step)
            batch, _ = self.algorithm.prepare(evidence, self.config)
            num_updates = self.config.num_updates(batch.num_rows)
            passes = updates(batch, epochs=self.config.epochs, num_updates=num_updates, seed=step)
            done, total = step * len(passes), self.steps * len(passes)
            if getattr(self.config, "reset_optimizer", False):
                self.optimizer, done, total = self.fresh_optimizer(), 0, len(passes)
            for i, rows in enumerate(passes, start=done):
                self.optimizer.param_groups[0]["lr"] = self.lr * (1 - 0.99 * i / total)
                picked = sources_of(batch, rows)
                self.learn(self.update_of(batch, rows, prompts, completions), prompts[picked], completions[picked])
        return self.world.probabilities(self.policy)

    def update_of(self, batch: TrainBatch, rows: Index, prompts: Index, completions: Index) -> MicroBatch:
        return MicroBatch.of(batch, rows, totals_of(batch, rows))

    def experience(self, step: int) -> tuple[Evidence, Index, Index]:
        """Sampled from the policy and scored; for DPO labelled, without `own_samples` drawn from a uniform table."""
        world, needs = self.world, self.algorithm.needs
        if self.refresh == "every_round":
            self.reference = self.policy.detach().clone()
        is_labelled = needs.dataset and not needs.teacher
        is_dataset = is_labelled and not self.own_samples
        sampler = torch.zeros_like(self.policy) if is_dataset else self.policy.detach()
        prompts, completions = world.sample(sampler, self.config.num_generations * self.config.prompts_per_step)
        tokens = world.tokens.take(completions)
        experience = Experience(
            prompts=(Prompt(id="", text=""),) * (PROMPTS * self.config.prompts_per_step),
            prompt_tokens=Ragged.of([[p] for p in prompts[:: self.config.num_generations]]),
            completions=tokens,
            group_offsets=np.arange(0, len(prompts) + 1, self.config.num_generations),
            logprobs=None if is_dataset else array(world.logprobs(sampler, prompts, completions)),
            versions=np.full(len(prompts), step, np.int32),
            finish=np.where(tokens.values[tokens.offsets[1:] - 1] == EOS, Finish.stop, Finish.length).astype(np.int32),
        )
        evidence = Evidence(
            experience=experience,
            rewards=world.preferences(prompts, completions) if is_labelled else world.rewards[prompts, completions],
            reference_logprobs=array(world.logprobs(self.reference, prompts, completions)),
            values=array(world.values(self.critic, prompts, completions)),
            seed=step,
        )
        return evidence, prompts, completions

    def learn(self, micro_batch: MicroBatch, prompts: Index, completions: Index) -> None:
        self.optimizer.zero_grad()
        logprobs = self.world.logprobs(self.policy, prompts, completions)
        self.algorithm.loss(logprobs, micro_batch, self.config)[0].backward()
        if self.algorithm.critic_loss:
            values = self.world.values(self.critic, prompts, completions)
            self.algorithm.critic_loss(values, micro_batch, self.config)[0].backward()
        self.optimizer.step()


def sources_of(batch: TrainBatch, rows: Index) -> Index:
    """Which completions of the experience stand in these rows."""
    sources = np.arange(len(batch.completions)) if batch.sources is None else batch.sources
    return Ragged(values=sources, offsets=batch.row_offsets).take(rows).values


def array(values: Tensor) -> NDArray[np.float32]:
    return values.detach().numpy().astype(np.float32)


def kl(policy: Tensor, optimum: Tensor) -> float:
    """KL(policy‖optimum) in nats, of the prompt where it is largest."""
    return float((policy * (policy / optimum).log()).sum(1).max())


def tilted(world: World, beta: float = BETA) -> Tensor:
    """π* ∝ π_ref exp(r/β): the optimum of E[r] − β KL(π‖π_ref)."""
    weights = world.probabilities(world.reference) * (torch.from_numpy(world.rewards) / beta).exp()
    return weights / weights.sum(1, keepdim=True)


def hyperbolic(world: World, beta: float) -> Tensor:
    """π = β π_ref/(λ − r): the optimum of E[r] − β KL(π_ref‖π) on completions of one token."""
    reference, rewards = world.probabilities(world.reference), torch.from_numpy(world.rewards).double()
    low = rewards.max(1, keepdim=True).values  # with λ here π adds up to infinity,
    high = low + beta  # and here to at most Σ π_ref = 1
    for _ in range(60):
        middle = (low + high) / 2
        too_low = (beta * reference / (middle - rewards)).sum(1, keepdim=True) > 1
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return beta * reference / (high - rewards)


def assert_reaches(optimum: Tensor, policy: Tensor, world: World) -> None:
    assert kl(world.probabilities(world.reference), optimum) > 0.1, "nothing to learn in this world"
    assert kl(policy, optimum) < 0.01


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
    """At the optimum all completions are worth the same, however they are scaled and weighted."""
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
    """Another optimum; and in small groups the group's own mean makes β larger by G/(G − 1)."""
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
    """Over all 13 completions: Σ_y π(y) Σ_t ∇(−ρ_t A_t) = Σ_s π(s) ∇KL(π(·|s)‖π_T)."""
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
