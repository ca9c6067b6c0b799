"""Overrides `a.b=c` of a comparison on the command line.

seeds=[0]                       a key of the comparison
evaluation.max_prompts=16       the last stage of every run
methods.PPO.critic.num_ranks=1  the last stage of the runs of one method
stages.sft-8b.model.path=./m    a stage, in every recipe that has it
stages.*.cluster.device=cpu     every stage of every run
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.overrides import parse_overrides, show_override
from orchestrator.errors import Problems

EVERY = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOverride:
    """Override of a setting of runs.

    Example: `stages.sft.seed=3` has `stage="sft"` and `values={"seed": 3}`.
    """

    text: str  # as given
    method: str | None = None  # None: all methods
    stage: str | None = None  # None: the last; `*`: all stages
    values: Mapping[str, Any] = field(default_factory=dict)

    def of(self, method: str, stages: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yield the overrides of a run of `method` whose recipe has these `stages`."""
        if self.method not in (None, method):
            return
        for key, value in self.values.items():
            if self.stage in (None, EVERY, stages[-1]):
                yield key, value
            for stage in stages[:-1]:
                if self.stage in (EVERY, stage):
                    yield f"stages.{stage}.{key}", value


def own_overrides(texts: Sequence[str], own_keys: Collection[str]) -> tuple[list[str], list[str]]:
    """Separate overrides of the comparison itself, whose keys are `own_keys`, from those of its runs."""
    own = [text for text in texts if text.partition("=")[0].partition(".")[0].strip() in own_keys]
    return own, [text for text in texts if text not in own]


def run_overrides(
    texts: Sequence[str], methods: Sequence[str], stages: Sequence[str], problems: Problems
) -> list[RunOverride]:
    """Parse overrides of runs. `methods` and `stages` are all names that the comparison and its recipes have."""
    found: list[RunOverride] = []
    for text in texts:
        kind, _, rest = text.partition(".")
        if kind not in ("methods", "stages"):
            found += _parsed(text, text, problems)
            continue
        names = methods if kind == "methods" else (*stages, EVERY)
        name = max((name for name in names if rest.startswith(f"{name}.")), key=len, default=None)
        if name is None:
            close = difflib.get_close_matches(rest.partition(".")[0], names, n=1)
            fix = f"did you mean {kind}.{close[0]}? " if close else ""
            fix += f"the {kind} are: {', '.join(names)}"
            problems.add(show_override(text), where="command line", why=f"there is no such {kind[:-1]}", fix=fix)
        elif kind == "methods":
            found += _parsed(text, rest.removeprefix(f"{name}."), problems, method=name)
        else:
            found += _parsed(text, rest.removeprefix(f"{name}."), problems, stage=name)
    return found


def _parsed(
    text: str, assignment: str, problems: Problems, *, method: str | None = None, stage: str | None = None
) -> Iterator[RunOverride]:
    for override in parse_overrides([assignment], [], problems):
        values = flat({".".join(map(str, override.path)): override.value.data})
        yield RunOverride(text=show_override(text), method=method, stage=stage, values=values)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves |= {f"{key}.{below}": leaf for below, leaf in flat(value).items()}
        else:
            leaves[key] = value
    return leaves


def texts_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return overrides as texts for `rlhf run`."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())
