"""Run directories as one page: HTML that opens anywhere, or Markdown for a pull request.

    directories ──► stories ──► words, pictures ──► templates/run.html, templates/run.md

Whatever a user or a model wrote is escaped by jinja2; the page forbids itself scripts and every connection.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from orchestrator.errors import redact
from orchestrator.evaluation.statistics import Interval
from orchestrator.monitor.figures import duration, number, one_line, shorten, sparkline
from orchestrator.report import charts
from orchestrator.report.cost import Phases, role_uses, unit_of
from orchestrator.report.findings import config_differences, findings, not_measured, samples_of
from orchestrator.report.panels import PANELS, Series, scorer_panels, series_of
from orchestrator.report.run_record import RunRecord, read_all
from orchestrator.report.svg import LIGHT
from orchestrator.rundir.directory import RunDirectory

if TYPE_CHECKING:
    from jinja2 import Environment

SHARE = "% of the run"  # the axis of runs that count in steps and runs that count in rounds
LONGEST = 600  # characters of an answer that are shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The same in two forms. Both are without secrets."""

    html: str
    markdown: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One picture of the page, and its curves for Markdown."""

    title: str
    about: str
    picture: Markup
    lines: tuple[Series, ...] = ()
    legend: tuple[str, ...] = ()  # what its colours stand for, where the page does not say it
    file: str = ""  # its name beside a page in Markdown, where it is written out


def report(directories: Sequence[RunDirectory]) -> Report:
    """Of one run, or of several side by side."""
    stories = read_all(directories)
    words = {record.word for record in stories}
    word = words.pop() if len(words) == 1 else SHARE
    told: dict[str, Any] = {
        "title": stories[0].name if len(stories) == 1 else f"{len(stories)} runs",
        "stories": stories,
        "findings": [list(findings(record)) for record in stories],
        "cards": list(cards(stories, word)),
        "cost": cost_cards(stories),
        "times": [(record.name, Phases.of(record)) for record in stories if record.records],
        "uses": [use.describe(unit_of(record)) for record in stories for use in role_uses(record)],
        "phase_names": Phases.NAMES,
        "differences": config_differences(stories),
        "samples": [(record, found) for record in stories if (found := samples_of(record)) is not None],
        "not_measured": [list(not_measured(record)) for record in stories],
    }
    return render("run", told)


def write(path: Path, text: str) -> None:
    """As a whole, or not at all. Not fsynced: it can be made again."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, "utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def cards(stories: Sequence[RunRecord], word: str) -> list[Card]:
    alarms = [(alarm.step, alarm.name) for alarm in stories[0].alarms] if len(stories) == 1 else []
    return [
        Card(
            title=panel.title,
            about=panel.about,
            picture=charts.curves(panel, _scaled(series, stories) if word == SHARE else series, alarms, word=word),
            lines=tuple(series),
        )
        for panel in (*PANELS, *scorer_panels(stories))
        if (series := series_of(panel, stories)) and any(len(line.steps) > 1 for line in series)
    ]


def _scaled(series: Sequence[Series], stories: Sequence[RunRecord]) -> list[Series]:
    ends = [max(1, record.steps_done) for record in stories]
    return [replace(line, steps=tuple(100 * step / ends[line.run] for step in line.steps)) for line in series]


def cost_cards(stories: Sequence[RunRecord]) -> list[Card]:
    found = []
    timed = [(record.name, Phases.of(record)) for record in stories if record.records]
    if timed:
        about = "seconds on the clock, by what the run waited for or did"
        found.append(Card(title="Where the time went", about=about, picture=charts.phases(timed)))
    for record in stories:
        if uses := role_uses(record):
            unit = unit_of(record)
            counted = f"{record.meter.device_seconds:,.0f} {unit}-seconds of work in all, evaluation left out"
            title = "What each role reserved" + (f": {record.name}" if len(stories) > 1 else "")
            found.append(Card(title=title, about=counted, picture=charts.roles(uses, unit)))
    return found


# -------------------------------------------------------------------------------------------- templates


def render(template: str, told: dict[str, Any]) -> Report:
    """Raises nothing of what users wrote: that is data to both templates."""
    html = _environment().get_template(f"{template}.html").render(told)
    markdown = _environment().get_template(f"{template}.md").render(told)
    return Report(html=redact(html), markdown=redact(markdown))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("orchestrator.report"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["light"] = LIGHT
    made.filters |= {
        "number": number,
        "duration": duration,
        "clip": lambda text: shorten(_visible(text), LONGEST),
        "clip_long": lambda text: shorten(_visible(text), 20 * LONGEST),
        "spark": lambda line: sparkline(line.values, 24),
        "code": markdown_code,
        "percent": percent,
        "name_of": lambda name, names: names[name],
        "cell": lambda text: one_line(str(text)).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;"),
    }
    return made


def percent(interval: Interval) -> str:
    """`Interval(value=0.61, low=0.55, high=0.67)` is "61 % [55, 67]"."""
    return f"{100 * interval.value:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def _visible(text: str) -> str:
    """Line ends stay; other characters that a page would not show are named by a dot."""
    return "".join(c if c == "\n" or c.isprintable() else "→" if c == "\t" else "·" for c in text)


def markdown_code(text: str) -> str:
    """A code span that no text can leave: its fence is longer than any run of back-ticks within."""
    text = shorten(one_line(text), LONGEST).replace("|", "¦") or " "
    runs = [len(run) for run in "".join(c if c == "`" else " " for c in text).split()]
    fence = "`" * (max(runs, default=0) + 1)
    gap = " " if runs else ""
    return f"{fence}{gap}{text}{gap}{fence}"
