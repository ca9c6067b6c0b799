"""Maximum sequence length of a model, from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
"""Keys of a config that vLLM reads for the limit; the smallest value applies."""
IN_THE_LIMIT = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope")
"""Rotary scalings that are already included in `max_position_embeddings`."""


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return the tokens of the longest sequence, as vLLM derives its `max_model_len`; None: no limit in the config.

    >>> positions_of({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    8192
    """
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, Mapping) else config
    if _is_int(text.get("model_max_length")):  # Command-R, whose other keys are smaller
        limit = int(text["model_max_length"])
    elif not (limits := [int(text[key]) for key in KEYS if _is_int(text.get(key))]):
        return None
    else:
        limit = min(limits)
    if "gemma3" in str(config.get("model_type")) or "gemma3" in str(text.get("model_type")):
        return limit  # includes any scaling
    return int(limit * max([_factor(rope) for rope in _ropes(text)], default=1.0))


def unstretched_positions_of(config: Mapping[str, Any]) -> int | None:
    """Return the tokens of the longest text that is encoded with the rotary positions of a short one; None: any length.

    Beyond it, a model with longrope or dynamic scaling encodes a text by the length of that text, but vLLM by the
    largest length that any text may have.

    >>> longrope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    >>> unstretched_positions_of({"max_position_embeddings": 131072, "rope_scaling": longrope})
    4096
    """
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, Mapping) else config
    limits: list[int] = []
    for rope in _ropes(text):
        kind = rope.get("rope_type", rope.get("type"))
        own = (rope.get("original_max_position_embeddings"), text.get("original_max_position_embeddings"))
        built = text.get("max_position_embeddings") if kind == "dynamic" else None
        if kind in ("longrope", "su", "dynamic"):
            limits += [int(limit) for limit in (*own, built) if limit is not None and _is_int(limit)][:1]
    return min(limits, default=None)


def _ropes(text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the settings of the rotary embeddings: one, or one for each type of layer."""
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(rope, Mapping):
        return []
    inner = [value for value in rope.values() if isinstance(value, Mapping)]
    return inner or [rope]


def _factor(rope: Mapping[str, Any]) -> float:
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor")
    return 1.0 if kind in IN_THE_LIMIT or not isinstance(factor, int | float) else float(factor)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
