"""Supported model families, as measured by `make families`. Imports no torch.

families.json covers every model type of the installed transformers. For each type it holds how rows are given to a
model ("packed", "apart" or "refused"), why not packed, and what the engine cannot do with it; then the types that
generate no text, and those of which no small model could be built. docs/families.md has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

TABLE = Path(__file__).with_name("families.json")
NO_CAUSAL_MODEL = "transformers has no causal language model of this type"
UNKNOWN = "transformers has no models of this type, and custom code of a model (trust_remote_code) is never run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Support of the models of one type.

    Example: `Family(name="mamba", rows="apart", why="its layers carry a state from token to token")`.
    """

    name: str
    rows: Literal["packed", "apart", "refused"]
    why: str = ""  # reason why rows are not packed
    # Reasons why something is not supported; empty: it is.
    lora: str = ""
    zero3: str = ""
    bfloat16: str = ""
    engine: str = ""  # sampling by vLLM
    engine_lora: str = ""  # adapters in vLLM
    engine_lora_cpu: str = ""  # adapters in vLLM on a CPU


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the family of a model, given its config.json; None: it names no family, or one that was not measured."""
    name = config.get("model_type")
    table, others, unmeasured = _measured()
    if name is None or name in unmeasured:
        return None
    family = table.get(str(name))
    if family is None:
        return Family(name=str(name), rows="refused", why=NO_CAUSAL_MODEL if name in others else UNKNOWN)
    text = config.get("text_config")  # of a composite: its text part may not be packed although the composite is
    part = table.get(str(text.get("model_type"))) if isinstance(text, Mapping) else None
    return part if part is not None and family.rows == "packed" != part.rows else family


@cache
def _measured() -> tuple[Mapping[str, Family], frozenset[str], frozenset[str]]:
    """Read the families by name, the types that generate no text, and the types that could not be measured."""
    content = json.loads(TABLE.read_text("utf-8"))
    families = {name: Family(name=name, **row) for name, row in content["families"].items()}
    return families, frozenset(content["others"]), frozenset(content["unmeasured"])
