"""Overrides `a.b=c` on the command line, applied to a recipe: lists replace, mappings merge."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from orchestrator.config.document import NO_CHARACTER, Document, KeyPath, Location, dotted, parse
from orchestrator.errors import SECRET, Problems


@dataclass(frozen=True, kw_only=True, slots=True)
class Override:
    """Override of one key. Example: `stages.base.seed=3` has `stage="base", path=("seed",)` and `value.data == 3`."""

    stage: str | None  # None: the last
    path: KeyPath
    value: Document
    text: str  # as given, secrets redacted


def parse_overrides(texts: Sequence[str], stage_names: Sequence[str], problems: Problems) -> list[Override]:
    """Parse overrides, adding those that cannot be parsed, or set the same key twice, to `problems`."""
    overrides = [override for text in texts if (override := _parse(text, stage_names, problems)) is not None]
    for i, override in enumerate(overrides):
        if earlier := next((other for other in overrides[:i] if _overlap(other, override)), None):
            why = f"the same key as in {earlier.text}"
            problems.add(override.text, where="command line", why=why, fix="keep one of them")
    return overrides


def _overlap(one: Override, other: Override) -> bool:
    """Return whether both set the same key, as `algorithm.beta=1` and `algorithm={beta: 2}` do."""
    if one.stage != other.stage:
        return False
    pairs = product(_leaves(one.path, one.value.data), _leaves(other.path, other.value.data))
    return any(a[: len(b)] == b[: len(a)] for a, b in pairs)


def _leaves(path: KeyPath, value: Any) -> list[KeyPath]:
    """Return the paths that an override sets: mappings merge, everything else replaces."""
    if not isinstance(value, dict):
        return [path]
    return [leaf for key, inner in value.items() for leaf in _leaves((*path, key), inner)]


def _parse(text: str, stage_names: Sequence[str], problems: Problems) -> Override | None:
    key, equals, value = text.partition("=")
    key = key.strip()
    if NO_CHARACTER.search(text):  # Python decodes bytes that are not UTF-8 as surrogates
        problems.add(ascii(text), where="command line", why="not UTF-8", fix="write it in UTF-8")
        return None
    if not equals or not key or not all(key.split(".")):
        fix = f"did you mean {key.lstrip('-')}=VALUE?" if key and not equals else ""
        problems.add(
            show_override(text),
            where="command line",
            why="not of the form key=value",
            fix=fix or "write a.b=c",
        )
        return None
    if key.startswith("-"):
        problems.add(
            show_override(text),
            where="command line",
            why="a key has no dashes",
            fix=f"write {text.lstrip('-')}",
        )
        return None
    stage = None
    if key.startswith("stages."):
        rest = key.removeprefix("stages.")
        stage = max((n for n in stage_names if rest.startswith(n + ".")), key=len, default=None)
        if stage is None:
            close = difflib.get_close_matches(rest.partition(".")[0], stage_names, n=1)
            fix = f"did you mean stages.{close[0]}? " if close else ""
            fix += f"the stages are: {', '.join(stage_names)}" if stage_names else "give the stage a name in the recipe"
            problems.add(show_override(text), where="command line", why="there is no such stage", fix=fix)
            return None
        key = rest.removeprefix(stage + ".")
    document = parse(value, f"command line, {key}", problems, one_line=True, strict=False)
    if document is None:
        return None
    path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    return Override(stage=stage, path=path, value=document, text=show_override(text))


def show_override(text: str) -> str:
    return SECRET.sub("[redacted]", text)


def apply(override: Override, document: Document, problems: Problems) -> None:
    """Set one value in `document`, with the command line as its location."""
    *parents, last = override.path
    target = document.data
    for depth, key in enumerate(parents):
        child = _child(target, key)
        if child is None and isinstance(target, dict):
            child = target[key] = {}
        if not isinstance(child, dict | list):
            below = dotted(override.path[: depth + 1])
            why = f"there is no {below}" if child is None else f"{below} is a single value without keys"
            problems.add(override.text, where="command line", why=why, fix=f"set {below} as a whole")
            return
        target = child
    if isinstance(target, list):
        if not isinstance(last, int) or not 0 <= last < len(target):
            why = f"{dotted(tuple(parents))} is a list of {len(target)} items"
            problems.add(
                override.text,
                where="command line",
                why=why,
                fix=f"give an index below {len(target)}, or the whole list",
            )
            return
        target[last] = _merged(target[last], override.value.data)
    else:
        target[str(last)] = _merged(target.get(str(last)), override.value.data)
    for path, place in override.value.places.items():
        document.places[(*override.path, *path)] = Location(text="command line", raw=place.raw)


def _child(data: Any, key: str | int) -> Any:
    if isinstance(data, list):
        return data[key] if isinstance(key, int) and 0 <= key < len(data) else None
    return data.get(str(key)) if isinstance(data, dict) else None


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
