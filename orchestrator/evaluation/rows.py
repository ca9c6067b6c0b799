"""Rows of samples.jsonl: one completion of a model with its scores, log-ratios and verdicts.

Every figure of an evaluation is computed from these rows, without a model or a cluster.
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
    """A completion with everything measured on it.

    Example: `Row(model="model", prompt_set="prompts", mode="sampled", prompt_id="test.jsonl:3", prompt="hcafb>",
    index=0, completion="abcfh", tokens=(5, 6, 7, 10, 12, 1), finish="stop", reward=1.0, scores={"exact_sort": 1.0},
    log_ratios={"base": 0.8}, outcomes={"judge": (1.0, 0.5)})`.
    """

    model: str  # role in the comparison: "model" or "against"
    prompt_set: PromptSet
    mode: Mode
    prompt_id: str
    prompt: Text
    index: int  # among the prompt's completions of this mode
    completion: str
    tokens: tuple[int, ...]  # in the model's tokenizer; the last one is the end-of-sequence token if `finish` is stop
    finish: str  # Finish.name
    reward: float | None = None  # weighted sum of the scores; None: not scored
    scores: Mapping[str, float | None] = field(default_factory=dict)  # by scorer; None: the scorer abstained
    log_ratios: Mapping[str, float] = field(default_factory=dict)  # log π(y) − log π_NAME(y) in nats, by NAME
    outcomes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Verdicts by judge, one for each order in which the two completions were shown: 1 if this completion is preferred
    to the other model's completion of the same index, 0 if the other one is, ½ for a tie."""

    @property
    def content_tokens(self) -> tuple[int, ...]:
        """Tokens without the end-of-sequence token."""
        return self.tokens[:-1] if self.finish == Finish.stop.name else self.tokens


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write one line of JSON per row.

    Raises:
        ValueError: a number is not finite, which JSON cannot represent.
    """
    lines = [json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    disk.write_atomic(path, "".join(lines))


def read_rows(path: Path) -> list[Row]:
    """Read the rows that `write_rows` wrote.

    Raises:
        BadInput: the file cannot be read, or a line is not a row; the error names the line.
    """
    names, rows = {f.name for f in fields(Row)}, []
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
            rows.append(_row({name: body[name] for name in names & set(body)}))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            problem = Problem(
                what="not a row of an evaluation",
                where=f"{path}:{number}",
                why=str(error) or type(error).__name__,
                fix="restore the file, or run the evaluation again",
            )
            raise BadInput(problem) from None
    return rows


def _row(body: dict[str, Any]) -> Row:
    outcomes = {name: tuple(values) for name, values in body.get("outcomes", {}).items()}
    return Row(**{**body, "tokens": tuple(body["tokens"]), "outcomes": outcomes})


def number_or_none(value: float) -> float | None:
    """Convert a score for a row. A scorer that abstains returns NaN, which a row stores as None."""
    return float(value) if math.isfinite(value) else None


def select(rows: Sequence[Row], *, model: str, prompt_set: PromptSet = "prompts", mode: Mode = "greedy") -> list[Row]:
    """Return the rows of one model, prompt set and mode."""
    return [row for row in rows if (row.model, row.prompt_set, row.mode) == (model, prompt_set, mode)]
