"""Table of the rounds of iterative DPO: pairs, drift, the decision on the reference, and held-out figures of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import redact
from orchestrator.monitor.figures import number
from orchestrator.report.run_record import Row, RunRecord

Z95 = 1.96


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundsTable:
    """Columns, and the cells of each round. Columns without any content are left out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def rounds_of(record: RunRecord) -> RoundsTable | None:
    """Return the table of a run's rounds; None if its steps are not rounds, or none has ended."""
    rows = [row for row in record.rows if row["step"] > 0] if record.in_rounds else []
    cells = [[str(row["step"]), *(show(row, record.rounds.get(row["step"], {})) for show in COLUMNS.values())]
             for row in rows]  # fmt: skip
    columns = ["round", *COLUMNS]
    kept = [i for i in range(len(columns)) if any(line[i] for line in cells)]
    if not cells:
        return None
    return RoundsTable(
        columns=tuple(columns[i] for i in kept), rows=tuple(tuple(line[i] for i in kept) for line in cells)
    )


def _metric(*names: str) -> Callable[[Row, Mapping[str, Any]], str]:
    """Return a function that shows the first of these metrics that a row has."""
    return lambda row, round: next((number(row[name]) for name in names if row.get(name) is not None), "")


def _drift(row: Row, round: Mapping[str, Any]) -> str:
    kl, error = row.get("drift/kl"), row.get("drift/kl_error")
    if kl is None:
        return ""
    return number(kl) if error is None else f"{number(kl)} ± {number(Z95 * error)}"


def _decision(row: Row, round: Mapping[str, Any]) -> str:
    decision = round.get("reference")
    if not isinstance(decision, Mapping):
        return ""
    return redact(f"{str(decision.get('action', '')).replace('_', ' ')}: {decision.get('reason', '')}")


COLUMNS: Mapping[str, Callable[[Row, Mapping[str, Any]], str]] = {
    "reference, before the round": _decision,
    "KL to it, nats": _drift,
    "pairs": _metric("pairs/count"),
    "updates": _metric("num_updates"),
    "training reward": _metric("reward", "objective/scores"),
    "pair accuracy": _metric("rewards/accuracies"),
    "held-out reward": _metric("eval/reward"),
    "held-out accuracy": _metric("eval/accuracy"),
    "held-out KL to the base": _metric("eval/kl"),
}
"""Functions that show a cell, given the round's row of metrics and its round.json."""
