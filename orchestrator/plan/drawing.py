"""Drawing of a plan on a text page: patterns, colours and styled lines.

Patterns differ by character. Colours only add to them, and appear only on a terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TextIO, TypeAlias

from rich.console import Console
from rich.text import Text

from orchestrator.plan.roles import ByRole
from orchestrator.terminal import Forgiving

BAR = 40  # columns of a bar


@dataclass(frozen=True, slots=True)
class Pattern:
    """Characters and colour of one kind of bar; `plain` is for streams without block characters."""

    block: str
    plain: str
    style: str


STATES = Pattern("█", "#", "cyan")
TEMPORARY = Pattern("▓", "%", "yellow")
CACHE = Pattern("▒", "+", "green")
FIXED = Pattern("░", "-", "magenta")
FREE = Pattern("·", ".", "dim")
OVER = Pattern("X", "X", "bold red")
MEMORY_PATTERNS = {
    "states": STATES,
    "weights": STATES,
    "teacher's head": STATES,
    "gathered": TEMPORARY,
    "activations": TEMPORARY,
    "logits": TEMPORARY,
    "stepping": TEMPORARY,
    "keys and values": CACHE,
    "runtime": FIXED,
    "reserve": FIXED,
}
LEGEND = ((STATES, "weights, optimiser"), (TEMPORARY, "activations, buffers"), (CACHE, "KV cache"), (FIXED, "runtime"))
MARKS = ByRole(
    policy="P",
    critic="C",
    reference="R",
    base="B",
    teacher="T",
    rollout="G",
    reward="W",
    refusal="S",
    dataset="D",
    writer="F",
)
STYLES = ByRole(
    policy="cyan",
    critic="blue",
    reference="yellow",
    base="yellow",
    teacher="yellow",
    rollout="green",
    reward="magenta",
    refusal="magenta",
    dataset="white",
    writer="white",
)

Piece: TypeAlias = str | tuple[str, str]
"""Text, or text with a style."""


class Page:
    """Stream of styled lines that falls back to plain characters where the encoding lacks blocks."""

    def __init__(self, stream: TextIO) -> None:
        encoding = (getattr(stream, "encoding", None) or "ascii").lower()
        self._blocks = encoding.startswith("utf")
        self._console = Console(file=Forgiving(stream), highlight=False, soft_wrap=True)  # type: ignore[arg-type]

    def draw(self, pattern: Pattern, count: int) -> tuple[str, str]:
        return (pattern.block if self._blocks else pattern.plain) * count, pattern.style

    def line(self, *parts: Piece) -> None:
        self._console.print(Text.assemble(*parts))

    def heading(self, *parts: Piece) -> None:
        """Print an empty line and a bold one."""
        self.line()
        self.line(*((part, "bold") if isinstance(part, str) else part for part in parts))
