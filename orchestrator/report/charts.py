"""Charts of a run's report: curves over steps, and the use of time and devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from orchestrator.evaluation.statistics import Values
from orchestrator.monitor.figures import number
from orchestrator.report.cost import Phases, RoleUse
from orchestrator.report.panels import Panel, Series
from orchestrator.report.svg import INK, MARKERS, MUTED, PAPER, WARN, colour, figure, inline

WIDTH, HEIGHT = 3.7, 2.0  # size of a panel in inches
PHASES_TITLE, ROLES_TITLE = "Time by phase", "Device time by role"
NOISY = 24  # number of points above which a smoothed line is drawn over the raw one


def curves(panel: Panel, series: Sequence[Series], alarms: Sequence[tuple[int, str]] = (), *, word: str) -> Markup:
    """Draw the curves of a panel.

    Args:
        panel: panel to draw.
        series: its lines.
        alarms: (step, name) of each alarm, drawn as a vertical line.
        word: label of the x-axis, such as "step".
    """
    with figure(WIDTH, HEIGHT) as (fig, (axes,)):
        for line in series:
            _line(axes, line, points=panel.points)
        for step, _ in alarms:
            axes.axvline(step, color=WARN, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axes.set_xlabel(word, labelpad=1)
        axes.margins(x=0.03, y=0.1)
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.locator_params(axis="y", nbins=5)
        return inline(fig, title=panel.title, about=_description(panel, series, alarms, word))


def _line(axes, line: Series, *, points: bool) -> None:  # type: ignore[no-untyped-def]
    steps, values = np.asarray(line.steps), np.asarray(line.values)
    style = (0, (2, 1.2)) if line.dashed else "-"
    common = {"color": colour(line.run), "linestyle": style}
    if points or len(steps) <= NOISY:
        axes.plot(steps, values, marker=MARKERS[line.run % len(MARKERS)], markeredgecolor=PAPER, **common)
        return
    axes.plot(steps, values, linewidth=0.7, alpha=0.35, **common)
    axes.plot(steps, smooth(values, max(3, len(values) // 16)), **common)


def smooth(values: Values, window: int) -> Values:
    """Average `window` values around each value, [n] -> [n], and fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    half = window // 2
    low = np.maximum(0, np.arange(len(values)) - half)
    high = np.minimum(len(values), np.arange(len(values)) + half + 1)
    means: Values = (sums[high] - sums[low]) / (high - low)
    return means


def _description(panel: Panel, series: Sequence[Series], alarms: Sequence[tuple[int, str]], word: str) -> str:
    """Describe a chart in words, for screen readers."""
    lines = [
        f"{line.label}: {number(line.values[0])} at {word} {line.steps[0]:g}, {number(line.values[-1])} at {word} "
        f"{line.steps[-1]:g}, between {number(min(line.values))} and {number(max(line.values))}"
        for line in series
    ]
    marks = [f"alarm {name} at {word} {step}" for step, name in alarms]
    return f"{panel.about}. " + "; ".join([*lines, *marks])


# -------------------------------------------------------------------------------------------- cost


def phases(rows: Sequence[tuple[str, Phases]]) -> Markup:
    """Draw the wall-clock time by phase, one bar per run."""
    names = [name for name in Phases.NAMES if any(p.seconds.get(name, 0) > 0 for _, p in rows)]
    with figure(4.6, 0.75 + 0.42 * len(rows)) as (fig, (axes,)):
        _bars(axes, [label for label, _ in rows])
        left = np.zeros(len(rows))
        for name in names:
            sizes = np.asarray([p.seconds.get(name, 0.0) for _, p in rows])
            axes.barh(range(len(rows)), sizes, left=left, color=colour(Phases.NAMES.index(name)), height=0.62,
                      edgecolor=PAPER, linewidth=0.8, label=name)  # fmt: skip
            left += sizes
        axes.set_xlabel("wall-clock seconds", labelpad=1)
        description = "; ".join(f"{label}: {phases.describe()}" for label, phases in rows)
        return inline(fig, title=PHASES_TITLE, about=description)


def roles(uses: Sequence[RoleUse], unit: str) -> Markup:
    """Draw the device time that each role of a run reserved, and the busy share of it."""
    with figure(4.6, 0.75 + 0.3 * len(uses)) as (fig, (axes,)):
        _bars(axes, [use.role for use in uses])
        for i, use in enumerate(uses):
            axes.barh(i, use.reserved, color="none", edgecolor=MUTED, linewidth=0.8, height=0.62)
            if use.busy is not None:
                axes.barh(i, min(use.busy, use.reserved), color=colour(0), height=0.62)
            else:
                axes.text(use.reserved / 2, i, "not measured", ha="center", va="center", color=MUTED, fontsize=7)
        axes.set_xlabel(f"{unit}-seconds: filled: busy, empty: waiting", labelpad=1)
        description = "; ".join(use.describe(unit) for use in uses)
        return inline(fig, title=ROLES_TITLE, about=description)


def _bars(axes, labels: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels], color=INK)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _short(label: str, longest: int = 22) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"
