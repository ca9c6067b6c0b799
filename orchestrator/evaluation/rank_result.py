"""rank.json: what best of n by each score gains in the gold score, and what it costs.

DIR/rank.json   one object, schema 2: `Ranking` without its answers        DIR/ranked.jsonl   a `Ranked` for each prompt
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from orchestrator import disk
from orchestrator.errors import redact
from orchestrator.evaluation.figures import Figure

SCHEMA = 2
RANKED, SUMMARY = "ranked.jsonl", "rank.json"

Verdict: TypeAlias = Literal["better", "worse", "not_shown"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Best of n by one score: its gold score, and the tokens and seconds that it takes per prompt."""

    n: int
    gold: Figure  # gold score of the chosen answer
    gain: Figure  # gold score of the chosen answer − mean over the prompt's samples
    generated_tokens: float
    scored_tokens: float
    device_seconds: float
    tokens_per_gain: float | None  # tokens beyond those of one sample, over the gain; None: no gain is shown
    device_seconds_per_gain: float | None  # seconds beyond those of one sample, over the gain; None: no gain is shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Gains:
    """Gold score of the answers that one score chooses, against all samples."""

    curve: tuple[Point, ...]  # by n; the last one chooses among all samples
    wins: Figure  # share of a prompt's samples that are worse than the answer chosen among all
    losses: Figure  # share of a prompt's samples that are better
    verdict: Verdict  # of the gain of the last point, by its interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Best of all n samples by one score."""

    best: Figure | None  # score of the best answer; None: its scorer abstained everywhere
    mean: Figure | None  # mean score of a prompt's answers
    best_length: Figure  # tokens of the best answer
    mean_length: Figure  # mean length of a prompt's answers in tokens
    num_ties: int  # prompts whose answers all have the same score: nothing is chosen
    num_abstained: int  # answers without a score; they are ranked last
    cost: Mapping[str, float]  # tokens sampled and read, and busy seconds of devices
    gains: Gains | None  # None: no gold score


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldSummary:
    """Gold scores of the samples, by whatever they are ranked."""

    name: str
    mean: Figure  # mean over a prompt's samples
    best: Mapping[int, Figure]  # best of n by the gold score itself, by n: no score can choose better
    num_ties: int  # prompts whose samples all have the same gold score: no choice matters
    num_left_out: int  # prompts left out, because the gold scorer abstained on one of their samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """Completions of one prompt, best first by the first score.

    Example: `Ranked(prompt_id="test.jsonl:3", prompt="hcafb>", completions=({"completion": "abcfh", "index": 5,
    "scores": {"policy": -0.31}, "gold": 1.0, "tokens": 6, "finish": "stop"}, …))`. A score is None where its scorer
    abstained; `gold` is None, too, if there is no gold score.
    """

    prompt_id: str
    prompt: Any
    completions: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Result of a ranking."""

    model: Mapping[str, Any]
    reference: Mapping[str, Any] | None  # of the implicit reward; None: not used
    suite: Mapping[str, Any]
    beta: float  # scale of the implicit reward
    by: Mapping[str, Selection]  # by score; ranked.jsonl is in the order of the first one
    gold: GoldSummary | None  # None: no gold score
    cost: Mapping[str, float]  # of all scores together, without the gold score
    software: Mapping[str, str]
    dropped: int  # number of prompts that were too long
    notes: tuple[str, ...]
    ranked: tuple[Ranked, ...]


def write_ranking(directory: Path, ranking: Ranking) -> None:
    """Write both files."""
    disk.make_directory(directory)
    lines = [json.dumps(asdict(prompt), ensure_ascii=False, allow_nan=False) + "\n" for prompt in ranking.ranked]
    disk.write_atomic(directory / RANKED, "".join(lines))
    disk.write_atomic(directory / SUMMARY, as_json(ranking) + "\n")


def as_json(ranking: Ranking) -> str:
    """Serialise the ranking without its completions, which are in ranked.jsonl."""
    body = {"schema": SCHEMA, **{name: value for name, value in asdict(ranking).items() if name != "ranked"}}
    return redact(json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False))
