"""Our side of the parity table: a learner's whole step on the batches that TRL's values were computed on.

    python tests/workers/parity/ours.py      writes docs/evidence/parity.md (`make parity` makes TRL's values first)

Reference and old log-probabilities come from our own forward passes, advantages from our own `prepare`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *map(str, HERE.parents[:3])]  # as pytest has them

from cases import CASES, EOS, Case, Rows  # noqa: E402
from fakes import experience  # noqa: E402
from pydantic import TypeAdapter, ValidationError  # noqa: E402
from torch_engine import learner_of  # noqa: E402

from workers.config import AlgorithmConfig  # noqa: E402
from workers.learner import Learner  # noqa: E402
from workers.stats import merge_stats  # noqa: E402
from workers.types import Experience, Finish, Scores, TokenShard, assemble  # noqa: E402

MODELS = HERE / "models"
TABLE = HERE.parents[2] / "docs" / "evidence" / "parity.md"
LOSS_TOLERANCE, NORM_TOLERANCE = 2e-5, 1e-3  # relative
MARKS = dict(zip(dict.fromkeys(case.note for case in CASES if case.trainer and case.note), "¹²³⁴⁵", strict=False))
SMALL = 0.05  # smallest denominator of the relative difference: a loss of cancelling advantages is close to 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """Result of one batch. Example: `Value(loss=0.6931, grad_norm=1.25)`."""

    loss: float
    grad_norm: float

    def difference(self, other: Value) -> tuple[float, float]:
        """Return the relative difference from `other` of the loss and of the gradient norm."""
        return (
            abs(self.loss - other.loss) / max(abs(other.loss), SMALL),
            abs(self.grad_norm - other.grad_norm) / other.grad_norm,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Case with the values of both sides on each batch. `ours` is None if our settings do not have it yet."""

    case: Case
    ours: tuple[Value, ...] | None
    trl: tuple[Value, ...]

    @property
    def differences(self) -> tuple[float, float]:
        """Largest differences over the batches, of the loss and of the gradient norm."""
        assert self.ours is not None
        pairs = [a.difference(b) for a, b in zip(self.ours, self.trl, strict=True)]
        return max(p[0] for p in pairs), max(p[1] for p in pairs)

    @property
    def agrees(self) -> bool:
        loss, norm = self.differences
        return loss < LOSS_TOLERANCE and norm < NORM_TOLERANCE


@cache
def golden() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((HERE / "trl_values.json").read_text())
    return values


def is_known(case: Case) -> bool:
    """Return whether our settings have the method and its arguments. Any other invalid setting is an error."""
    try:
        TypeAdapter(AlgorithmConfig).validate_python(case.ours)
    except ValidationError as error:
        kinds = {e["type"] for e in error.errors()}
        if kinds <= {"union_tag_invalid", "extra_forbidden", "literal_error"}:
            return False
        raise
    return True


def compare(case: Case) -> Compared:
    trl = tuple(Value(**v) for v in golden()["values"][case.name])
    ours = tuple(value(case, rows) for rows in golden()["batches"][case.rows]) if is_known(case) else None
    return Compared(case=case, ours=ours, trl=trl)


def value(case: Case, rows: Rows) -> Value:
    """Compute the loss and the gradient norm of one step of a learner."""
    config: Any = TypeAdapter(AlgorithmConfig).validate_python(case.ours)
    given, rewards = _experience(case, rows)
    reference = _logprobs("reference", given) if config.needs_reference else None
    if config.needs.on_policy:
        sampled = assemble([_logprobs("sampler", given)], given.completions)
        given, rewards = _experience(case, rows, logprobs=sampled.tolist())
    head = config.needs.head
    learner, _ = learner_of(MODELS / ("reward" if head == "scores" else "policy"), case.ours, head=head)
    stats = merge_stats(
        [learner.step(0, [given], [Scores(rewards=np.float32(rewards), by_scorer={})], reference and [reference], None)]
    )
    return Value(loss=stats["loss"], grad_norm=stats["grad_norm"])


def _logprobs(model: str, given: Experience) -> TokenShard:
    return _frozen(model).infer([given])


@cache
def _frozen(model: str) -> Learner:
    return learner_of(MODELS / model, {"type": "sft"})[0]


def _experience(case: Case, rows: Rows, logprobs: list[float] | None = None) -> tuple[Experience, list[float]]:
    """Convert the rows to groups of completions with scores.

    A pair has its best completion first. A labelled row's completion is also the mismatched one of the row before.
    """
    match case.rows:
        case "demonstrations":
            groups, rewards = [(r["prompt"], [r["completion"]]) for r in rows], [0.0] * len(rows)
        case "pairs" | "even_pairs":
            groups, rewards = [(r["prompt"], [r["chosen"], r["rejected"]]) for r in rows], [1.0, 0.0] * len(rows)
        case "labelled":
            others = [*rows[1:], rows[0]]
            groups = [(r["prompt"], [r["completion"], o["completion"]]) for r, o in zip(rows, others, strict=True)]
            rewards = [float(score) for r in rows for score in (r["label"], 0)]
        case "groups":
            groups, rewards = [(r["prompt"], r["completions"]) for r in rows], [x for r in rows for x in r["rewards"]]
    ends = [tokens[-1] for _, completions in groups for tokens in completions]
    finish = np.array([Finish.stop if end == EOS else Finish.length for end in ends], np.int32)
    return experience(groups, logprobs=logprobs, finish=finish), rewards


# ------------------------------------------------------------------------------------------------ table

HEAD = """# Losses and gradients equal to TRL's

Loss and gradient norm of one optimiser update by TRL {trl} and by this project, on the same tokens, rewards and
weights: a Qwen2 of {size} with random weights, {batches} ragged batches per row, float32. TRL's values are computed
by its own trainers, including collation, forward passes, old and reference log-probabilities, advantages and loss. Ours
are computed by a learner's whole step: `prepare`, packing, forward pass, loss and backward pass. Methods that sample
are given the same completions and rewards. The completions were sampled from another model than the one that is
trained, so that ratios differ from 1 and clipping takes effect.

`tests/workers/parity/test_parity.py` requires a relative difference below {loss:.0e} of the loss (relative to {small}
if the loss is smaller) and below {norm:.0e} of the gradient norm, and fails if this page is out of date. `make parity`
computes TRL's values again and writes this page. `python tests/workers/parity/ours.py` only writes it.

| method and settings | loss, ours | loss, TRL | difference | gradient norm, ours | TRL | difference |
|---|--:|--:|--:|--:|--:|--:|
"""


def table(found: list[Compared]) -> str:
    """Return docs/evidence/parity.md. Values are those of the first batch, differences the largest of all batches."""
    versions = golden()["versions"]
    head = HEAD.format(
        trl=versions["trl"],
        size="2 layers, width 16",
        batches=len(found[0].trl),
        loss=LOSS_TOLERANCE,
        norm=NORM_TOLERANCE,
        small=SMALL,
    )
    return head + "".join(_row(c) for c in found) + _differing()


def _row(compared: Compared) -> str:
    case, ours, trl = compared.case, compared.ours, compared.trl[0]
    name = f"`{case.name}`" + (f" {MARKS[case.note]}" if case.note else "")
    if ours is None:
        return f"| {name} | not yet | {trl.loss:.5f} | | not yet | {trl.grad_norm:.4f} | |\n"
    loss, norm = ("< 1e-6" if d < 1e-6 else f"{d:.0e}" for d in compared.differences)
    return (
        f"| {name} | {ours[0].loss:.5f} | {trl.loss:.5f} | {loss} "
        f"| {ours[0].grad_norm:.4f} | {trl.grad_norm:.4f} | {norm} |\n"
    )


def _differing() -> str:
    notes = [f"{mark} {note}.\n" for note, mark in MARKS.items()]
    alone = [f"| `{case.name}` | {case.note} |\n" for case in CASES if not case.trainer]
    return "\n" + "\n".join(notes) + "\n| not compared | why |\n|---|---|\n" + "".join(alone)


def compared_cases() -> list[Case]:
    return [case for case in CASES if case.trainer is not None]


def main() -> None:
    found = [compare(case) for case in compared_cases()]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
