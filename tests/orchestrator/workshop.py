"""A directory with a recipe that is good, for tests to spoil."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

GOOD = {
    "name": "arith",
    "model": "{path: ./model}",
    "data": "{prompts: ./prompts.jsonl}",
    "algorithm": "{type: grpo, prompts_per_step: 4, num_generations: 2, max_steps: 10}",
    "reward": "[{type: math}]",
}
OFFLINE_DPO = {
    "data": "{dataset: ./pairs.jsonl}",
    "algorithm": "{type: dpo, batch_size: 4}",
    "reward": None,
}


class Workshop:
    """The current directory of a test: a tiny model directory, data, and `recipe.yaml`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        model = path / "model"
        model.mkdir()
        for name in ("config.json", "tokenizer.json"):
            (model / name).write_text("{}")
        (model / "model.safetensors").write_bytes(b"\0" * 16)
        self.jsonl("prompts.jsonl", [{"prompt": f"{i}+1=", "solution": f"{i + 1}"} for i in range(8)])
        self.jsonl("pairs.jsonl", [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "0"} for i in range(8)])
        self.jsonl("demos.jsonl", [{"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(8)])

    def jsonl(self, name: str, rows: list[object]) -> None:
        (self.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def recipe(self, changes: Mapping[str, str | None] | None = None, name: str = "recipe.yaml") -> str:
        """The good recipe, a key per line, with changes; None takes a key out."""
        keys = {**GOOD, **(changes or {})}
        text = "".join(f"{key}: {value}\n" for key, value in keys.items() if value is not None)
        (self.path / name).write_text(text)
        return name
