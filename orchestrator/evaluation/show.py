"""Table of an evaluation for the terminal: one line per figure, both models and their difference side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TextIO, cast

from rich.console import Console
from rich.table import Table

from orchestrator.evaluation import agreement_show
from orchestrator.evaluation.figures import Figure
from orchestrator.evaluation.result import Result
from orchestrator.monitor.figures import number
from orchestrator.terminal import Forgiving

SHARES = ("truncated", "repeated_tail", "distinct_", "unique", "refusal", "over_refusal", "win_rate", "ties", "order_")


def show(result: Result, stream: TextIO | None = None) -> None:
    """Print the result to standard output, or to `stream`."""
    out = cast(TextIO, Forgiving(stream or sys.stdout))
    console = Console(file=out, highlight=False, markup=False, soft_wrap=True)
    ours, theirs = result.figures["model"], result.figures.get("against")
    console.print(_title(result))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("figure", "model", *(("against", "difference") if theirs is not None else ())):
        table.add_column(name, justify="left" if name == "figure" else "right", no_wrap=True)
    for name, figure in ours.items():
        cells = [name, format_figure(name, figure)]
        if theirs is not None:
            other, gap = theirs.get(name), result.differences.get(name)
            cells += [
                "" if other is None else format_figure(name, other),
                "" if gap is None else _difference(name, gap),
            ]
        table.add_row(*cells)
    console.print(table)
    agreement = [f"judge: {line}" for line in agreement_show.lines(result.agreement)]
    for line in (*win_lines(result.win_rates), *agreement, *(f"note: {remark}" for remark in result.remarks)):
        console.print(line)


def format_figure(name: str, figure: Figure) -> str:
    """Format a figure with its interval, such as `61.3 % [55.1, 67.0]` or `0.42 [0.31, 0.5]`."""
    share = _is_share(name)
    scale = 100 if share else 1
    value = number(figure.value * scale) + (" %" if share else "")
    if figure.low is None or figure.high is None:
        return value
    return f"{value} [{number(figure.low * scale)}, {number(figure.high * scale)}]"


def win_lines(win_rates: Mapping[str, Figure]) -> Iterator[str]:
    """Yield a line for each mode and each scorer or judge."""
    for name, figure in win_rates.items():
        mode, kind, by = name.split("/", 2)
        if kind != "win_rate":
            continue
        parts = [f"wins by {by} ({mode}): {format_figure(name, figure)} of {figure.num_prompts} prompts"]
        for kind, word in (
            ("ties", "ties"),
            ("length_controlled_win_rate", "at equal lengths"),
            ("order_consistency", "same verdict in both orders"),
        ):
            if other := win_rates.get(f"{mode}/{kind}/{by}"):
                parts.append(f"{word} {format_figure(kind, other)}")
        yield ", ".join(parts) + f" — {_verdict(figure)}"


def _verdict(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return "one prompt is not enough for a verdict"
    if figure.low > 0.5:
        return "better"
    return "worse" if figure.high < 0.5 else "no difference shown"


def _difference(name: str, gap: Figure) -> str:
    return ("+" if gap.value > 0 else "") + format_figure(name, gap) + (" *" if gap.excludes_zero else "")


def _is_share(name: str) -> bool:
    return any(part.startswith(SHARES) or part.endswith("win_rate") for part in name.split("/"))


def _title(result: Result) -> str:
    title = str(result.models["model"]["path"])
    if "against" in result.models:
        title += f"  against  {result.models['against']['path']}   (*: significant difference)"
    return title
