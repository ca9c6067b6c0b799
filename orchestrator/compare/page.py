"""Write a comparison as an HTML page, as Markdown and as JSON."""

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
from orchestrator.compare.run_curves import AXES, RunCurve
from orchestrator.errors import redact
from orchestrator.evaluation.statistics import Interval
from orchestrator.report.findings import config_differences, samples_of
from orchestrator.report.page import Card, percent, render, write
from orchestrator.report.run_record import RunRecord
from orchestrator.report.svg import standalone

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One task of a comparison."""

    answer: Answer
    records: Sequence[RunRecord]  # of all its runs
    lost: Sequence[str]  # missing runs, each with the reason


def write_all(directory: Path, name: str, sections: Sequence[Section], extra: Sequence[Card] = ()) -> list[Path]:
    """Write report.html, report.md with its pictures, and comparison.json into `directory`; return their paths."""
    files = page(name, sections, extra)
    for file, text in files.items():
        write(directory / file, text)
    return [directory / file for file in files]


def page(name: str, sections: Sequence[Section], extra: Sequence[Card] = ()) -> dict[str, str]:
    """Return the files of a comparison by name: HTML, Markdown, pictures and JSON.

    `extra` are further pictures, such as a task with a known optimum.
    """
    values = [_template_values(section) for section in sections]
    report = render("compare", {"title": name, "sections": values, "extra": extra})
    body = json.dumps({"v": SCHEMA, "name": name, "tasks": [as_json(s.answer) for s in sections]}, indent=1)
    drawn = (section[key] for section in values for key in ("frontier", "temperatures"))
    cards = (*(card for card in drawn if card), *extra)
    return {
        "report.html": report.html,
        "report.md": report.markdown,
        "comparison.json": body + "\n",
        **{card.file: redact(standalone(card.picture, card.legend)) for card in cards},
    }


def _template_values(section: Section) -> dict[str, Any]:
    answer = section.answer
    shown = [next(r for r in section.records if r.name == curve.name) for curve in _best_runs(answer)]
    trained = [curve for curve in answer.runs.curves if curve.is_trained]
    return {
        "answer": answer,
        "sentences": list(sentences(answer)),
        "frontier": frontier_card(answer),
        "spending": [
            Card(
                title=f"Win rate against {charts.LABELS[axis].format(unit=answer.unit)}",
                about="dashed vertical line: cost at which the methods are compared",
                picture=charts.spending(answer, axis),
            )
            for axis in AXES
            if answer.cost[axis] > 0
        ],
        "temperatures": temperatures_card(answer),
        "table": [_row(answer, method) for method in answer.order],
        "head_to_head": matchup_table(answer),
        "kl": [sentence for (a, b), gaps in answer.gaps.items() if (sentence := at_equal_kl(a, b, gaps))],
        "samples": [(record, samples) for record in shown if (samples := samples_of(record, at_most=4)) is not None],
        "labels": {curve.name: curve.label for curve in answer.runs.curves},
        "differences": config_differences(shown),
        "names": [record.name for record in shown],
        "runs": trained,
        "lost": section.lost,
        "caveats": list(caveats(answer)),
    }


def frontier_card(answer: Answer) -> Card | None:
    if not answer.runs.kl_of:
        return None
    about = "lines: each method's front; bars: 95 % intervals over prompts and seeds; faint: all measured points"
    return Card(
        title="Win rate against KL",
        about=about,
        picture=charts.frontier(answer),
        legend=tuple(answer.runs.methods),
        file=_file("frontier", answer.task),
    )


def temperatures_card(answer: Answer) -> Card | None:
    if not answer.temperatures:
        return None
    about = "grey: the base model; opponent at every temperature: the base at temperature 1; 0 is greedy"
    return Card(
        title="Win rate over the sampling temperature",
        about=about,
        picture=charts.temperatures(answer),
        file=_file("temperatures", answer.task),
    )


def _file(kind: str, task: str) -> str:
    return f"{kind}-{re.sub('[^A-Za-z0-9]+', '-', task).strip('-').lower()}.svg"


def _best_runs(answer: Answer) -> Iterator[RunCurve]:
    """Yield one run of each trained method: the first seed of its best setting."""
    for best in answer.best:
        first = answer.runs.of(best.method)[best.setting][0]
        if first.is_trained:
            yield first


def _row(answer: Answer, method: str) -> dict[str, Any]:
    """Return a row of the table: the final results of each setting of a method."""
    ends = [p for p in answer.points[method] if p.is_end]
    return {"method": method, "index": answer.runs.methods.index(method), "ends": ends}


def matchup_table(answer: Answer) -> list[list[str]]:
    """Return the win rates of the row's method over the column's, at equal compute."""
    by_pair: dict[tuple[str, str], Interval] = {}
    for d in answer.matchups.get("device_seconds", ()):
        by_pair[d.ours, d.theirs] = d.win
        by_pair[d.theirs, d.ours] = Interval(value=1 - d.win.value, low=1 - d.win.high, high=1 - d.win.low)
    return [[percent(by_pair[a, b]) if (a, b) in by_pair else "" for b in answer.order] for a in answer.order]


def caveats(answer: Answer) -> Iterator[str]:
    """Yield the limitations of a comparison, one sentence each."""
    runs = answer.runs
    seeds = runs.num_seeds
    if seeds == 1:
        yield "One seed: intervals are over prompts alone, and another seed may reverse the result."
    elif seeds < 3:
        yield f"{seeds} seeds: the spread between seeds is estimated from very few of them."
    prompts, num_answers = len(runs.prompts), runs.base.shape[1]
    yield f"{prompts} held-out prompts, {num_answers} answers of the base model to each; scored by {runs.gold}."
    if runs.mode == "greedy":
        yield "The answers are greedy; sampled answers were not measured (evaluation.num_samples)."
    if not runs.kl_of:
        yield "The KL to the base was not measured in every run, so there is no frontier."
    elif "batches" in runs.kl_of:
        yield f"The KL is measured on {runs.kl_of}: one number for all prompts."
    if len(runs.methods) > 2:
        count = len(runs.methods) * (len(runs.methods) - 1) // 2
        yield f"{count} pairs of methods are compared, each at 95 %: one in twenty differs by chance."
    if untrained := sorted({curve.method for curve in runs.curves if not curve.is_trained}):
        yield (
            f"{', '.join(untrained)}: the KL is an upper bound, log n − (n − 1)/n (arXiv 2401.01879). "
            "Nothing is trained, so it is the same at every cost; each of its answers costs n samples and their scores."
        )
    if trained_on := answer.runs.gold_trained_on:
        yield f"{runs.gold} decides, and {', '.join(trained_on)} trained on it: a method that exploits it is ahead."
    yield from runs.remarks
    yield "A method is represented by the settings that were swept; other settings may change the result."


# ------------------------------------------------------------------------------------------------ JSON


def as_json(answer: Answer) -> dict[str, Any]:
    """Return the comparison of a task as JSON values."""
    runs = answer.runs
    return {
        "task": answer.task,
        "answer": answer.headline,
        "sentences": list(sentences(answer)),
        "unit": answer.unit,
        "gold": runs.gold,
        "answers": runs.mode,
        "kl_of": runs.kl_of,
        "num_prompts": len(runs.prompts),
        "num_seeds": runs.num_seeds,
        "order": list(answer.order),
        "compared_at": {axis: _finite(cost) for axis, cost in answer.cost.items()},
        "points": [_point(p) for method in runs.methods for p in answer.points[method]],
        "head_to_head": {axis: [_matchup(d) for d in matchups] for axis, matchups in answer.matchups.items()},
        "equal_kl": [
            {"ours": a, "theirs": b, "at": [{"kl": g.kl, "difference": _interval(g.difference)} for g in gaps]}
            for (a, b), gaps in answer.gaps.items()
        ],
        "runs": [
            {"name": curve.name, "method": curve.method, "setting": curve.setting, "seed": curve.seed,
             "ended": curve.ended, "spent": {axis: _finite(curve.end(axis)) for axis in AXES}}
            for curve in runs.curves if curve.is_trained
        ],
        "temperatures": [{**asdict(p), "win": _interval(p.win)} for p in answer.temperatures],
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
