"""Markdown pages of the repository, and the code blocks in them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"])
COMMANDS = ("rlhf ", "make ", "python ")
FENCED = re.compile(r"^ {0,3}```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ {0,3}```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A piece of a page. Example: `Block(page="README.md", language="sh", text="make test\\n")`."""

    page: str
    language: str
    text: str


def name_of(page: Path) -> str:
    """Return the path of a page in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced code blocks of a page."""
    for found in FENCED.finditer(page.read_text("utf-8")):
        yield Block(page=name_of(page), language=found["language"], text=textwrap.dedent(found["text"]))


def command_lines(page: Path) -> Iterator[str]:
    """Yield the command lines of a page: those of `sh` blocks, and indented lines that begin with a command."""
    for block in blocks(page):
        if block.language in ("sh", "bash"):
            yield from filter(None, map(str.strip, _joined(block.text).splitlines()))
    outside = _joined(FENCED.sub("", page.read_text("utf-8")))
    for line in outside.splitlines():
        if line.startswith("    ") and line.strip().startswith(COMMANDS):
            yield line.strip()


def _joined(text: str) -> str:
    """Join lines that end with a backslash to the next one."""
    return re.sub(r"\\\n\s*", "", text)
