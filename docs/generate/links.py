"""Links of Markdown pages: between pages, to files of the repository, and to headings."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES: Mapping[str, str] = {
    "CONTRIBUTING.md": "how-it-is-built/contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the repository's root that the site shows, by their path below `docs/`."""

SHOWN = {".py": "python", ".yaml": "yaml", ".csv": "", ".json": "json", ".md": "markdown", "": "", ".yml": "yaml"}
"""Kinds of files that the site shows on a page of their own, with their language."""

FENCE = re.compile(r" {0,3}(```+|~~~+)")
LINK = re.compile(r"(?P<code>`+[^`]*`+)|(?P<before>\]\()(?P<target>[^)\s]+)(?P<after>\))")


def links(markdown: str) -> Iterator[str]:
    """Yield the targets of the links in a page, without those in code."""
    found: list[str] = []

    def note(target: str) -> str:
        found.append(target)
        return target

    rewrite(markdown, note)
    yield from found


def rewrite(markdown: str, change: Callable[[str], str]) -> str:
    """Return a page with every link target replaced by `change` of it; code stays as it is."""
    lines, fence = [], ""
    for line in markdown.splitlines(keepends=True):
        if start := FENCE.match(line):
            marker = start[1]
            if not fence:
                fence = marker
            elif marker.startswith(fence) and line.strip() == marker:
                fence = ""
        elif not fence:
            line = LINK.sub(lambda m: m[0] if m["code"] else f"{m['before']}{change(m['target'])}{m['after']}", line)
        lines.append(line)
    return "".join(lines)


def is_external(target: str) -> bool:
    """Return true for a link to another site."""
    return target.startswith(("http://", "https://", "mailto:"))


def repository_path(page: str, target: str) -> str:
    """Return the path in the repository of what a page links to, without the heading.

    Example: `repository_path("docs/how-it-is-built/walk.md", "../../workers/rollout.py#x") == "workers/rollout.py"`.
    """
    path = target.partition("#")[0]
    return os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page


def site_path(path: str) -> str:
    """Return the path below `docs/` of the page that shows a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return ROOT_PAGES.get(path, f"source/{path}.md")


def headings(markdown: str) -> set[str]:
    """Return the anchors of a page's headings."""
    found, fenced = set(), False
    for line in markdown.splitlines():
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced and (heading := re.match(r"#{1,6} (.*)", line)):
            found.add(anchor(heading[1]))
    return found


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as Python-Markdown makes it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_text).strip().lower())
