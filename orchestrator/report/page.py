"""Report of one or several run directories: a self-contained HTML page, or Markdown for a pull request.

    directories ──► records ──► text, charts ──► templates/run.html, templates/run.md

Text of users and models is escaped by jinja2. The page's content security policy forbids scripts and connections.
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
from orchestrator.report.panels import PANELS, UPDATE_PANELS, Series, scorer_panels, series_of
from orchestrator.report.rounds import rounds_of
from orchestrator.report.run_record import RunRecord, read_all
from orchestrator.report.svg import LIGHT
from orchestrator.rundir.directory import RunDirectory

if TYPE_CHECKING:
    from jinja2 import Environment

SHARE = "% of the run"  # x-axis if some runs count steps and others rounds
LONGEST = 600  # maximum length of an answer on the page, in characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A report in two formats. Secrets are redacted in both."""

    html: str
    markdown: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A chart of the page, and its curves for Markdown."""

    title: str
    about: str
    picture: Markup
    lines: tuple[Series, ...] = ()
    legend: tuple[str, ...] = ()  # names of its colours, if the page has no common legend
    file: str = ""  # file name of the chart beside a Markdown page


def report(directories: Sequence[RunDirectory]) -> Report:
    """Build the report of one run, or of several side by side."""
    records = read_all(directories)
    words = {record.word for record in records}
    word = words.pop() if len(words) == 1 else SHARE
    values: dict[str, Any] = {
        "title": records[0].name if len(records) == 1 else f"{len(records)} runs",
        "records": records,
        "findings": [list(findings(record)) for record in records],
        "cards": list(cards(records, word)),
        "rounds": [(record, table) for record in records if (table := rounds_of(record)) is not None],
        "cost": cost_cards(records),
        "times": [(record.name, Phases.of(record)) for record in records if record.records],
        "uses": [use.describe(unit_of(record)) for record in records for use in role_uses(record)],
        "phase_names": Phases.NAMES,
        "differences": config_differences(records),
        "samples": [(record, samples) for record in records if (samples := samples_of(record)) is not None],
        "not_measured": [list(not_measured(record)) for record in records],
    }
    return render("run", values)


def write(path: Path, text: str) -> None:
    """Write a file atomically. The file is not fsynced, because the report can be generated again."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cards(records: Sequence[RunRecord], word: str) -> list[Card]:
    """Draw the panels that have data, with the alarms if there is a single run.

    Runs of few long steps also have panels over optimiser updates.
    """
    alarms = [(alarm.step, alarm.name) for alarm in records[0].alarms] if len(records) == 1 else []
    drawn = []
    for panel in (*PANELS, *UPDATE_PANELS, *scorer_panels(records)):
        series = series_of(panel, records)
        if not any(len(line.steps) > 1 for line in series):
            continue
        if panel.by_update:
            picture = charts.curves(panel, series, word="update")
        else:
            shown = _scaled(series, records) if word == SHARE else series
            picture = charts.curves(panel, shown, alarms, word=word)
        drawn.append(Card(title=panel.title, about=panel.about, picture=picture, lines=tuple(series)))
    return drawn


def _scaled(series: Sequence[Series], records: Sequence[RunRecord]) -> list[Series]:
    ends = [max(1, record.steps_done) for record in records]
    return [replace(line, steps=tuple(100 * step / ends[line.run] for step in line.steps)) for line in series]


def cost_cards(records: Sequence[RunRecord]) -> list[Card]:
    """Draw the use of time and devices."""
    drawn = []
    timed = [(record.name, Phases.of(record)) for record in records if record.records]
    if timed:
        about = "wall-clock seconds by phase of the run"
        drawn.append(Card(title=charts.PHASES_TITLE, about=about, picture=charts.phases(timed)))
    for record in records:
        if uses := role_uses(record):
            unit = unit_of(record)
            about = f"{record.meter.device_seconds:,.0f} {unit}-seconds in total, without evaluation"
            title = charts.ROLES_TITLE + (f": {record.name}" if len(records) > 1 else "")
            drawn.append(Card(title=title, about=about, picture=charts.roles(uses, unit)))
    return drawn


# -------------------------------------------------------------------------------------------- templates


def render(template: str, values: dict[str, Any]) -> Report:
    """Render both formats of a template. Text of users is only ever a value, never part of a template."""
    html = _environment().get_template(f"{template}.html").render(values)
    markdown = _environment().get_template(f"{template}.md").render(values)
    return Report(html=redact(html), markdown=redact(markdown))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("orchestrator.report"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["light"] = LIGHT
    environment.filters |= {
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
    return environment


def percent(interval: Interval) -> str:
    """Format a share with its interval in per cent, such as "61 % [55, 67]"."""
    return f"{100 * interval.value:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def _visible(text: str) -> str:
    """Keep line ends, and replace other unprintable characters by a visible one."""
    return "".join(c if c == "\n" or c.isprintable() else "→" if c == "\t" else "·" for c in text)


def markdown_code(text: str) -> str:
    """Wrap text into a Markdown code span whose fence is longer than any run of backticks in the text."""
    text = shorten(one_line(text), LONGEST).replace("|", "¦") or " "
    runs = [len(run) for run in "".join(c if c == "`" else " " for c in text).split()]
    fence = "`" * (max(runs, default=0) + 1)
    gap = " " if runs else ""
    return f"{fence}{gap}{text}{gap}{fence}"
