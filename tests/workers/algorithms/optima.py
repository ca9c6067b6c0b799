"""Optima of the methods on the worlds: the probabilities of whole completions, [PROMPTS, completions]."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from test_closed_form_policy_gradient import deviation
from torch import Tensor
from torch.nn.functional import logsigmoid
from worlds import Game

from benchmarks.world import BETA, PROMPTS, World, kl

BETA_SPPO, EXPLORATION = 0.25, 0.02

Optimum: TypeAlias = Callable[[World], Tensor]


def per_token(world: World, log_weights: Tensor, slopes: Tensor) -> Tensor:
    """Compute exp(log_weights + |y| (slopes + c)) with c of each prompt such that it sums to 1."""
    lengths = torch.from_numpy(world.tokens.lengths).double()
    low, high = torch.full((PROMPTS, 1), -60.0).double(), torch.full((PROMPTS, 1), 60.0).double()
    for _ in range(100):
        middle = (low + high) / 2
        is_high = (log_weights + lengths * (slopes + middle)).exp().sum(1, keepdim=True) > 1
        low, high = torch.where(is_high, low, middle), torch.where(is_high, middle, high)
    return (log_weights + lengths * (slopes + (low + high) / 2)).exp()


def per_token_reward(world: World) -> Tensor:
    rewards = torch.from_numpy(world.rewards).double()
    return per_token(world, world.probabilities(world.reference).log(), rewards / BETA)


def without_reference(world: World) -> Tensor:
    rewards = torch.from_numpy(world.rewards).double()
    return per_token(world, torch.zeros_like(rewards), rewards / BETA)


def in_deviations(optimum: Callable[[World, float], Tensor], coefficient: float) -> Optimum:
    """Return the optimum whose β is `coefficient` times the standard deviation σ of the advantages at that optimum.

    It is the fixed point of β ↦ `coefficient` σ(π_β), iterated from the reference, where training starts.
    """

    def of(world: World) -> Tensor:
        policy = world.probabilities(world.reference)
        for _ in range(300):
            policy, before = optimum(world, coefficient * deviation(world, policy)), policy
        assert kl(policy, before) < 1e-12, "no such β"
        return policy

    return of


def win_rate(world: World) -> Tensor:
    """Return the optimum with p(y), the probability that y beats a draw from the data, in place of the reward."""
    rewards = world.rewards.astype(np.float64)
    beats = 1 / (1 + np.exp(rewards[:, None, :] - rewards[:, :, None]))  # [prompt, y, other]
    data = world.probabilities(torch.zeros_like(world.reference)).numpy()
    wins = torch.from_numpy((beats * data[:, None, :]).sum(2))
    return per_token(world, world.probabilities(world.reference).log(), wins / BETA)


def minimum(world: World, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the probabilities that minimise `objective`, a function of log-probabilities [PROMPTS, completions]."""
    logits = world.probabilities(world.reference).log().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=5000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = objective(logits.log_softmax(1))
        value.backward()
        return value.item()

    optimizer.step(closure)
    return logits.detach().softmax(1)


def win_rates_of_data(world: World) -> Tensor:
    """Minimise E[(log(π/π_ref) − (p − 1/2)/β)²] over completions of the data, p the probability to beat one of them."""
    log_reference = world.probabilities(world.reference).log()
    data = world.probabilities(torch.zeros_like(world.reference))
    rewards = torch.from_numpy(world.rewards).double()
    targets = (((rewards[:, :, None] - rewards[:, None]).sigmoid() * data[:, None]).sum(2) - 0.5) / BETA_SPPO
    return minimum(world, lambda logprobs: (data * (logprobs - log_reference - targets).square()).sum())


def equilibrium(world: World) -> Tensor:
    """Return the Nash equilibrium of P(π beats π′) − β KL(π‖π_ref) + β KL(π′‖π_ref), by mirror descent.

    It is the fixed point of π ∝ π_ref exp(P(y beats a draw from π)/β).
    """
    assert isinstance(world, Game)
    log_reference, beats = world.probabilities(world.reference).log(), torch.from_numpy(world.beats)
    policy, rate = log_reference, 0.2
    for _ in range(3000):
        wins = (beats * policy.exp()[:, None]).sum(2)
        policy = ((1 - rate * BETA_SPPO) * policy + rate * (BETA_SPPO * log_reference + wins)).log_softmax(1)
    return policy.exp()


def explored(world: World) -> Tensor:
    """Minimise the mean loss of DPO with the exploration bonus over pairs of two draws from π_ref."""
    reference, rewards = world.probabilities(world.reference), torch.from_numpy(world.rewards).double()
    wins, drawn = (rewards[:, :, None] - rewards[:, None]).sigmoid(), reference[:, :, None] * reference[:, None]

    def objective(logprobs: Tensor) -> Tensor:
        ratios = BETA * (logprobs - reference.log())
        likelihood = 2 * (drawn * wins * logsigmoid(ratios[:, :, None] - ratios[:, None])).sum()
        return EXPLORATION * (reference * logprobs).sum() - likelihood

    return minimum(world, objective)
