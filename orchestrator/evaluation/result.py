"""evaluation.json: every figure of an evaluation, with its inputs and its cost.

DIR/evaluation.json   one object, schema 1: `Result`        DIR/samples.jsonl   a row for each completion
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.errors import BadInput, Problem, redact
from orchestrator.evaluation.figures import Figure
from orchestrator.evaluation.rows import Row, read_rows

SCHEMA = 1
EVALUATION, SAMPLES = "evaluation.json", "samples.jsonl"
ESTIMATORS = {
    "kl": "k1: mean over samples y of π of Σ_t log π(y_t) − log π_NAME(y_t), nats per completion, both by a forward "
    "pass of the scoring ranks at the sampling temperature",
    "length_controlled_win_rate": "logistic regression on tanh of the standardised length difference in characters, "
    "evaluated at a difference of 0 (arXiv 2404.04475, without its instruction term)",
    "intervals": "over prompts: Wilson's interval if every value is 0 or 1, else the percentile bootstrap",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Result of one evaluation. `figures.py` lists the figures' names. The two models are "model" and "against"."""

    date: str  # ISO 8601, UTC
    suite: Mapping[str, Any]  # source, and the config with every default
    models: Mapping[
        str, Mapping[str, Any]
    ]  # path, run and SHA-256 of the weights, by model; also "base" and "reference"
    prompts: Mapping[str, Mapping[str, Any]]  # source, number of rows, hashes and number of dropped prompts, by set
    figures: Mapping[str, Mapping[str, Figure]]  # by model
    differences: Mapping[str, Figure]  # model − against, on the same prompts
    win_rates: Mapping[str, Figure]  # of "model" over "against"
    cost: Mapping[str, float]
    software: Mapping[str, str]
    remarks: tuple[str, ...] = ()
    agreement: Mapping[str, Figure] = field(default_factory=dict)  # of the judge with labels; empty: not measured


def write_result(directory: Path, result: Result) -> None:
    disk.make_directory(directory)
    disk.write_atomic(directory / EVALUATION, as_json(result) + "\n")


def as_json(result: Result) -> str:
    body = {"schema": SCHEMA, **asdict(result), "estimators": ESTIMATORS}
    return redact(json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False))


def read_result(directory: Path) -> Result:
    """Read the result in `directory`.

    Raises:
        BadInput: the directory has no evaluation, or one of another schema.
    """
    path = directory / EVALUATION
    try:
        body = json.loads(path.read_text("utf-8"))
        if body["schema"] != SCHEMA:
            why = f"its schema is {body['schema']}; this version reads schema {SCHEMA}"
            fix = "run the evaluation again"
            raise BadInput(Problem(what="an evaluation of another version", where=str(path), why=why, fix=fix))
        body.setdefault("agreement", {})  # not in results of earlier versions
        values = {field.name: body[field.name] for field in fields(Result)}
        values["figures"] = {model: _figures(found) for model, found in values["figures"].items()}
        values |= {name: _figures(values[name]) for name in ("differences", "win_rates", "agreement")}
        return Result(**{**values, "remarks": tuple(values["remarks"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        fix = "give a directory that `rlhf evaluate --output` has written"
        raise BadInput(Problem(what="not an evaluation", where=str(path), why=why, fix=fix)) from None


def read_samples(directory: Path) -> list[Row]:
    """Read the rows of the evaluation in `directory`.

    Raises:
        BadInput: the rows cannot be read.
    """
    return read_rows(directory / SAMPLES)


def _figures(values: Mapping[str, Any]) -> dict[str, Figure]:
    return {name: Figure(**fields) for name, fields in values.items()}
