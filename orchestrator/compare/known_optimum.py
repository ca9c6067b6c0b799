"""Chart of methods in a toy world whose optimal policies are known, shown beside a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from markupsafe import Markup
from pydantic import Field, ValidationError

from orchestrator.errors import BadInput, Problem
from orchestrator.monitor.figures import number
from orchestrator.report.page import Card
from orchestrator.report.svg import INK, MARKERS, MUTED, PAPER, colour, figure, inline
from workers.config import Settings

XY = tuple[float, float]


class KnownPoint(Settings):
    """Results of a method with one setting."""

    setting: str
    runs: Annotated[tuple[XY, ...], Field(min_length=1)]  # (KL, reward) of each run


class KnownMethod(Settings):
    name: str
    points: Annotated[tuple[KnownPoint, ...], Field(min_length=1)]


class KnownOptimum(Settings):
    """Content of the file that benchmarks/frontier.py writes."""

    about: str  # description of the world
    x: str  # label of the x axis
    y: str  # label of the y axis
    best: Annotated[tuple[XY, ...], Field(min_length=2)]  # (KL, reward) of the optimal policies
    methods: tuple[KnownMethod, ...]


def read_known(path: Path) -> KnownOptimum:
    """Read a file of `python -m benchmarks.frontier`. Raises BadInput for any other file."""
    try:
        return KnownOptimum.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        why = str(error).splitlines()[0]
        fix = "write it again with: python -m benchmarks.frontier"
        raise BadInput(Problem(what="not a file of known optima", where=str(path), why=why, fix=fix)) from None


def known_card(known: KnownOptimum) -> Card:
    shortfalls = [f"{m.name} {_percent(shortfall(known, m))}" for m in known.methods]
    return Card(
        title="Methods against the known optimum",
        about=f"{known.about}; mean shortfall from the best reward at the same KL: {', '.join(shortfalls)}",
        picture=_picture(known),
        legend=tuple(method.name for method in known.methods),
        file="frontier-known.svg",
    )


def shortfall(known: KnownOptimum, method: KnownMethod) -> float:
    """Return the mean shortfall of a method: missing share of the largest reward gain that is possible at its KL."""
    best = np.asarray(sorted(known.best))
    shortfalls = []
    for x, y in [run for point in method.points for run in point.runs]:
        optimum = float(np.interp(x, best[:, 0], best[:, 1]))
        shortfalls.append((optimum - y) / (optimum - float(best[0, 1])) if optimum > best[0, 1] else 0.0)
    return float(np.mean(shortfalls))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _picture(known: KnownOptimum) -> Markup:
    with figure(4.6, 3.0) as (fig, (axes,)):
        best = np.asarray(sorted(known.best))
        axes.plot(best[:, 0], best[:, 1], color=INK, linewidth=1.2, linestyle=(0, (5, 2)), zorder=1)
        lines = [f"the optimum reaches {number(best[-1, 1])} at {number(best[-1, 0])}"]
        for i, method in enumerate(known.methods):
            runs = np.asarray([run for point in method.points for run in point.runs])
            # Markers of methods at the optimum overlap: each is smaller than those below it.
            axes.plot(runs[:, 0], runs[:, 1], linestyle="", marker=MARKERS[i % len(MARKERS)], color=colour(i),
                      ms=8 - 1.5 * min(i, 3), markeredgecolor=PAPER)  # fmt: skip
            lines.append(f"{method.name} falls short by {_percent(shortfall(known, method))}")
        axes.set_xlabel(known.x, labelpad=1)
        axes.set_ylabel(known.y)
        right = max(x for m in known.methods for p in m.points for x, _ in p.runs)
        xy = (1.12 * right, float(np.interp(1.12 * right, best[:, 0], best[:, 1])))
        axes.annotate("best possible", xy, xytext=(0, 5), textcoords="offset points", color=MUTED, ha="right")
        axes.set_xlim(0, 1.15 * right)
        return inline(fig, title="Methods against the known optimum", about="; ".join(lines))
