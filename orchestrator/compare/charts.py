"""Charts of a comparison: win rate against KL, and win rate against cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from orchestrator.compare.answer import Answer
from orchestrator.compare.frontier import Point
from orchestrator.compare.run_curves import Axis
from orchestrator.monitor.figures import number
from orchestrator.report.page import percent
from orchestrator.report.svg import GRID, INK, MARKERS, MUTED, PAPER, colour, figure, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS: dict[Axis, str] = {
    "device_seconds": "{unit}-seconds of compute",
    "seconds": "wall-clock seconds",
    "tokens": "training tokens",
}


def frontier(answer: Answer) -> Markup:
    """Draw win rate against KL: each method's front with its intervals, and all measured points behind it."""
    with figure(4.6, 3.3) as (fig, (axes,)):
        axes.axhline(50, color=GRID, linewidth=1)
        for i, method in enumerate(answer.runs.methods):
            _front(axes, i, [p for p in answer.points[method] if p.kl is not None])
        axes.set_xlabel("KL to the base, nats per completion", labelpad=1)
        axes.set_ylabel("win rate against the base, %")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        about = "; ".join(_front_text(method, answer.points[method]) for method in answer.runs.methods)
        return inline(fig, title="Win rate against KL", about=about)


def _front(axes: Axes, i: int, points: Sequence[Point]) -> None:
    behind = [p for p in points if not p.on_front]
    front = sorted((p for p in points if p.on_front), key=lambda p: p.kl.value if p.kl else 0.0)
    style: dict[str, Any] = {"color": colour(i), "marker": MARKERS[i % len(MARKERS)], "markeredgecolor": PAPER}
    axes.plot([_kl(p) for p in behind], [100 * p.win.value for p in behind], linestyle="", alpha=0.4, ms=3, **style)
    x, y = [_kl(p) for p in front], [100 * p.win.value for p in front]
    bars: dict[str, Any] = {"color": colour(i), "linewidth": 0.8, "alpha": 0.7}
    axes.vlines(x, [100 * p.win.low for p in front], [100 * p.win.high for p in front], **bars)
    axes.hlines(y, [p.kl.low for p in front if p.kl], [p.kl.high for p in front if p.kl], **bars)
    # Between the base and the first point nothing was measured; the true curve may lie above the dotted line.
    axes.plot([0.0, *x[:1]], [50.0, *y[:1]], color=colour(i), linewidth=0.8, linestyle=(0, (1, 2.5)))
    axes.plot(x, y, linewidth=1.6, ms=5, **style)
    for p in front:
        if p.is_end and p.setting:
            xy = (_kl(p), 100 * p.win.value)
            axes.annotate(p.setting, xy, xytext=(4, -8), textcoords="offset points", fontsize=6.5, color=MUTED)


def _kl(point: Point) -> float:
    assert point.kl is not None
    return point.kl.value


def _front_text(method: str, points: Sequence[Point]) -> str:
    front = sorted((p for p in points if p.on_front and p.kl), key=_kl)
    return f"{method}: " + ", ".join(f"{percent(p.win)} at KL {number(_kl(p))}" for p in front)


def _is_trained(answer: Answer, method: str) -> bool:
    return any(curve.is_trained for curve in answer.runs.curves if curve.method == method)


def temperatures(answer: Answer) -> Markup:
    """Draw the win rate over the base at temperature 1 against the temperature of the answers, one line per method."""
    with figure(3.7, 2.5) as (fig, (axes,)):
        axes.axhline(50, color=GRID, linewidth=1)
        about = []
        for method in dict.fromkeys(p.method for p in answer.temperatures):
            points = [p for p in answer.temperatures if p.method == method]
            i = answer.runs.methods.index(method) if method in answer.runs.methods else None
            colour_of = MUTED if i is None else colour(i)
            x, y = [p.temperature for p in points], [100 * p.win.value for p in points]
            marker = "." if i is None else MARKERS[i % len(MARKERS)]
            axes.plot(x, y, color=colour_of, marker=marker, ms=4, markeredgecolor=PAPER)
            lows, highs = [100 * p.win.low for p in points], [100 * p.win.high for p in points]
            axes.vlines(x, lows, highs, color=colour_of, linewidth=0.8, alpha=0.7)
            about.append(f"{method}: " + ", ".join(f"{percent(p.win)} at {number(p.temperature)}" for p in points))
        axes.set_xlabel("sampling temperature", labelpad=1)
        axes.set_ylabel("win rate, %")
        return inline(fig, title="Win rate over the sampling temperature", about="; ".join(about))


def spending(answer: Answer, axis: Axis) -> Markup:
    """Draw win rate against cost, one line per setting, with the interval at its end."""
    with figure(3.7, 2.5) as (fig, (axes,)):
        axes.axhline(50, color=GRID, linewidth=1)
        ends = []
        for i, method in enumerate(answer.runs.methods):
            if not _is_trained(answer, method):
                continue
            settings = dict.fromkeys(p.setting for p in answer.points[method])
            for j, setting in enumerate(settings):
                points = sorted((p for p in answer.points[method] if p.setting == setting), key=lambda p: p.spent[axis])
                x, y = [0.0, *(p.spent[axis] for p in points)], [50.0, *(100 * p.win.value for p in points)]
                dashes = "-" if j == 0 else (0, (4 / j, 1.5))
                axes.plot(x, y, color=colour(i), linestyle=dashes, marker=MARKERS[i % len(MARKERS)], ms=3,
                          markeredgecolor=PAPER)  # fmt: skip
                end = points[-1].win
                axes.plot([x[-1], x[-1]], [100 * end.low, 100 * end.high], color=colour(i), linewidth=0.8, alpha=0.7)
                ends.append(f"{method} {setting}: {percent(end)} for {number(x[-1])}")
        if axis in answer.cost:
            axes.axvline(answer.cost[axis], color=INK, linewidth=0.7, linestyle=(0, (2, 2)))
        axes.set_xlabel(LABELS[axis].format(unit=answer.unit), labelpad=1)
        axes.set_ylabel("win rate, %")
        axes.locator_params(axis="x", nbins=6)
        return inline(fig, title=f"Win rate against {LABELS[axis].format(unit=answer.unit)}", about="; ".join(ends))
