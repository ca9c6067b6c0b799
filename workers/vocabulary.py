"""Comparison of the vocabularies of two tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def first_difference(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """Describe the first token id at which two vocabularies differ; an empty string if they are equal.

    >>> first_difference({"a": 0, "b": 1}, {"a": 0, "c": 1})
    "token 1 is 'b' in one and 'c' in the other"
    """
    one, other = ({number: token for token, number in vocabulary.items()} for vocabulary in (ours, theirs))
    for number in sorted(one.keys() | other.keys()):
        first, second = one.get(number), other.get(number)
        if first != second:
            return f"token {number} is {_shown(first)} in one and {_shown(second)} in the other"
    return ""


def _shown(token: str | None) -> str:
    return "missing" if token is None else repr(token)


def read_vocabulary(directory: Path) -> dict[str, int] | None:
    """Read {token: id} from the `tokenizer.json` of a model directory; None if the file is missing or unreadable."""
    try:
        content = json.loads((directory / "tokenizer.json").read_text("utf-8"))
        vocabulary: Any = content.get("model", {}).get("vocab", {})
        if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        return {**vocabulary, **added}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
