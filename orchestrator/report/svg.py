"""A matplotlib figure as SVG that lives inside a page: its colours are the page's, dark or light, its text is text.

Colours are drawn as place-holders and replaced by CSS variables, so one picture serves both schemes. Nothing in it
points outside of the page: no name space, no metadata, no font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, WARN = "#ab1001", "#ab1002", "#ab1003", "#ab1004", "#ab1005"
NUM_COLOURS = 8
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", WARN: "warn"}
MARKERS = "os^DvPXp"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


def colour(i: int) -> str:
    """The place-holder of series i; the palette is Okabe and Ito's, told apart by the colour-blind."""
    return f"#ab20{i % NUM_COLOURS:02x}"


@contextmanager
def figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """An empty figure, in inches of 72 units; fonts are 8 units, so at 260 units across a phone they can be read."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(made)
        axes = made.subplots(rows, columns, squeeze=False)
        yield made, list(axes.flat)


def inline(made: Figure, *, title: str, about: str) -> Markup:
    """The figure as an element of a page. `title` and `about` are what a screen reader says in its place."""
    out = io.StringIO()
    made.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    head, body = text[: text.index(">") + 1], text[text.index(">") + 1 :]
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box, "matplotlib writes a viewBox"
    body = re.sub(r"\bid=\"[^\"]*\"", _kept_id, body).replace("xlink:href", "href")
    for place, name in {**VARIABLES, **{colour(i): f"s{i}" for i in range(NUM_COLOURS)}}.items():
        body = body.replace(place, f"var(--{name})")
    body = re.sub(r"'DejaVu Sans'(, sans-serif)?|\bsans-serif\b", "var(--sans)", body)
    body = re.sub(r"\n\s*", "\n", body)
    label = f"{title}. {about}"
    return Markup(f'<svg role="img" viewBox="{box[1]}" aria-label="{escape(label)}">{body}')


def _kept_id(found: re.Match[str]) -> str:
    """Only what is referred to keeps its name: clip paths and markers, whose names are hashes of what they hold."""
    return found[0] if re.match(r'id="[pmCDHh][0-9a-f]{8,}"', found[0]) else ""


_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.6,
}
