"""A small task for jobs on Slurm: fine-tuning of a tiny model by four ranks, with a checkpoint every few steps."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from configs.quickstart.tiny import character_tokenizer, create_model
from orchestrator.launch.base import Pods

ALPHABET = "abcdefgh>"
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
RECIPE = """\
name: {name}
output_dir: {output}
model: {{path: {task}/model, dtype: float32}}
data: {{dataset: {task}/demonstrations.jsonl, max_length: 48}}
algorithm: {{type: sft, learning_rate: 1.0e-3, batch_size: 64, max_steps: {steps}}}
policy: {{num_ranks: {ranks}, param_persistence_threshold: 0}}
cluster: {{device: cpu, restarts_per_role: 0}}
checkpoint: {{every: {every}}}
"""
STEPS, EVERY, RANKS = 48, 4, 4


def write_task(directory: Path) -> None:
    """Write the model and the demonstrations that `write_recipe` refers to."""
    create_model(directory / "model", SHAPE, character_tokenizer(ALPHABET), seed=0)
    draw = random.Random(0)
    words = ("".join(draw.choices(ALPHABET[:8], k=12)) for _ in range(64 * STEPS))
    rows = ({"prompt": f"{word}>", "completion": "".join(sorted(word))} for word in words)
    (directory / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(task: Path, output: Path, name: str, *, steps: int = STEPS) -> Path:
    """Write a recipe of the task, which a job can be told to run."""
    path = task / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, output=output, task=task, steps=steps, every=EVERY, ranks=RANKS))
    return path


def weights(run: Path) -> str:
    """Return the SHA-256 of a run's exported weights."""
    files = sorted((run / "model").glob("*.safetensors"))
    assert files, f"{run} has no model"
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def pods(*, cpus: int) -> tuple[Pods, ...]:
    """Return the needs of a job with `cpus` workers."""
    head = Pods(role="head", count=1, gpus=0, cpus=1, memory_gib=4)
    return head, Pods(role="worker", count=1, gpus=0, cpus=cpus, memory_gib=8)
