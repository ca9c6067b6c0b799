"""How near each method comes to the best that is possible, where that is known: reward against KL in a listed world.

    python -m benchmarks.frontier             (`make frontier`; two minutes on 2 cores)
    python -m benchmarks.frontier PPO GRPO    computes the points of these anew, the others stay

For every β the policy that maximises E[r] − β KL(π‖π_ref) is π_ref exp(r/β), up to normalisation (benchmarks/world.py);
no policy has more reward at its KL. Each method is trained with several β through its real `prepare` and `loss`, over
several seeds of what it samples, and stands somewhere below that curve.

Written: benchmarks/results/frontier.json, which configs/quickstart/compare.yaml has drawn in its report.
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
    """A method, and what it is given besides its β. The schedules are those of tests/workers/algorithms/proof.py."""

    name: str
    coefficient: str  # what the method calls β
    settings: dict[str, Any]

    def train(self, beta: float, seed: int) -> tuple[float, float]:
        """(KL, reward) of what is learned."""
        world = World(TWO_TOKENS, seed=WORLD)
        world.rng = np.random.Generator(np.random.Philox([WORLD, seed]))  # of what is sampled; the world stays
        return where(world, Trainer(world, **{self.coefficient: beta}, **self.settings).run())


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


def where(world: World, policy: Tensor) -> tuple[float, float]:
    """KL to the reference in nats, and reward, of probabilities [prompts, completions]; means over the prompts."""
    reference, rewards = world.probabilities(world.reference), torch.from_numpy(world.rewards).double()
    kl = (policy * (policy / reference).clamp_min(1e-300).log()).sum(1).mean()
    return float(kl), float((policy * rewards).sum(1).mean())


def curve(betas: Sequence[float]) -> list[tuple[float, float]]:
    """The best that is possible, at each β."""
    world = World(TWO_TOKENS, seed=WORLD)
    return [where(world, tilted(world, beta)) for beta in betas]


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or [method.name for method in METHODS]
    before = json.loads(RESULT.read_text())["methods"] if RESULT.exists() else []
    methods = {entry["name"]: entry for entry in before}
    for method in (method for method in METHODS if method.name in wanted):
        points = []
        for beta in BETAS:
            runs = [method.train(beta, seed) for seed in SEEDS]
            points.append({"setting": f"{method.coefficient} {beta:g}", "runs": runs})
            print(method.name, beta, runs, flush=True)
        methods[method.name] = {"name": method.name, "points": points}
        found = {
            "about": "a world of 3 prompts and 13 completions each, whose best policies have a closed form",
            "x": "KL to the reference, nats",
            "y": "expected reward",
            "best": curve([*np.geomspace(30, 0.06, 60)]),
            "methods": [methods[m.name] for m in METHODS if m.name in methods],
        }
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
