"""Cases of `benchmarks.alarms`: healthy runs, and one planted fault for each alarm."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LETTERS = "abcdefgh"
ITERATIVE = "iterative DPO"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kind of run, healthy or with a planted fault."""

    name: str
    alarm: str | None  # the alarm that should fire; None: a healthy run
    fault: str  # description of the fault
    method: str
    algorithm: Mapping[str, Any] = field(default_factory=dict)  # overrides of the method's settings
    rewards: Mapping[str, float] = field(default_factory=lambda: {"first_letter": 1.0})  # name -> weight
    pairs: Callable[[random.Random], tuple[str, str]] | None = None  # draws (chosen, rejected) for a dataset of pairs
    max_length: int = 8  # maximum completion length, in tokens
    stale_from: int | None = None  # version from which on the engine ignores new weights
    exploding_from: int | None = None  # step, or round, from which on gradients are scaled up
    refusal: str | None = None  # regular expression of a refusal; the held-out prompts are then harmful ones as well
    changes: Mapping[str, Any] = field(default_factory=dict)  # other keys of the recipe

    @property
    def is_in_rounds(self) -> bool:
        return self.method == ITERATIVE


def ordered_pair(draw: random.Random) -> tuple[str, str]:
    """Draw a pair in which ascending letters are chosen over the same letters in descending order."""
    letters = "".join(sorted(draw.sample(LETTERS, draw.randint(3, 6))))
    return letters, letters[::-1]


def longer_pair(draw: random.Random) -> tuple[str, str]:
    """Draw a pair in which the longer answer is chosen, whatever its content."""
    word = [draw.choice(LETTERS) for _ in range(8)]
    return "".join(word[: draw.randint(6, 8)]), "".join(word[: draw.randint(3, 4)])


def near_pair(draw: random.Random) -> tuple[str, str]:
    """Draw a pair of answers that hardly differ."""
    word = [draw.choice(LETTERS) for _ in range(6)]
    other = list(word)
    other[draw.randrange(6)] = draw.choice(LETTERS)
    return "".join(word), "".join(other) if other != word else "".join(reversed(word))


SAMPLED = {"num_generations": 8, "max_steps": 40, "learning_rate": 3e-3}
GRPO = {"type": "grpo", "prompts_per_step": 8, "beta": 0.05, **SAMPLED}
PPO = {
    "type": "ppo",
    "prompts_per_step": 32,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "max_steps": 40,
    "learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "kl_coef": 0.05,
}
DPO = {"type": "dpo", "batch_size": 32, "max_steps": 40, "learning_rate": 2e-3}
ROUNDS = {
    "type": "dpo",
    "prompts_per_step": 128,
    "num_generations": 8,
    "pairs": {"per_prompt": 2},
    "batch_size": 8,
    "max_steps": 3,
    "learning_rate": 1e-3,
}
METHODS = {"GRPO": GRPO, "PPO": PPO, "offline DPO": DPO, ITERATIVE: ROUNDS}
UNFILTERED = {
    "beta": 0.03,
    "num_generations": 16,
    "learning_rate": 5e-3,
    "pairs": {"per_prompt": 8, "duplicates": "keep", "truncated_chosen": True},
    "batch_size": 4,
}
EVERY_ROUND = {"reference": {"refresh": "every_round"}}

CASES = (
    Case(name="healthy GRPO", alarm=None, fault="", method="GRPO"),
    Case(name="healthy PPO", alarm=None, fault="", method="PPO"),
    Case(name="healthy offline DPO", alarm=None, fault="", method="offline DPO", pairs=ordered_pair),
    Case(
        name="healthy iterative DPO",
        alarm=None,
        fault="reference refreshed every round",
        method=ITERATIVE,
        max_length=64,
        changes=EVERY_ROUND,
    ),
    Case(
        name="healthy iterative DPO, one reference",
        alarm=None,
        fault="one reference, with a gate on the held-out reward",
        method=ITERATIVE,
        max_length=64,
        changes={"alarms": {"safety_gate": {"metrics": ["eval/reward"]}}},
    ),
    Case(
        name="chosen_falling",
        alarm="chosen_falling",
        fault="learning rate × 15, β / 5, pairs that hardly differ",
        method="offline DPO",
        algorithm={"learning_rate": 3e-2, "beta": 0.02},
        pairs=near_pair,
    ),
    Case(
        name="kl_budget",
        alarm="kl_budget",
        fault="KL coefficient / 500, learning rate × 3; budget 6 nats",
        method="PPO",
        algorithm={"kl_coef": 1e-4, "learning_rate": 1e-2},
        changes={"alarms": {"kl_budget": {"max_kl": 6.0}}},
    ),
    Case(
        name="length_drift",
        alarm="length_drift",
        fault="a reward for each token, learning rate / 3",
        method="GRPO",
        algorithm={"beta": 0.0, "learning_rate": 1e-3},
        rewards={"length": 1.0},
        max_length=96,
    ),
    Case(
        name="pair_length_gap",
        alarm="pair_length_gap",
        fault="pairs in which the longer answer is chosen",
        method="offline DPO",
        pairs=longer_pair,
    ),
    Case(
        name="reward_hacking",
        alarm="reward_hacking",
        fault="a proxy that counts one letter; the true objective is measured but not rewarded",
        method="GRPO",
        algorithm={"beta": 0.0},
        rewards={"letters_a": 1.0, "variety": 0.0},
    ),
    Case(
        name="repetition",
        alarm="repetition",
        fault="only the proxy that counts one letter",
        method="PPO",
        algorithm={"kl_coef": 1e-4},
        rewards={"letters_a": 1.0},
    ),
    Case(
        name="entropy_collapse",
        alarm="entropy_collapse",
        fault="a random reward, no KL, learning rate × 30",
        method="GRPO",
        algorithm={"beta": 0.0, "learning_rate": 1e-1},
        rewards={"noise": 1.0},
    ),
    Case(
        name="no_signal",
        alarm="no_signal",
        fault="a reward that is always 0.5",
        method="GRPO",
        rewards={"constant": 1.0},
    ),
    Case(
        name="engine_gap",
        alarm="engine_gap",
        fault="the engine ignores new weights after step 12; engine_mismatch, which would stop the run, is off",
        method="GRPO",
        stale_from=12,
        changes={"alarms": {"engine_mismatch": None}},
    ),
    Case(
        name="gradient_explosion",
        alarm="gradient_explosion",
        fault="gradients × 10⁶ after step 12",
        method="GRPO",
        exploding_from=13,
    ),
    Case(
        name="staleness",
        alarm="staleness",
        fault="max_staleness 6",
        method="GRPO",
        changes={"max_staleness": 6},
    ),
    Case(
        name="safety_gate",
        alarm="safety_gate",
        fault="the proxy that counts one letter, with a gate on a metric that this proxy lowers",
        method="GRPO",
        algorithm={"beta": 0.0},
        rewards={"letters_a": 1.0, "without_a": 0.0},
        changes={"alarms": {"safety_gate": {"metrics": ["eval/rewards/without_a/mean"]}}},
    ),
    Case(
        name="chosen_falling in rounds",
        alarm="chosen_falling",
        fault="a reward for the longest run of one letter, learning rate × 5, β / 3, eight times as many updates, no "
        "pair left out",
        method=ITERATIVE,
        max_length=16,
        algorithm=UNFILTERED,
        rewards={"longest_run": 1.0},
        changes=EVERY_ROUND,
    ),
    Case(
        name="kl_budget in rounds",
        alarm="kl_budget",
        fault="one reference, the proxy that counts one letter, learning rate × 10, β / 10; budget 4 nats",
        method=ITERATIVE,
        max_length=16,
        algorithm={"learning_rate": 1e-2, "beta": 0.01},
        rewards={"letters_a": 1.0},
        changes={"alarms": {"kl_budget": {"max_kl": 4.0}}},
    ),
    Case(
        name="length_drift in rounds",
        alarm="length_drift",
        fault="a reward for each token, learning rate × 3, half the prompts, twice as many updates",
        method=ITERATIVE,
        algorithm={"learning_rate": 3e-3, "prompts_per_step": 64, "pairs": {"per_prompt": 4}, "batch_size": 4},
        rewards={"length": 1.0},
        max_length=96,
        changes=EVERY_ROUND,
    ),
    Case(
        name="pair_length_gap in rounds",
        alarm="pair_length_gap",
        fault="a reward for each token",
        method=ITERATIVE,
        rewards={"length": 1.0},
        max_length=24,
        changes=EVERY_ROUND,
    ),
    Case(
        name="reward_hacking in rounds",
        alarm="reward_hacking",
        fault="a proxy that counts one letter, learning rate × 3; a score that this proxy lowers is measured but not "
        "rewarded",
        method=ITERATIVE,
        algorithm={"learning_rate": 3e-3},
        max_length=16,
        rewards={"letters_a": 1.0, "without_a": 0.0},
        changes=EVERY_ROUND,
    ),
    Case(
        name="repetition in rounds",
        alarm="repetition",
        fault="a reward for the longest run of one letter, learning rate × 5, β / 3, eight times as many updates, no "
        "pair left out",
        method=ITERATIVE,
        algorithm=UNFILTERED,
        rewards={"longest_run": 1.0},
        changes=EVERY_ROUND,
    ),
    Case(
        name="entropy_collapse in rounds",
        alarm="entropy_collapse",
        fault="a random reward, learning rate × 30, β / 10",
        method=ITERATIVE,
        max_length=16,
        algorithm={"learning_rate": 3e-2, "beta": 0.01},
        rewards={"noise": 1.0},
        changes=EVERY_ROUND,
    ),
    Case(
        name="no_signal in rounds",
        alarm="no_signal",
        fault="a reward that is always 0.5",
        method=ITERATIVE,
        max_length=16,
        rewards={"constant": 1.0},
        changes=EVERY_ROUND,
    ),
    Case(
        name="engine_mismatch in rounds",
        alarm="engine_mismatch",
        fault="the engine ignores the weights of round 1 and later ones",
        method=ITERATIVE,
        max_length=16,
        stale_from=1,
        changes=EVERY_ROUND,
    ),
    Case(
        name="gradient_explosion in rounds",
        alarm="gradient_explosion",
        fault="gradients × 10⁶ from round 2 on",
        method=ITERATIVE,
        max_length=16,
        exploding_from=2,
        changes=EVERY_ROUND,
    ),
    Case(
        name="reference_saturation",
        alarm="reference_saturation",
        fault="one reference, a reward for the longest run of one letter, learning rate × 5, β / 3, eight times as "
        "many updates, no pair left out",
        method=ITERATIVE,
        max_length=16,
        algorithm=UNFILTERED,
        rewards={"longest_run": 1.0},
    ),
    Case(
        name="safety_gate in rounds",
        alarm="safety_gate",
        fault="the proxy that counts one letter; a refusal is an answer without this letter",
        method=ITERATIVE,
        max_length=16,
        rewards={"letters_a": 1.0},
        refusal="^[^a]*$",
        changes=EVERY_ROUND,
    ),
)
