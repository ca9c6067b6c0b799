"""A comparison as one page, as Markdown, and as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.compare import charts
from orchestrator.compare.answer import Answer, at_equal_kl, sentences
from orchestrator.compare.frontier import HeadToHead, Point
from orchestrator.compare.run_curves import AXES
from orchestrator.errors import redact
from orchestrator.evaluation.statistics import Interval
from orchestrator.report.findings import config_differences, samples_of
from orchestrator.report.page import Card, percent, render, write
from orchestrator.report.run_record import RunRecord
from orchestrator.report.svg import standalone

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One task of a comparison, as its page has it."""

    answer: Answer
    stories: Sequence[RunRecord]  # of all its runs
    lost: Sequence[str]  # runs that are missing, and why


def write_all(directory: Path, name: str, sections: Sequence[Section], extra: Sequence[Card] = ()) -> list[Path]:
    """report.html, report.md with its pictures, and comparison.json in `directory`; returns their paths."""
    files = page(name, sections, extra)
    for file, text in files.items():
        write(directory / file, text)
    return [directory / file for file in files]


def page(name: str, sections: Sequence[Section], extra: Sequence[Card] = ()) -> dict[str, str]:
    """By name, the texts of the files that tell the comparison: HTML, Markdown with its pictures, JSON.

    `extra`: further pictures, such as a world whose frontier is known.
    """
    told = [_told(section) for section in sections]
    made = render("compare", {"title": name, "sections": told, "extra": extra})
    body = json.dumps({"v": SCHEMA, "name": name, "tasks": [as_json(s.answer) for s in sections]}, indent=1)
    cards = (*(one["frontier"] for one in told if one["frontier"]), *extra)
    return {
        "report.html": made.html,
        "report.md": made.markdown,
        "comparison.json": body + "\n",
        **{card.file: redact(standalone(card.picture, card.legend)) for card in cards},
    }


def _told(section: Section) -> dict[str, Any]:
    answer = section.answer
    shown = [next(s for s in section.stories if s.name == curve.name) for curve in _shown(answer)]
    return {
        "answer": answer,
        "sentences": list(sentences(answer)),
        "frontier": frontier_card(answer),
        "spending": [
            Card(
                title=f"Against {charts.LABELS[axis].format(unit=answer.unit)}",
                about="dotted: where methods are compared",
                picture=charts.spending(answer, axis),
            )
            for axis in AXES
            if answer.cost[axis] > 0
        ],
        "table": [_row(answer, method) for method in answer.order],
        "head_to_head": matchup_table(answer),
        "kl": [told for (a, b), found in answer.gaps.items() if (told := at_equal_kl(a, b, found))],
        "samples": [(record, found) for record in shown if (found := samples_of(record, at_most=4)) is not None],
        "labels": {curve.name: curve.label for curve in answer.field.curves},
        "differences": config_differences(shown),
        "names": [record.name for record in shown],
        "runs": answer.field.curves,
        "lost": section.lost,
        "caveats": list(caveats(answer)),
    }


def frontier_card(answer: Answer) -> Card | None:
    if not answer.field.kl_of:
        return None
    about = "each method's best points; bars: 95 % over prompts and seeds; faint: all that was measured"
    return Card(
        title="Win rate against KL",
        about=about,
        picture=charts.frontier(answer),
        legend=tuple(answer.field.methods),
        file=f"frontier-{re.sub('[^A-Za-z0-9]+', '-', answer.task).strip('-').lower()}.svg",
    )


def _shown(answer: Answer) -> Iterator[Any]:
    """Of each method one run: the first seed of its best setting."""
    for method in answer.order:
        best = max((p for p in answer.points[method] if p.is_end), key=lambda p: p.win.value)
        yield answer.field.of(method)[best.setting][0]


def _row(answer: Answer, method: str) -> dict[str, Any]:
    """Of the table: where each setting of a method ended."""
    ends = [p for p in answer.points[method] if p.is_end]
    return {"method": method, "index": answer.field.methods.index(method), "ends": ends}


def matchup_table(answer: Answer) -> list[list[str]]:
    """How often the method of a row beats that of a column, at equal compute."""
    by_pair: dict[tuple[str, str], Interval] = {}
    for d in answer.matchups.get("device_seconds", ()):
        by_pair[d.ours, d.theirs] = d.win
        by_pair[d.theirs, d.ours] = Interval(value=1 - d.win.value, low=1 - d.win.high, high=1 - d.win.low)
    return [[percent(by_pair[a, b]) if (a, b) in by_pair else "" for b in answer.order] for a in answer.order]


def caveats(answer: Answer) -> Iterator[str]:
    field = answer.field
    seeds = field.num_seeds
    if seeds == 1:
        yield "One seed: intervals are over prompts alone, and another seed may turn the answer round."
    elif seeds < 3:
        yield f"{seeds} seeds: the spread between seeds is guessed from very few of them."
    prompts, drawn = len(field.prompts), field.base.shape[1]
    yield f"{prompts} held-out prompts, {drawn} answers of the base to each; judged by {field.gold}."
    if field.mode == "greedy":
        yield "Answers are greedy ones: sampled ones were not measured (evaluation.num_samples)."
    if not field.kl_of:
        yield "The KL to the base was not measured in every run, so there is no frontier."
    elif "batches" in field.kl_of:
        yield f"The KL is that of {field.kl_of}, one number for all prompts."
    if len(field.methods) > 2:
        count = len(field.methods) * (len(field.methods) - 1) // 2
        yield f"{count} pairs of methods are looked at, each at 95 %: one in twenty shows a difference by chance."
    yield "A method stands with the settings that were swept here; with others it may stand elsewhere."


# ------------------------------------------------------------------------------------------------ JSON


def as_json(answer: Answer) -> dict[str, Any]:
    field = answer.field
    return {
        "task": answer.task,
        "answer": answer.headline,
        "told": list(sentences(answer)),
        "unit": answer.unit,
        "gold": field.gold,
        "answers": field.mode,
        "kl_of": field.kl_of,
        "num_prompts": len(field.prompts),
        "num_seeds": field.num_seeds,
        "order": list(answer.order),
        "compared_at": {axis: _finite(cost) for axis, cost in answer.cost.items()},
        "points": [_point(p) for method in field.methods for p in answer.points[method]],
        "head_to_head": {axis: [_matchup(d) for d in matchups] for axis, matchups in answer.matchups.items()},
        "equal_kl": [
            {"ours": a, "theirs": b, "at": [{"kl": g.kl, "difference": _interval(g.difference)} for g in found]}
            for (a, b), found in answer.gaps.items()
        ],
        "runs": [
            {"name": curve.name, "method": curve.method, "setting": curve.setting, "seed": curve.seed,
             "ended": curve.ended, "spent": {axis: _finite(curve.end(axis)) for axis in AXES}}
            for curve in field.curves
        ],
    }  # fmt: skip


def _point(point: Point) -> dict[str, Any]:
    spent = {axis: _finite(value) for axis, value in point.spent.items()}
    return {**asdict(point), "spent": spent, "kl": _interval(point.kl), "win": _interval(point.win)}


def _matchup(matchup: HeadToHead) -> dict[str, Any]:
    return {**asdict(matchup), "win": _interval(matchup.win), "verdict": matchup.verdict}


def _interval(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_finite(v) for v in (interval.value, interval.low, interval.high)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
