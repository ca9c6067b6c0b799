"""evaluation.json: every figure of an evaluation, and what it was made of.

DIR/evaluation.json   one object, schema 1: `Result`        DIR/samples.jsonl   a row for each completion
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
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
    "length_controlled_win_rate": "logistic regression on tanh of the standardised gap in characters, at a gap of 0 "
    "(arXiv 2404.04475, without its term for instructions)",
    "intervals": "over prompts: Wilson's where each prompt has 0 or 1, else the percentile bootstrap",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one evaluation found. Figures are named as in `figures.py`; "model" and "against" are the two models."""

    date: str  # ISO 8601, UTC
    suite: Mapping[str, Any]  # source, and the config with every default
    models: Mapping[str, Mapping[str, Any]]  # path, run, weights with their SHA-256; also "base" and "reference"
    prompts: Mapping[str, Mapping[str, Any]]  # of each set: source, rows, hashes, how many were dropped
    figures: Mapping[str, Mapping[str, Figure]]  # by model
    differences: Mapping[str, Figure]  # model − against, on the same prompts
    win_rates: Mapping[str, Figure]  # of model over against
    cost: Mapping[str, float]
    software: Mapping[str, str]
    remarks: tuple[str, ...] = ()


def write_result(directory: Path, result: Result) -> None:
    disk.make_directory(directory)
    disk.write_atomic(directory / EVALUATION, as_json(result) + "\n")


def as_json(result: Result) -> str:
    body = {"schema": SCHEMA, **asdict(result), "estimators": ESTIMATORS}
    return redact(json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False))


def read_result(directory: Path) -> Result:
    """Raises BadInput for a directory without an evaluation, or with one of another schema."""
    path = directory / EVALUATION
    fix = "give a directory that `rlhf evaluate --output` has written"
    try:
        body = json.loads(path.read_text("utf-8"))
        if body["schema"] != SCHEMA:
            why = f"its schema is {body['schema']}, and {SCHEMA} is read here"
            raise BadInput(Problem(what="another version's evaluation", where=str(path), why=why, fix="evaluate again"))
        given = {field.name: body[field.name] for field in fields(Result)}
        given["figures"] = {model: _figures(found) for model, found in given["figures"].items()}
        given |= {name: _figures(given[name]) for name in ("differences", "win_rates")}
        return Result(**{**given, "remarks": tuple(given["remarks"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise BadInput(Problem(what="not an evaluation", where=str(path), why=why, fix=fix)) from None


def read_samples(directory: Path) -> list[Row]:
    """The rows of an evaluation. Raises BadInput."""
    return read_rows(directory / SAMPLES)


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    return {name: Figure(**told) for name, told in found.items()}
