"""Read a model directory without torch: its config, the shapes of its weights, its tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from orchestrator.data.sources import local
from workers.vocabulary import read_vocabulary

HEADER_BYTES = 100 * 2**20  # limit of safetensors
WITHOUT_DEFAULT_END = ("PreTrainedTokenizerFast", "TokenizersBackend")  # other classes have a default eos_token


def read_json(file: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None: there is none, or it cannot be read."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def config_of(path: str) -> dict[str, Any] | None:
    """Return config.json of a local directory, with the text part of a multimodal model at its top level."""
    config = read_json(local(path) / "config.json")
    inner = None if config is None else config.get("text_config")
    return {**config, **inner} if config is not None and isinstance(inner, dict) else config


def positive_int(config: dict[str, Any] | None, key: str) -> int | None:
    value = (config or {}).get(key)
    return value if type(value) is int and value > 0 else None


def tensors(path: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a local directory's weights by name, from the headers of its safetensors files."""
    return {
        name: tuple(entry["shape"])
        for file in sorted(local(path).glob("*.safetensors"))
        for name, entry in _header(file).items()
        if isinstance(entry, dict) and isinstance(entry.get("shape"), list)
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
    """Return id and text of the highest token that a text can be encoded to; None: it cannot be read here.

    Special tokens do not count: a padding token is never looked up, and often has no row in the embeddings.
    """
    directory = local(path)
    vocabulary = read_vocabulary(directory)
    tokenizer = read_json(directory / "tokenizer.json") or {}
    if not vocabulary:
        return None
    special = {token["content"] for token in tokenizer.get("added_tokens") or () if token.get("special")}
    return max(((number, token) for token, number in vocabulary.items() if token not in special), default=None)


def tokenizer_digest(path: str) -> str:
    """Return a digest of a tokenizer's vocabulary: 12 hexadecimal digits."""
    vocabulary = read_vocabulary(local(path)) or {}
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()[:12]


def has_no_end(path: str) -> bool:
    """Return whether the tokenizer certainly has no end-of-sequence token."""
    directory = local(path)
    config = read_json(directory / "tokenizer_config.json")
    if config is None or config.get("tokenizer_class") not in WITHOUT_DEFAULT_END:
        return False
    tokens = read_json(directory / "special_tokens_map.json") or {}
    return not (config.get("eos_token") or tokens.get("eos_token"))
