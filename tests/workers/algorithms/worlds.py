"""Worlds and trainers of `benchmarks/world.py` with other labels than those of the Bradley–Terry model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.world import PROMPTS, Index, Trainer, World, array, distinct, tilted
from workers.types import ScoredBatch


class Scored(World):
    """Completions with their rewards as scores, by which the greater one always wins."""

    def preferences(self, prompts: Index, completions: Index) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self.rewards[prompts, completions]
        return scores


class Game(World):
    """Pairs labelled by preferences that follow no reward: y may beat y′, y′ beat y″, and y″ beat y."""

    def __init__(self, completions: list[list[int]], seed: int) -> None:
        super().__init__(completions, seed)
        lots = 4 * self.rng.normal(size=(PROMPTS, len(completions), len(completions)))
        self.beats = 1 / (1 + np.exp(lots.transpose(0, 2, 1) - lots))  # [prompt, y, other]

    def preferences(self, prompts: Index, completions: Index) -> NDArray[np.float32]:
        first, second = completions.reshape(-1, 2).T
        wins = self.rng.random(len(first)) < self.beats[prompts[::2], first, second]
        return np.stack([wins, ~wins], 1).reshape(-1).astype(np.float32)


class Covered(World):
    """A reference near the uniform distribution, and small rewards: the exploration bonus has an optimum."""

    def __init__(self, completions: list[list[int]], seed: int) -> None:
        super().__init__(completions, seed)
        self.reference, self.rewards = 0.3 * self.reference, np.float32(0.7) * self.rewards


class SelfPlay(Trainer):
    """Pairs of SPIN: the first completion is drawn from the data π_ref exp(r) and preferred to the policy's sample."""

    def experience(self, step: int) -> tuple[ScoredBatch, Index, Index]:
        scored, prompts, completions = super().experience(step)
        world, given = self.world, scored.experience
        cumulative = tilted(world, 1.0).cumsum(1).numpy()[prompts[::2]]
        gold = (world.rng.random((len(cumulative), 1)) * cumulative[:, -1:] > cumulative).sum(1)
        completions = np.stack([gold, completions[1::2]], 1).reshape(-1)
        return (
            replace(
                scored,
                experience=replace(given, completions=distinct(world.tokens.take(completions)), logprobs=None),
                rewards=np.tile(np.float32([1, 0]), len(gold)),
                reference_logprobs=array(world.logprobs(self.reference, prompts, completions)),
            ),
            prompts,
            completions,
        )
