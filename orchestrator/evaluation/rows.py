"""One line of samples.jsonl: a completion of one model, and all that was found out about it.

What compares, measures and reports reads these rows and nothing else, so it needs neither a model nor a cluster.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from orchestrator import disk
from orchestrator.errors import BadInput, Problem
from workers.types import Finish, Text

Mode: TypeAlias = Literal["greedy", "sampled"]
PromptSet: TypeAlias = Literal["prompts", "harmful", "benign"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One completion.

    Example: `Row(model="model", prompt_set="prompts", mode="sampled", prompt_id="test.jsonl:3", prompt="hcafb>",
    index=0, completion="abcfh", tokens=(5, 6, 7, 10, 12, 1), finish="stop", reward=1.0, scores={"exact_sort": 1.0},
    log_ratios={"base": 0.8}, outcomes={"judge": (1.0, 0.5)})`.
    """

    model: str  # which of the models that are compared: "model" or "against"
    prompt_set: PromptSet
    mode: Mode
    prompt_id: str
    prompt: Text
    index: int  # among the prompt's completions of this mode
    completion: str
    tokens: tuple[int, ...]  # the model's own; the last one ends the completion where `finish` is stop
    finish: str  # Finish.name
    reward: float | None = None  # weighted sum of the scores; None: nothing scored it
    scores: Mapping[str, float | None] = field(default_factory=dict)  # by scorer; None: it passed
    log_ratios: Mapping[str, float] = field(default_factory=dict)  # log π(y) − log π_NAME(y) in nats, by NAME
    outcomes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By judge: 1 where it preferred this completion to the other model's of the same index, 0 where the other one, ½
    for a tie; one number for each order in which the two were shown."""

    @property
    def written(self) -> tuple[int, ...]:
        """The tokens without the one that ended it."""
        return self.tokens[:-1] if self.finish == Finish.stop.name else self.tokens


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """A line of JSON each. ValueError for a number that JSON does not have."""
    lines = [json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    disk.write_atomic(path, "".join(lines))


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote. Raises BadInput, naming the line that is not a row."""
    known, found = {f.name for f in fields(Row)}, []
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        fix = "give the directory that `rlhf evaluate --output` has written"
        raise BadInput(Problem(what="cannot be read", where=str(path), why=str(error), fix=fix)) from None
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            body = json.loads(line)
            found.append(_row({name: body[name] for name in known & set(body)}))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            problem = Problem(
                what="not a row of an evaluation",
                where=f"{path}:{number}",
                why=str(error) or type(error).__name__,
                fix="restore the file, or evaluate again",
            )
            raise BadInput(problem) from None
    return found


def _row(body: dict[str, Any]) -> Row:
    outcomes = {name: tuple(values) for name, values in body.get("outcomes", {}).items()}
    return Row(**{**body, "tokens": tuple(body["tokens"]), "outcomes": outcomes})


def number_or_none(value: float) -> float | None:
    """As a row has it: a scorer that passed has answered NaN."""
    return float(value) if math.isfinite(value) else None


def of(rows: Sequence[Row], *, model: str, prompt_set: PromptSet = "prompts", mode: Mode = "greedy") -> list[Row]:
    return [row for row in rows if (row.model, row.prompt_set, row.mode) == (model, prompt_set, mode)]
