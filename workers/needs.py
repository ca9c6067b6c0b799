"""What each algorithm must be given, known without importing it: recipes are checked before torch is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Head: TypeAlias = Literal["logprobs", "values", "scores"]
"""What a model answers for each token: its log-probability, the value of the state before it (a critic), or the score
of the text that ends with it (a reward model)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Example: SFT learns from a dataset alone: `Needs(prompts=False, dataset=True)`."""

    prompts: bool  # it can learn from its own samples (`data.prompts`)
    dataset: bool  # it can learn from a dataset (`data.dataset`)
    completions: int = 1  # of each dataset row
    mismatched: bool = False  # each dataset row comes with another row's completion, to compare with
    critic: bool = False
    head: Head = "logprobs"  # of what is trained
    teacher: bool = False  # another model (`teacher.model`), whose distributions it learns from
    on_policy: bool = False  # its loss uses the log-probabilities of the distribution that was sampled
    whole_rows: bool = False  # its loss compares what is in a row, or has a number for it: no row is cut


NEEDS: Mapping[str, Needs] = {
    "sft": Needs(prompts=False, dataset=True),
    "grpo": Needs(prompts=True, dataset=False, on_policy=True),
    "ppo": Needs(prompts=True, dataset=False, critic=True, on_policy=True),
    "dpo": Needs(prompts=True, dataset=True, completions=2, whole_rows=True),
    "kto": Needs(prompts=False, dataset=True, mismatched=True, whole_rows=True),
    "reward_model": Needs(prompts=False, dataset=True, completions=2, head="scores", whole_rows=True),
    "rejection_sampling": Needs(prompts=True, dataset=False),
    "distill": Needs(prompts=True, dataset=True, teacher=True),
    "rloo": Needs(prompts=True, dataset=False, on_policy=True),
    "reinforce++": Needs(prompts=True, dataset=False, on_policy=True),
}
