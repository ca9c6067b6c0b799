"""An enumerable world with a known optimum, and a trainer that uses the real `prepare` and `loss` of any algorithm.

There are 3 prompts, and completions of at most 2 tokens out of EOS, a, b, c: EOS alone, or one of a, b, c followed by
any token, 13 in total. The policy is a table of logits with one row per state, and the critic a table of values.
Reference and rewards are random, the reference far from uniform. So the optimum of E[r] − β KL has a closed form.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from workers.algorithms import ALGORITHMS
from workers.algorithms.base import MicroBatch, totals_of
from workers.config import AlgorithmConfig
from workers.packing import updates
from workers.ragged import Ragged
from workers.types import Experience, Finish, Prompt, ScoredBatch, TrainBatch

PROMPTS, VOCABULARY, EOS = 3, 4, 0
ONE_TOKEN = [[token] for token in range(VOCABULARY)]
TWO_TOKENS = [[EOS]] + [[first, second] for first in range(1, VOCABULARY) for second in range(VOCABULARY)]
BETA = 0.5

Index = NDArray[np.int64]


class World:
    """Completions of each prompt, their rewards, and a reference policy."""

    def __init__(self, completions: list[list[int]], seed: int) -> None:
        self.rng = np.random.Generator(np.random.Philox(seed))
        self.tokens = Ragged.of(completions)
        # State 0 is the start; after the first token the state is that token.
        self.states = Ragged.of([[0, *completion[:-1]] for completion in completions])
        self.rewards = self.rng.normal(size=(PROMPTS, len(completions))).astype(np.float32)
        self.reference = torch.from_numpy(self.rng.normal(size=(PROMPTS, VOCABULARY, VOCABULARY)))
        self.teacher = self.reference.flip(-1)

    def values(self, table: Tensor, prompts: Index, completions: Index) -> Tensor:
        """Return the value of the state before each token [T], from a table [prompt, state]."""
        return table[np.repeat(prompts, self.tokens.lengths[completions]), self.states.take(completions).values]

    def logprobs(self, table: Tensor, prompts: Index, completions: Index) -> Tensor:
        """Return the log-probability of each token [T], from a table of logits [prompt, state, token]."""
        rows = self.values(table.log_softmax(-1), prompts, completions)
        return rows[np.arange(len(rows)), self.tokens.take(completions).values]

    def probabilities(self, table: Tensor) -> Tensor:
        """Return the probabilities of whole completions [PROMPTS, completions]."""
        n = len(self.tokens)
        prompts, completions = np.repeat(np.arange(PROMPTS), n), np.tile(np.arange(n), PROMPTS)
        logprobs = self.logprobs(table.detach(), prompts, completions)
        owner = torch.from_numpy(np.repeat(np.arange(PROMPTS * n), self.tokens.lengths[completions]))
        return logprobs.new_zeros(PROMPTS * n).index_add(0, owner, logprobs).exp().view(PROMPTS, n)

    def sample(self, table: Tensor, group_size: int) -> tuple[Index, Index]:
        """Sample a group for each prompt; return prompts [N] and completions [N]."""
        cumulative = self.probabilities(table).cumsum(1).numpy()
        draws = self.rng.random((PROMPTS, group_size, 1)) * cumulative[:, None, -1:]
        return np.repeat(np.arange(PROMPTS), group_size), (draws > cumulative[:, None]).sum(2).reshape(-1)

    def preferences(self, prompts: Index, completions: Index) -> NDArray[np.float32]:
        """Draw labels [N], 1 and 0 in each pair, from the Bradley–Terry model of the true rewards."""
        first, second = self.rewards[prompts, completions].reshape(-1, 2).T
        wins = self.rng.random(len(first)) < 1 / (1 + np.exp(second - first))
        return np.stack([wins, ~wins], 1).reshape(-1).astype(np.float32)


class Trainer:
    """Small version of the loop: sample, prepare, train. The learning rate decays to 1 % over the run.

    With `reset_optimizer` it decays within every step. DPO trains on a dataset sampled from a uniform table, or with
    `own_samples` from the policy at the start of each step; `refresh` is that of its reference.
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
        self.reference = world.teacher if self.config.needs.teacher else world.reference
        self.optimizer = self.fresh_optimizer()

    def fresh_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam([self.policy, self.critic], betas=(0.9, 0.99))

    def run(self) -> Tensor:
        for step in range(self.steps):
            scored, prompts, completions = self.experience(step)
            batch, _ = self.algorithm.prepare(scored, self.config)
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

    def experience(self, step: int) -> tuple[ScoredBatch, Index, Index]:
        """Sample completions and score them, or label them for DPO."""
        world, needs = self.world, self.config.needs
        if self.refresh == "every_round":
            self.reference = self.policy.detach().clone()
        is_labelled = needs.dataset and not needs.teacher
        is_dataset = is_labelled and not self.own_samples
        sampler = torch.zeros_like(self.policy) if is_dataset else self.policy.detach()
        prompts, completions = world.sample(sampler, self.config.num_generations * self.config.prompts_per_step)
        tokens = world.tokens.take(completions)
        experience = Experience(
            prompts=(Prompt(id="", text=""),) * (PROMPTS * self.config.prompts_per_step),
            prompt_tokens=one_token_each(prompts[:: self.config.num_generations]),
            completions=distinct(tokens) if is_labelled else tokens,
            group_offsets=np.arange(0, len(prompts) + 1, self.config.num_generations),
            logprobs=None if is_dataset else array(world.logprobs(sampler, prompts, completions)),
            versions=np.full(len(prompts), step, np.int32),
            finish=np.where(tokens.values[tokens.offsets[1:] - 1] == EOS, Finish.stop, Finish.length).astype(np.int32),
        )
        scored = ScoredBatch(
            experience=experience,
            rewards=world.preferences(prompts, completions) if is_labelled else world.rewards[prompts, completions],
            reference_logprobs=array(world.logprobs(self.reference, prompts, completions)),
            values=array(world.values(self.critic, prompts, completions)),
            seed=step,
        )
        return scored, prompts, completions

    def learn(self, micro_batch: MicroBatch, prompts: Index, completions: Index) -> None:
        self.optimizer.zero_grad()
        logprobs = self.world.logprobs(self.policy, prompts, completions)
        self.algorithm.loss(logprobs, micro_batch, self.config)[0].backward()
        if self.algorithm.critic_loss:
            values = self.world.values(self.critic, prompts, completions)
            self.algorithm.critic_loss(values, micro_batch, self.config)[0].backward()
        self.optimizer.step()


def distinct(completions: Ragged) -> Ragged:
    """Return completions of the same lengths that all differ, so that pairs of two equal draws are not left out."""
    owner = np.repeat(np.arange(len(completions), dtype=np.int32), completions.lengths)
    return Ragged(values=completions.values + VOCABULARY * owner, offsets=completions.offsets)


def one_token_each(tokens: Index) -> Ragged:
    """Return sequences of one token."""
    return Ragged(values=tokens.astype(np.int32), offsets=np.arange(len(tokens) + 1))


def sources_of(batch: TrainBatch, rows: Index) -> Index:
    """Return the indices of the experience's completions in these rows."""
    sources = np.arange(len(batch.completions)) if batch.sources is None else batch.sources
    return Ragged(values=sources, offsets=batch.row_offsets).take(rows).values


def array(values: Tensor) -> NDArray[np.float32]:
    return values.detach().numpy().astype(np.float32)


def kl(policy: Tensor, optimum: Tensor) -> float:
    """Return KL(policy‖optimum) in nats, of the prompt where it is largest."""
    return float((policy * (policy / optimum).log()).sum(1).max())


def tilted(world: World, beta: float = BETA) -> Tensor:
    """Return π* ∝ π_ref exp(r/β), the optimum of E[r] − β KL(π‖π_ref)."""
    weights = world.probabilities(world.reference) * (torch.from_numpy(world.rewards) / beta).exp()
    return weights / weights.sum(1, keepdim=True)


def hyperbolic(world: World, beta: float) -> Tensor:
    """Return π = β π_ref/(λ − r), the optimum of E[r] − β KL(π_ref‖π) on completions of one token."""
    reference, rewards = world.probabilities(world.reference), torch.from_numpy(world.rewards).double()
    low = rewards.max(1, keepdim=True).values  # with λ = low, π sums to infinity
    high = low + beta  # with λ = high, π sums to at most Σ π_ref = 1
    for _ in range(60):
        middle = (low + high) / 2
        too_low = (beta * reference / (middle - rewards)).sum(1, keepdim=True) > 1
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return beta * reference / (high - rewards)


def assert_reaches(optimum: Tensor, policy: Tensor, world: World) -> None:
    assert kl(world.probabilities(world.reference), optimum) > 0.1, "nothing to learn in this world"
    assert kl(policy, optimum) < 0.01
