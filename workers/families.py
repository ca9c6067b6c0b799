"""Which families of models are right here, as `make families` measured it: known without importing torch.

families.json holds, by model type, how rows are given to a model of it ("packed", "apart" or "refused") and why not
packed. docs/families.md has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

TABLE = Path(__file__).with_name("families.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How models of one type are read.

    Example: `Family(name="mamba", rows="apart", why="its layers carry a state from token to token")`.
    """

    name: str
    rows: Literal["packed", "apart", "refused"]
    why: str = ""  # not packed
    lora: str = ""  # why there can be no adapters; empty: there can
    zero3: str = ""  # why it cannot be partitioned
    bfloat16: str = ""  # why it is refused in bfloat16


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the family of a model by its config.json; None: one that was not measured."""
    found = _table().get(str(config.get("model_type")))
    if found is None or found.rows != "packed":
        return found
    text = config.get("text_config")  # a composite whose text part is read apart
    part = _table().get(str(text.get("model_type"))) if isinstance(text, Mapping) else None
    return part if part is not None and part.rows != "packed" else found


@cache
def _table() -> Mapping[str, Family]:
    rows = json.loads(TABLE.read_text("utf-8"))
    return {name: Family(name=name, **row) for name, row in rows.items()}
