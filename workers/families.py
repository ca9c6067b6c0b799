"""Which families of models are right here, as `make families` measured it: known without importing torch.

families.json holds, by model type, how rows are given to a model of it ("packed", "apart" or "refused"), why not
packed, and what the engine cannot do with it; then the types of models that write no text, and those of which no small
model could be built. They are all types that the installed transformers knows. docs/families.md has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

TABLE = Path(__file__).with_name("families.json")
OF_NO_TEXT = "transformers has no causal language model of this type"
UNKNOWN = "transformers has no models of this type, and code that a model brings along is never run"


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
    engine: str = ""  # why vLLM cannot sample from it
    engine_lora: str = ""  # why vLLM takes no adapters of it
    engine_lora_cpu: str = ""  # and why not on a CPU alone


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the family of a model by its config.json; None: the config names none, or one that was not measured."""
    name = config.get("model_type")
    table, others, unmeasured = _measured()
    if name is None or name in unmeasured:
        return None
    found = table.get(str(name))
    if found is None:
        return Family(name=str(name), rows="refused", why=OF_NO_TEXT if name in others else UNKNOWN)
    text = config.get("text_config")  # a composite whose text part is read apart
    part = table.get(str(text.get("model_type"))) if isinstance(text, Mapping) else None
    return part if part is not None and found.rows == "packed" != part.rows else found


@cache
def _measured() -> tuple[Mapping[str, Family], frozenset[str], frozenset[str]]:
    """The families by name, types of models that write no text, and types of which no small model could be built."""
    told = json.loads(TABLE.read_text("utf-8"))
    families = {name: Family(name=name, **row) for name, row in told["families"].items()}
    return families, frozenset(told["others"]), frozenset(told["unmeasured"])
