"""What the files of a model directory say, read without torch: its config, the shapes of its weights, its tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from orchestrator.data.sources import local
from workers.vocabulary import read_vocabulary

HEADER_BYTES = 100 * 2**20  # safetensors' own limit
NO_END_OF_ITS_OWN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # other classes name an end of sequence themselves


def read_json(file: Path) -> dict[str, Any] | None:
    """An object in a file; None when there is none that can be read."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def config_of(path: str) -> dict[str, Any] | None:
    """config.json of a local directory; of a model that also sees or hears, the part about text."""
    config = read_json(local(path) / "config.json")
    inner = None if config is None else config.get("text_config")
    return {**config, **inner} if config is not None and isinstance(inner, dict) else config


def whole_number(config: dict[str, Any] | None, key: str) -> int | None:
    found = (config or {}).get(key)
    return found if type(found) is int and found > 0 else None


def tensors(path: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a local directory, off the headers of its safetensors files."""
    return {
        name: tuple(about["shape"])
        for file in sorted(local(path).glob("*.safetensors"))
        for name, about in _header(file).items()
        if isinstance(about, dict) and isinstance(about.get("shape"), list)
    }


def _header(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if not 0 < size <= HEADER_BYTES:
            return {}
        try:
            header = json.loads(opened.read(size))
        except (ValueError, RecursionError):
            return {}
    return header if isinstance(header, dict) else {}


def highest_token(path: str) -> tuple[int, str] | None:
    """Number and text of the last token that a text may come to; None: not known here.

    Special tokens do not count: one that was added for padding is never looked up, and often no row was added for it.
    """
    directory = local(path)
    vocabulary = read_vocabulary(directory)
    told = read_json(directory / "tokenizer.json") or {}
    if not vocabulary:
        return None
    special = {token["content"] for token in told.get("added_tokens") or () if token.get("special")}
    return max(((number, token) for token, number in vocabulary.items() if token not in special), default=None)


def tokenizer_digest(path: str) -> str:
    """Twelve digits that differ where tokenizers do."""
    vocabulary = read_vocabulary(local(path)) or {}
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()[:12]


def has_no_end(path: str) -> bool:
    """Whether the tokenizer certainly has no end-of-sequence token."""
    directory = local(path)
    config = read_json(directory / "tokenizer_config.json")
    if config is None or config.get("tokenizer_class") not in NO_END_OF_ITS_OWN:
        return False
    listed = read_json(directory / "special_tokens_map.json") or {}
    return not (config.get("eos_token") or listed.get("eos_token"))
