"""Directory with a valid recipe, which tests modify, and helpers to check the resulting errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tokenizers

from orchestrator.cli.main import main

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


class RecipeDir:
    """Current directory of a test: a tiny model directory, data, and `recipe.yaml`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        model = path / "model"
        model.mkdir()
        (model / "config.json").write_text('{"model_type": "llama"}')
        (model / "tokenizer.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"\0" * 16)
        self.jsonl("prompts.jsonl", [{"prompt": f"{i}+1=", "solution": f"{i + 1}"} for i in range(8)])
        self.jsonl("pairs.jsonl", [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "0"} for i in range(8)])
        self.jsonl("demos.jsonl", [{"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(8)])

    def jsonl(self, name: str, rows: list[object]) -> None:
        (self.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def recipe(self, changes: Mapping[str, str | None] | None = None, name: str = "recipe.yaml") -> str:
        """Write the valid recipe with changes, one key per line; None removes a key."""
        keys = {**GOOD, **(changes or {})}
        text = "".join(f"{key}: {value}\n" for key, value in keys.items() if value is not None)
        (self.path / name).write_text(text)
        return name


def refused(recipe: str, name: str, golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["validate", recipe])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert "Traceback" not in printed.err
    golden(name, printed.err)


def tokenizer(directory: str = "model", alphabet: str = "0123456789+= ") -> None:
    """Write a tokenizer with one token per character into a model directory."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    characters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    characters.add_special_tokens(["<pad>", "<eos>", "<unk>"])
    characters.save(f"{directory}/tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
    Path(directory, "tokenizer_config.json").write_text(json.dumps(settings))


def safetensors_header(shapes: Mapping[str, list[int]]) -> bytes:
    header = json.dumps({n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}).encode()
    return len(header).to_bytes(8, "little") + header
