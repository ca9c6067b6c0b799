"""Matplotlib figures as inline SVG, with the colours of the page, light or dark, and with real text.

Colours are drawn as placeholders and replaced by CSS variables, so one picture serves both colour schemes. The SVG
refers to nothing outside the page: no namespace, no metadata, no font. `standalone` turns such a picture into a file.
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
"""Palette of Okabe and Ito, distinguishable by the colour-blind; from the fourth colour on darkened for contrast."""
LIGHT = {
    **{"paper": "#ffffff", "raised": "#f6f7f9", "ink": "#1b1f24", "muted": "#57606a", "grid": "#e3e6ea"},
    **{"warn": "#b3261e", "good": "#18794e"},
    **{f"s{i}": value for i, value in enumerate(SERIES)},
}
"""Light colour scheme of a page. The dark one is in templates/base.html."""
NUM_COLOURS = len(SERIES)
ROW, MARGIN, CHARACTERS_PER_ROW = 13, 8, 64  # layout of the names above a standalone picture, in its units
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


def colour(i: int) -> str:
    """Return the placeholder colour of series i."""
    return f"#ab20{i % NUM_COLOURS:02x}"


@contextmanager
def figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open an empty figure. Sizes are in inches of 72 units.

    Fonts have 8 units, which is readable where a figure of 260 units fills the width of a phone.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(fig)
        axes = fig.subplots(rows, columns, squeeze=False)
        yield fig, list(axes.flat)


def inline(fig: Figure, *, title: str, about: str) -> Markup:
    """Convert a figure to an SVG element. Screen readers read `title` and `about` in its place."""
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    head, body = text[: text.index(">") + 1], text[text.index(">") + 1 :]
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box, "matplotlib writes a viewBox"
    body = re.sub(r"\bid=\"[^\"]*\"", _keep_referenced_id, body).replace("xlink:href", "href")
    for place, name in {**VARIABLES, **{colour(i): f"s{i}" for i in range(NUM_COLOURS)}}.items():
        body = body.replace(place, f"var(--{name})")
    body = re.sub(r"'DejaVu Sans'(, sans-serif)?|\bsans-serif\b", "var(--sans)", body)
    body = re.sub(r"\n\s*", "\n", body)
    label = f"{title}. {about}"
    return Markup(f'<svg role="img" viewBox="{box[1]}" aria-label="{escape(label)}">{body}')


def standalone(picture: Markup, names: Sequence[str] = ()) -> str:
    """Convert a picture of `inline` to the text of an SVG file, for Markdown, slides and papers.

    The file uses the light scheme and shows the names of the series above the picture.
    """
    text = str(picture)
    head, body = text[: text.index(">")], text[text.index(">") + 1 :]
    box = re.search(r'viewBox="[^"]* ([0-9.]+) ([0-9.]+)"', head)
    assert box, "inline writes a viewBox"
    rows = list(_rows(names))
    width, height, above = float(box[1]), float(box[2]), ROW * len(rows)
    head = re.sub(r'viewBox="[^"]*"', f'viewBox="0 {-above} {width:g} {height + above:g}"', head)
    drawn = [f'<rect y="{-above}" width="100%" height="100%" fill="var(--paper)"/>']
    for i, row in enumerate(rows):
        spans = "".join(f'<tspan fill="var(--s{k % NUM_COLOURS})">■</tspan> {escape(name)}   ' for k, name in row)
        place = f'x="{MARGIN}" y="{ROW * (i + 0.75) - above:g}" font-size="8" font-family="var(--sans)"'
        drawn.append(f'<text {place} fill="var(--ink)" xml:space="preserve">{spans}</text>')
    text = f'{head} xmlns="http://www.w3.org/2000/svg">' + "\n".join([*drawn, body])
    return re.sub(r"var\(--(\w+)\)", lambda match: LIGHT.get(match[1], "sans-serif"), text) + "\n"


def _rows(names: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Break the numbered names into rows of at most CHARACTERS_PER_ROW characters."""
    row: list[tuple[int, str]] = []
    for i, name in enumerate(names):
        if row and sum(len(n) + 5 for _, n in (*row, (i, name))) > CHARACTERS_PER_ROW:
            yield row
            row = []
        row.append((i, name))
    if row:
        yield row


def _keep_referenced_id(match: re.Match[str]) -> str:
    """Keep the ids of clip paths and markers, which are referred to and are hashes of their content. Drop others."""
    return match[0] if re.match(r'id="[pmCDHh][0-9a-f]{8,}"', match[0]) else ""


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
