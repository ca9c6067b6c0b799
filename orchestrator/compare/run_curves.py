"""Read finished runs as curves: cost, scores and KL of each run at each evaluation.

run directories ──► evaluations/step-N.parquet, ledger, metrics ──► curves, on the prompts that all runs answered
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from orchestrator.compare.same import scorer_names
from orchestrator.errors import BadInput, Problem
from orchestrator.evaluation.statistics import Values
from orchestrator.report.run_record import RunRecord

Axis: TypeAlias = Literal["device_seconds", "seconds", "tokens"]
AXES: tuple[Axis, ...] = ("device_seconds", "seconds", "tokens")
Table: TypeAlias = Mapping[int, Sequence[Mapping[str, Any]]]
"""Answers of a run by the step of their evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalPoint:
    """One evaluation of one run, on n prompts with k answers each.

    Example: `EvalPoint(step=20, spent={"device_seconds": 120.0, "seconds": 20.0, "tokens": 4e4}, gold=…, kl=…)`.
    """

    step: int
    spent: Mapping[Axis, float]
    gold: Values  # [n, k] scores of the gold scorer
    kl: Values | None  # [n] nats, mean over the answers to a prompt; None: not measured
    length: Values  # [n] tokens, mean over the answers to a prompt
    weights: Values | None = None  # [n, k] of the answers to a prompt, with sum 1; None: all equal
    over_base: Values | None = None  # [n] win rate over the base; None: that of `gold` over the base's answers
    by_temperature: Mapping[float, Values] = field(default_factory=dict)  # [n, k] gold scores at other temperatures


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCurve:
    """Curve of one run."""

    name: str
    method: str
    setting: str  # value of the swept setting, such as "beta 0.1"
    seed: int
    ended: str
    evals: tuple[EvalPoint, ...]  # the base model first
    is_trained: bool = True  # False: best-of-n, which has no cost before it is used

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.method, self.setting)))

    def end(self, axis: Axis) -> float:
        return self.evals[-1].spent[axis]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEntry:
    """A run to compare, with the method and setting it belongs to."""

    record: RunRecord
    method: str
    setting: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRuns:
    """Curves of all runs of one task."""

    curves: tuple[RunCurve, ...]
    prompts: tuple[str, ...]  # ids of the prompts that all runs answered
    base: Values  # [n, k] gold scores of the base model, from the first evaluations of all runs
    mode: str  # of the answers: sampled or greedy
    gold: str  # scorer that decides which of two answers is better
    kl_of: str  # what the KL was measured on; empty: not measured
    base_by_temperature: Mapping[float, Values] = field(default_factory=dict)  # [n, k] gold scores of the base model
    remarks: tuple[str, ...] = ()  # on what the methods have in common
    gold_trained_on: tuple[str, ...] = ()  # methods that were trained on the gold scorer

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(curve.method for curve in self.curves))

    @property
    def num_seeds(self) -> int:
        return max(sum(other.label == curve.label for other in self.curves) for curve in self.curves)

    def of(self, method: str) -> dict[str, list[RunCurve]]:
        """Return the curves of a method by setting; those of one setting differ in their seeds."""
        by_setting: dict[str, list[RunCurve]] = {}
        for curve in self.curves:
            if curve.method == method:
                by_setting.setdefault(curve.setting, []).append(curve)
        return by_setting


BestOfN: TypeAlias = Callable[[Sequence["RunEntry"], Sequence[Table], Sequence[str], str | None], Sequence["RunCurve"]]
"""Function that returns curves of best-of-n sampling, of runs, their answers, the prompts and the gold scorer."""


def read_curves(
    entries: Sequence[RunEntry],
    gold: str | None,
    *,
    best_of_n: BestOfN | None = None,
    remarks: Sequence[str] = (),
) -> TaskRuns:
    """Read the runs of one task.

    Args:
        entries: runs.
        gold: scorer that decides which of two answers is better; None: the whole reward.
        best_of_n: returns the curves of best-of-n sampling; None: it is not a method of the task.
        remarks: on what the methods have in common, for the report.

    Raises:
        BadInput: if a run has no evaluated answers, or the runs have no prompts in common.
    """
    tables = [_tables(entry) for entry in entries]
    modes = [{row["mode"] for rows in table.values() for row in rows} for table in tables]
    mode = "sampled" if all("sampled" in own for own in modes) else "greedy"
    shared = set.intersection(*({row["prompt_id"] for row in next(iter(table.values()))} for table in tables))
    if len(shared) < 2:
        names = " and ".join(entry.record.name for entry in entries[:2])
        why, fix = "win rates are computed prompt by prompt", "evaluate all runs on the same data.eval_prompts"
        raise BadInput(Problem(what=f"no held-out prompts in common: {names}, …", why=why, fix=fix))
    prompts = tuple(sorted(shared))
    curves = tuple(_curve(entry, table, prompts, mode, gold) for entry, table in zip(entries, tables, strict=True))
    if mode == "sampled" and all(m.kl is not None for curve in curves for m in curve.evals):
        kl_of = "sampled answers to the held-out prompts"
    elif all(m.kl is not None for curve in curves for m in curve.evals):
        kl_of = "the training batches"
    else:
        kl_of = ""
    base = np.concatenate([curve.evals[0].gold for curve in curves], axis=1)
    varied = [curve.evals[0].by_temperature for curve in curves]
    shared_temperatures = sorted(set.intersection(*({*own} for own in varied)))
    return TaskRuns(
        curves=curves if best_of_n is None else (*curves, *best_of_n(entries, tables, prompts, gold)),
        prompts=prompts,
        base=base,
        mode=mode,
        gold=gold or "the reward",
        kl_of=kl_of,
        base_by_temperature={t: np.concatenate([own[t] for own in varied], axis=1) for t in shared_temperatures},
        remarks=tuple(remarks),
        gold_trained_on=tuple(dict.fromkeys(entry.method for entry in entries if _trained_on(entry, gold))),
    )


def _trained_on(entry: RunEntry, gold: str | None) -> bool:
    """Return whether the run was trained on the gold scorer; None is the whole reward, which it was trained on."""
    config = entry.record.directory.config()
    sampled = config.data.prompts is not None
    return sampled and (gold is None or gold in scorer_names(config.reward, trained_on=True))


def _curve(
    entry: RunEntry,
    table: Table,
    prompts: Sequence[str],
    mode: str,
    gold: str | None,
) -> RunCurve:
    record = entry.record
    costs, tokens = record.cost_by_step, dict(record.curve("num_tokens"))
    is_base = record.setting("reference.refresh", "never") == "never" and record.setting("reference.path") is None
    kls = dict(record.curve("objective/kl")) if is_base else {}
    evals = []
    for step, rows in sorted(table.items()):
        device_seconds, seconds = (0.0, 0.0) if step == 0 else costs.get(step, (np.nan, np.nan))
        selected = [row for row in rows if row["mode"] == mode]
        kl = _per_prompt(selected, prompts, "log_ratio")
        if kl is None and step == 0:
            kl = np.zeros(len(prompts))
        elif kl is None and step in kls:
            kl = np.full(len(prompts), kls[step])
        lengths = _per_prompt(selected, prompts, "length")
        assert lengths is not None
        evals.append(
            EvalPoint(
                step=step,
                spent={"device_seconds": device_seconds, "seconds": seconds, "tokens": tokens.get(step, 0.0)},
                gold=scores_of(entry, selected, prompts, gold),
                kl=kl,
                length=lengths,
                by_temperature=_by_temperature(entry, rows, prompts, gold),
            )
        )
    return RunCurve(
        name=record.name,
        method=entry.method,
        setting=entry.setting,
        seed=int(record.setting("seed", 0)),
        ended=record.ended,
        evals=tuple(evals),
    )


def _by_temperature(
    entry: RunEntry, rows: Sequence[Mapping[str, Any]], prompts: Sequence[str], gold: str | None
) -> dict[float, Values]:
    """Return the gold scores [n, k] of greedy answers, at temperature 0, and of those at `evaluation.temperatures`."""
    by_temperature: dict[float, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["mode"] != "sampled":
            by_temperature.setdefault(float(row.get("temperature") or 0.0), []).append(row)
    if set(by_temperature) <= {0.0}:
        return {}  # without another temperature there is no curve to draw
    return {t: scores_of(entry, own, prompts, gold) for t, own in sorted(by_temperature.items())}


def values_of(rows: Sequence[Mapping[str, Any]], prompts: Sequence[str], key: str) -> Values:
    """Return a figure [n, k] of the first k answers to each prompt; k is the smallest number of answers."""
    by_prompt: dict[str, list[float]] = {prompt: [] for prompt in prompts}
    for row in rows:
        if row["prompt_id"] in by_prompt:
            by_prompt[row["prompt_id"]].append(float(row[key]))
    k = min(map(len, by_prompt.values()))
    return np.asarray([values[:k] for values in by_prompt.values()], np.float64)


def scores_of(entry: RunEntry, rows: Sequence[Mapping[str, Any]], prompts: Sequence[str], scorer: str | None) -> Values:
    """Return the scores [n, k] of the first k answers to each prompt; k is the smallest number of answers.

    Raises:
        BadInput: if the run has no such scorer, or it abstained. `scorer` None is the whole reward.
    """
    by_prompt: dict[str, list[float]] = {prompt: [] for prompt in prompts}
    for row in rows:
        if row["prompt_id"] in by_prompt:
            score = row["reward"] if scorer is None else dict(row["scores"]).get(scorer)
            if score is None:
                names = ", ".join(name for name in dict(row["scores"]))
                why, fix = f"the scorers of this run are: {names}", "name one that scores every answer"
                where = str(entry.record.directory.path)
                raise BadInput(Problem(what=f"scorer {scorer}", where=where, why=why, fix=fix))
            by_prompt[row["prompt_id"]].append(float(score))
    k = min(len(scores) for scores in by_prompt.values())
    return np.asarray([scores[:k] for scores in by_prompt.values()], np.float64)


def _per_prompt(rows: Sequence[Mapping[str, Any]], prompts: Sequence[str], key: str) -> Values | None:
    """Return the mean of `key` over the answers to each prompt [n]; None if a value or a prompt is missing."""
    sums, counts = dict.fromkeys(prompts, 0.0), dict.fromkeys(prompts, 0)
    for row in rows:
        if row["prompt_id"] in sums:
            if row[key] is None:
                return None
            sums[row["prompt_id"]] += float(row[key])
            counts[row["prompt_id"]] += 1
    return np.asarray([sums[p] / counts[p] for p in prompts], np.float64) if all(counts.values()) else None


def _tables(entry: RunEntry) -> dict[int, list[dict[str, Any]]]:
    """Return the answers of each evaluation that metrics.jsonl has, by step."""
    import pyarrow.parquet as pq

    steps = {step for step, _ in entry.record.curve("eval/reward")}
    tables = {}
    for step, path in _files(entry.record.directory.path / "evaluations"):
        if step in steps:
            try:
                tables[step] = pq.read_table(path).to_pylist()
            except Exception as error:  # pyarrow raises various types for a damaged file
                why, fix = f"{type(error).__name__}: {error}", "run it again, or leave the run out"
                raise BadInput(Problem(what="cannot be read", where=str(path), why=why, fix=fix)) from None
    if 0 not in tables or len(tables) < 2:
        why = "a comparison needs an evaluation before the first step and one after a later step"
        fix = "set evaluation: {num_samples: 8} and data.eval_prompts, and run it again"
        raise BadInput(Problem(what="no evaluated answers", where=str(entry.record.directory.path), why=why, fix=fix))
    return tables


def _files(directory: Path) -> Iterator[tuple[int, Path]]:
    for path in directory.glob("step-*.parquet") if directory.is_dir() else ():
        number = path.stem.removeprefix("step-")
        if number.isdigit():
            yield int(number), path
