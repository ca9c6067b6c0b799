"""Two model families with the same task: directories with the same files, each in the data format of its family."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from configs.quickstart.tiny import bpe_tokenizer, character_tokenizer, create_model
from workers.rewards.function_child import load

HERE = Path(__file__).parent
TASK = HERE.parents[1] / "configs" / "quickstart" / "task.py"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '' }}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt else '' }}"
)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # large, so that attention is far from uniform
}


def write_qwen2(directory: Path) -> None:
    """Write a family with tied embeddings, one token per character, and plain-text data."""
    load(f"{TASK}:write_data")(directory, seed=0)
    demonstrations = read_jsonl(directory / "demonstrations.jsonl")
    write_jsonl(directory / "pairs.jsonl", (_pair(row["prompt"]) for row in demonstrations[:256]))
    rng = random.Random(0)
    long = ["".join(rng.choices("abcdefghijkl", k=300)) for _ in range(6)]
    write_jsonl(directory / "long.jsonl", ({"prompt": letters, "solution": ""} for letters in long))
    config = {"model_type": "qwen2", "tie_word_embeddings": True, **SHAPE}
    create_model(directory / "model", config, character_tokenizer("abcdefghijkl>"), seed=0)
    shutil.copy(HERE / "scorers.py", directory)


def write_llama(directory: Path, qwen2: Path) -> None:
    """Write a family with an untied head, BPE, a chat template, and the data of `qwen2` as TRL conversations."""
    for name in ("demonstrations", "prompts", "heldout", "pairs", "long"):
        write_jsonl(directory / f"{name}.jsonl", map(_as_conversation, read_jsonl(qwen2 / f"{name}.jsonl")))
    corpus = [row["prompt"] + row["completion"] for row in read_jsonl(qwen2 / "demonstrations.jsonl")]
    config = {"model_type": "llama", "tie_word_embeddings": False, **SHAPE}
    create_model(directory / "model", config, bpe_tokenizer(corpus, 300, CHAT_TEMPLATE), seed=0)
    shutil.copy(HERE / "scorers.py", directory)


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _pair(prompt: str) -> dict[str, str]:
    right = "".join(sorted(prompt.removesuffix(">")))
    return {"prompt": prompt, "chosen": right, "rejected": right[::-1]}


def _as_conversation(row: dict[str, str]) -> dict[str, Any]:
    """Convert the prompt and the completions of a row to lists of messages, and keep its other columns."""
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return {k: [{"role": roles[k], "content": v}] if k in roles else v for k, v in row.items()}
