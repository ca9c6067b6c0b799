"""Whether two tokenizers mean the same by a token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def first_difference(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """The first token number on which two vocabularies differ, in words; empty when they are the same.

    >>> first_difference({"a": 0, "b": 1}, {"a": 0, "c": 1})
    "token 1 is 'b' in one and 'c' in the other"
    """
    one, other = ({number: token for token, number in v.items()} for v in (ours, theirs))
    for number in sorted(one.keys() | other.keys()):
        first, second = one.get(number), other.get(number)
        if first != second:
            return f"token {number} is {_shown(first)} in one and {_shown(second)} in the other"
    return ""


def _shown(token: str | None) -> str:
    return "missing" if token is None else repr(token)


def read_vocabulary(directory: Path) -> dict[str, int] | None:
    """Token to number, from the `tokenizer.json` of a model directory; None when there is none that can be read."""
    try:
        told = json.loads((directory / "tokenizer.json").read_text("utf-8"))
        listed: Any = told.get("model", {}).get("vocab", {})
        if isinstance(listed, list):  # Unigram: [token, score] in order
            listed = {token: number for number, (token, _) in enumerate(listed)}
        added = {token["content"]: token["id"] for token in told.get("added_tokens") or ()}
        return {**listed, **added}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
