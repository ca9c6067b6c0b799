"""Comparison of a judge with the labels of preference data: `rlhf judge`.

DATA, JUDGE.yaml ──► pairs ──► verdicts ──► DIR/verdicts.jsonl, a row for each pair
                                       └──► DIR/agreement.json, schema 1: `Report`
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.errors import BadInput, Problem, Problems, redact
from orchestrator.evaluation import agreement_show
from orchestrator.evaluation.agreement import agreement, judged, read_pairs
from orchestrator.evaluation.figures import BootstrapConfig, Figure
from orchestrator.evaluation.judge import Judge, with_cache
from orchestrator.rundir.provenance import fingerprint, software
from workers.config import JudgeRewardConfig
from workers.config.endpoint import NoKeyError, read_key
from workers.types import Example

SCHEMA = 1
REPORT, VERDICTS = "agreement.json", "verdicts.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Agreement of a judge with the labels of a dataset."""

    date: str  # ISO 8601, UTC
    judge: Mapping[str, Any]  # its settings with every default
    data: Mapping[str, Any]  # source, rows and hashes
    num_pairs: int
    num_without_verdict: int
    agreement: Mapping[str, Figure]  # by name, see agreement.py
    cost: Mapping[str, float]  # requests, tokens, dollars
    software: Mapping[str, str]


def compare_with_labels(
    source: str,
    config: JudgeRewardConfig,
    output: Path,
    log: Callable[[str], None],
    *,
    split: str = "train",
    max_rows: int | None = None,
) -> Report:
    """Ask a judge of preference data and write its agreement with the labels to the directory `output`.

    Raises:
        BadInput: the data, the key or the directory is wrong; raised with all problems before a request is made.
        JudgeFailed: the endpoint refuses, the budget is used up, or too many pairs have no verdict.
    """
    examples, key = _check_inputs(source, config, output, split, max_rows)
    how = "graded" if not config.compare else "compared in both orders" if config.both_orders else "compared"
    log(f"{len(examples)} pairs of {source} are {how} by {config.model}")
    judge = Judge(with_cache(config, output), key)
    pairs = judged(judge, examples, compares=config.compare, both_orders=config.both_orders)
    report = Report(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        judge=config.model_dump(mode="json"),
        data=fingerprint(source, examples),
        num_pairs=len(pairs),
        num_without_verdict=sum(not pair.verdicts for pair in pairs),
        agreement=agreement(pairs, BootstrapConfig()),
        cost=judge.cost(),
        software=software(),
    )
    disk.make_directory(output)
    rows = [json.dumps(asdict(pair), ensure_ascii=False, allow_nan=False) + "\n" for pair in pairs]
    disk.write_atomic(output / VERDICTS, "".join(rows))
    disk.write_atomic(output / REPORT, as_json(report) + "\n")
    return report


def _check_inputs(
    source: str, config: JudgeRewardConfig, output: Path, split: str, max_rows: int | None
) -> tuple[Sequence[Example], str | None]:
    problems, key = Problems(), None
    examples: Sequence[Example] = ()
    try:
        examples = read_pairs(source, split=split, max_rows=max_rows)
    except BadInput as error:
        problems.extend(error.problems)
    try:
        key = read_key(config)
    except NoKeyError as error:
        problems.add("no API key", where=error.where, why=error.why, fix=error.fix)
    if (output / REPORT).exists() or (output.exists() and not output.is_dir()):
        fix = "give another directory as --output, or remove this one"
        problems.append(Problem(what="the directory has a result already", where=str(output), fix=fix))
    problems.raise_if_any()
    return examples, key


def as_json(report: Report) -> str:
    return redact(json.dumps({"schema": SCHEMA, **asdict(report)}, indent=2, ensure_ascii=False, allow_nan=False))


def lines(report: Report) -> Iterator[str]:
    """Yield the report line by line, for the terminal."""
    prompts = report.agreement["accuracy"].num_prompts if report.agreement else 0
    yield f"{report.judge['model']} on {report.data['source']}: {report.num_pairs} pairs of {prompts} prompts"
    yield from agreement_show.lines(report.agreement)
    if report.num_without_verdict:
        yield f"note: {report.num_without_verdict} pairs have no verdict and are left out"
    cost = report.cost
    yield (
        f"cost: {cost['num_requests']:,.0f} requests, {cost['num_cached']:,.0f} answered before, "
        f"{cost['tokens']:,.0f} tokens, {cost['cost']:.2f} dollars"
    )
