"""A model's tokenizer without torch or transformers: enough to count tokens and to know the special ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.types import Text


class TokenCounter:
    """The `tokenizer.json` of a model directory. `max_positions`: tokens that the model takes, as far as it says."""

    def __init__(self, tokenizer: Any, special: tuple[str, ...], max_positions: int | None = None) -> None:
        self._tokenizer, self.max_positions = tokenizer, max_positions
        self.special = special  # "<|im_start|>", "</s>", …
        longest_first = sorted(special, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if special else None

    @classmethod
    def of(cls, directory: Path) -> TokenCounter | None:
        """None where there is no `tokenizer.json` that can be read."""
        from tokenizers import Tokenizer

        try:
            raw = (directory / "tokenizer.json").read_text("utf-8")
            tokenizer = Tokenizer.from_str(raw)
            added = json.loads(raw).get("added_tokens") or ()
        except Exception:  # the library raises nothing more particular
            return None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        special = tuple(token["content"] for token in added if token.get("special") and token["content"])
        return cls(tokenizer, special, _max_positions(directory))

    def prompt(self, text: Text) -> list[int]:
        """The tokens of a prompt; of a conversation those of its messages, without the chat template's own."""
        return self._encode(text, add_special_tokens=isinstance(text, str))

    def completion(self, text: Text) -> list[int]:
        return self._encode(text, add_special_tokens=False)

    def special_in(self, text: Text) -> set[str]:
        """The special tokens that stand in a text: the tokenizer takes them for its own."""
        if self._pattern is None:
            return set()
        return {token for part in _parts(text) for token in self._pattern.findall(part)}

    def _encode(self, text: Text, *, add_special_tokens: bool) -> list[int]:
        return [
            token
            for part in _parts(text)
            for token in self._tokenizer.encode(part, add_special_tokens=add_special_tokens).ids
        ]


def _max_positions(directory: Path) -> int | None:
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
        return int(config["max_position_embeddings"]) or None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _parts(text: Text) -> Iterator[str]:
    if isinstance(text, str):
        yield text
    else:
        yield from (message["content"] for message in text if isinstance(message.get("content"), str))


def num_bytes(text: Text) -> int:
    """A text has hardly ever more tokens than bytes, so short ones need no counting."""
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in _parts(text))
