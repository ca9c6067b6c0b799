"""A matplotlib figure as SVG that lives inside a page: its colours are the page's, dark or light, its text is text.

Colours are drawn as place-holders and replaced by CSS variables, so one picture serves both schemes. Nothing in it
points outside of the page: no name space, no metadata, no font. `standalone` makes a file of such a picture.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, WARN = "#ab1001", "#ab1002", "#ab1003", "#ab1004", "#ab1005"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", WARN: "warn"}
MARKERS = "os^DvPXp"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b8558f", "#a67300", "#2f8ec6", "#6e5494", "#6b7280")
"""Okabe and Ito's palette, told apart by the colour-blind; from the fourth on darkened, to be read on white."""
LIGHT = {
    **{"paper": "#ffffff", "raised": "#f6f7f9", "ink": "#1b1f24", "muted": "#57606a", "grid": "#e3e6ea"},
    **{"warn": "#b3261e", "good": "#18794e"},
    **{f"s{i}": value for i, value in enumerate(SERIES)},
}
"""The light scheme of a page; the dark one is in templates/base.html."""
NUM_COLOURS = len(SERIES)
ROW, MARGIN, LETTERS_A_ROW = 13, 8, 64  # of the names above a picture, in its units
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


def colour(i: int) -> str:
    """The place-holder of series i."""
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


def standalone(picture: Markup, names: Sequence[str] = ()) -> str:
    """A picture of `inline` as the text of a file, light, with the names of its series above it: for Markdown, slides
    and papers."""
    text = str(picture)
    head, body = text[: text.index(">")], text[text.index(">") + 1 :]
    box = re.search(r'viewBox="[^"]* ([0-9.]+) ([0-9.]+)"', head)
    assert box, "inline writes a viewBox"
    rows = list(_rows(names))
    width, height, above = float(box[1]), float(box[2]), ROW * len(rows)
    head = re.sub(r'viewBox="[^"]*"', f'viewBox="0 {-above} {width:g} {height + above:g}"', head)
    drawn = [f'<rect y="{-above}" width="100%" height="100%" fill="var(--paper)"/>']
    for i, row in enumerate(rows):
        told = "".join(f'<tspan fill="var(--s{k % NUM_COLOURS})">■</tspan> {escape(name)}   ' for k, name in row)
        place = f'x="{MARGIN}" y="{ROW * (i + 0.75) - above:g}" font-size="8" font-family="var(--sans)"'
        drawn.append(f'<text {place} fill="var(--ink)" xml:space="preserve">{told}</text>')
    text = f'{head} xmlns="http://www.w3.org/2000/svg">' + "\n".join([*drawn, body])
    return re.sub(r"var\(--(\w+)\)", lambda found: LIGHT.get(found[1], "sans-serif"), text) + "\n"


def _rows(names: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """The names with their numbers, as many to a row as have room."""
    row: list[tuple[int, str]] = []
    for i, name in enumerate(names):
        if row and sum(len(n) + 5 for _, n in (*row, (i, name))) > LETTERS_A_ROW:
            yield row
            row = []
        row.append((i, name))
    if row:
        yield row


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
