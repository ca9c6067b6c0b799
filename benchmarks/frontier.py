"""Measure reward against KL of each method in an enumerable world whose optimal policies are known.

    python -m benchmarks.frontier             (`make frontier`; two minutes on 2 cores)
    python -m benchmarks.frontier PPO GRPO    recompute the points of these methods only

For every β the policy that maximises E[r] − β KL(π‖π_ref) is π_ref exp(r/β), up to normalisation (benchmarks/world.py);
no policy has more reward at its KL. Each method is trained with several β through its real `prepare` and `loss`, over
several sampling seeds, and reaches a point on or below that curve.

Output: benchmarks/results/frontier.json, which the report of configs/quickstart/compare.yaml draws.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.world import TWO_TOKENS, Trainer, World, tilted

RESULT = Path(__file__).parent / "results" / "frontier.json"
BETAS = (2.0, 0.7, 0.25, 0.1)
SEEDS = (0, 1)
WORLD = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A method with its settings other than β. The schedules are those of tests/workers/algorithms/proof.py."""

    name: str
    coefficient: str  # the method's name for β
    settings: dict[str, Any]

    def train(self, beta: float, seed: int) -> tuple[float, float]:
        """Train with `beta`; return (KL, reward) of the final policy."""
        world = World(TWO_TOKENS, seed=WORLD)
        world.rng = np.random.Generator(np.random.Philox([WORLD, seed]))  # seeds the sampling; the world is the same
        return kl_and_reward(world, Trainer(world, **{self.coefficient: beta}, **self.settings).run())


PAIRS: dict[str, Any] = {"num_generations": 2, "prompts_per_step": 512, "batch_size": 1536}
METHODS = (
    Method(
        name="PPO",
        coefficient="kl_coef",
        settings={
            "type": "ppo",
            "steps": 150,
            "lr": 0.05,
            "prompts_per_step": 256,
            "num_ppo_epochs": 2,
            "num_mini_batches": 2,
        },
    ),
    Method(
        name="GRPO",
        coefficient="beta",
        settings={
            "type": "grpo",
            "steps": 300,
            "lr": 0.1,
            "kl_placement": "reward",
            "scale_rewards": "none",
            "num_generations": 64,
            "prompts_per_step": 1,
        },
    ),
    Method(name="offline DPO", coefficient="beta", settings={"type": "dpo", "steps": 400, "lr": 0.1, **PAIRS}),
    Method(
        name="iterative DPO",
        coefficient="beta",
        settings={"type": "dpo", "steps": 400, "lr": 0.1, "own_samples": True, **PAIRS},
    ),
)


def kl_and_reward(world: World, policy: Tensor) -> tuple[float, float]:
    """Return KL to the reference in nats, and reward, of probabilities [prompts, completions]: means over prompts."""
    reference, rewards = world.probabilities(world.reference), torch.from_numpy(world.rewards).double()
    kl = (policy * (policy / reference).clamp_min(1e-300).log()).sum(1).mean()
    return float(kl), float((policy * rewards).sum(1).mean())


def curve(betas: Sequence[float]) -> list[tuple[float, float]]:
    """Return (KL, reward) of the optimal policy at each β."""
    world = World(TWO_TOKENS, seed=WORLD)
    return [kl_and_reward(world, tilted(world, beta)) for beta in betas]


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:] or [method.name for method in METHODS]
    before = json.loads(RESULT.read_text())["methods"] if RESULT.exists() else []
    methods = {entry["name"]: entry for entry in before}
    for method in (method for method in METHODS if method.name in names):
        points = []
        for beta in BETAS:
            runs = [method.train(beta, seed) for seed in SEEDS]
            points.append({"setting": f"{method.coefficient} {beta:g}", "runs": runs})
            print(method.name, beta, runs, flush=True)
        methods[method.name] = {"name": method.name, "points": points}
        result = {
            "about": "a world of 3 prompts and 13 completions each, whose best policies have a closed form",
            "x": "KL to the reference, nats",
            "y": "expected reward",
            "best": curve([*np.geomspace(30, 0.06, 60)]),
            "methods": [methods[m.name] for m in METHODS if m.name in methods],
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
