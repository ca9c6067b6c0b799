"""A world whose frontier is known, with the points of methods on it: a picture beside that of a comparison."""

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

Place = tuple[float, float]


class KnownPoint(Settings):
    """Where a method stood with one setting, in each of several runs: (x, y)."""

    setting: str
    runs: Annotated[tuple[Place, ...], Field(min_length=1)]


class KnownMethod(Settings):
    name: str
    points: Annotated[tuple[KnownPoint, ...], Field(min_length=1)]


class KnownOptimum(Settings):
    """What benchmarks/frontier.py writes."""

    about: str
    x: str
    y: str
    best: Annotated[tuple[Place, ...], Field(min_length=2)]  # no policy is above it
    methods: tuple[KnownMethod, ...]


def read_known(path: Path) -> KnownOptimum:
    """Raises BadInput for a file that is none."""
    try:
        return KnownOptimum.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        why = str(error).splitlines()[0]
        fix = "write it anew with: python -m benchmarks.frontier"
        raise BadInput(Problem(what="not the points of a world", where=str(path), why=why, fix=fix)) from None


def known_card(known: KnownOptimum) -> Card:
    shortfalls = [f"{m.name} {_percent(shortfall(known, m))}" for m in known.methods]
    return Card(
        title="The best possible, and the methods",
        about=f"{known.about}; of what is reachable at the same KL is missing: {', '.join(shortfalls)}",
        picture=_picture(known),
        legend=tuple(method.name for method in known.methods),
        file="frontier-known.svg",
    )


def shortfall(known: KnownOptimum, method: KnownMethod) -> float:
    """How much of what is possible at its KL, counted from the reference's, a method misses: mean over its points."""
    best = np.asarray(sorted(known.best))
    missing = []
    for x, y in [run for point in method.points for run in point.runs]:
        most = float(np.interp(x, best[:, 0], best[:, 1]))
        missing.append((most - y) / (most - float(best[0, 1])) if most > best[0, 1] else 0.0)
    return float(np.mean(missing))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _picture(known: KnownOptimum) -> Markup:
    with figure(4.6, 3.0) as (made, (axes,)):
        best = np.asarray(sorted(known.best))
        axes.plot(best[:, 0], best[:, 1], color=INK, linewidth=1.2, linestyle=(0, (5, 2)), zorder=1)
        told = [f"the best possible reaches {number(best[-1, 1])} at {number(best[-1, 0])}"]
        for i, method in enumerate(known.methods):
            runs = np.asarray([run for point in method.points for run in point.runs])
            # Where all reach the best they lie on one another: each is smaller than those below it.
            axes.plot(runs[:, 0], runs[:, 1], linestyle="", marker=MARKERS[i % len(MARKERS)], color=colour(i),
                      ms=8 - 1.5 * min(i, 3), markeredgecolor=PAPER)  # fmt: skip
            told.append(f"{method.name} misses {_percent(shortfall(known, method))} of it")
        axes.set_xlabel(known.x, labelpad=1)
        axes.set_ylabel(known.y)
        most = max(x for m in known.methods for p in m.points for x, _ in p.runs)
        place = (1.12 * most, float(np.interp(1.12 * most, best[:, 0], best[:, 1])))
        axes.annotate("best possible", place, xytext=(0, 5), textcoords="offset points", color=MUTED, ha="right")
        axes.set_xlim(0, 1.15 * most)
        return inline(made, title="The best possible, and the methods", about="; ".join(told))
