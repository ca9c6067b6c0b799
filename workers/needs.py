"""What each algorithm must be given, known without importing it: recipes are checked before torch is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Example: SFT learns from a dataset alone: `Needs(prompts=False, dataset=True)`."""

    prompts: bool  # it can learn from its own samples (`data.prompts`)
    dataset: bool  # it can learn from a dataset (`data.dataset`)
    completions: int = 1  # of each dataset row
    critic: bool = False
    on_policy: bool = False  # its loss uses the log-probabilities of the distribution that was sampled


NEEDS: Mapping[str, Needs] = {
    "sft": Needs(prompts=False, dataset=True),
    "grpo": Needs(prompts=True, dataset=False, on_policy=True),
    "ppo": Needs(prompts=True, dataset=False, critic=True, on_policy=True),
    "dpo": Needs(prompts=True, dataset=True, completions=2),
    "rloo": Needs(prompts=True, dataset=False, on_policy=True),
    "reinforce++": Needs(prompts=True, dataset=False, on_policy=True),
}
