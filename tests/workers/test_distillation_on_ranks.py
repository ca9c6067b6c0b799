"""Teacher and student on DeepSpeed ranks over gloo get the same weights as one process, for any partition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_rank import ALGORITHM, GROUPS, STEPS, given, read_shares
from fakes import experience
from safetensors.torch import load_file
from torch_engine import learner_of
from transformers import AutoTokenizer
from zero_gang import start_ranks

from configs.quickstart.tiny import create_model
from workers.config import ModelConfig, ReferenceConfig
from workers.reference import Reference
from workers.types import assemble_vectors

pytestmark = pytest.mark.stack

SETTINGS: dict[int, dict[str, dict[str, Any]]] = {  # by number of ranks: a name, and fields of LearnerConfig
    1: {"one-rank": {}},
    2: {
        "partitioned": {"param_persistence_threshold": 0},
        "small-micro-batches": {"param_persistence_threshold": 0, "tokens_per_micro_batch": 6},
        "stage-0": {"zero_stage": 0},
        "checkpointed-activations": {"gradient_checkpointing": True, "param_persistence_threshold": 0},
    },
}


@pytest.fixture(scope="module")
def trained(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a teacher on two ranks, and train students on one and two ranks from it."""
    out = tmp_path_factory.mktemp("distillation")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "num_key_value_heads": 1, "initializer_range": 0.2, **sizes}
    create_model(out / "teacher", config, AutoTokenizer.from_pretrained(qwen2), seed=7)
    models = (str(qwen2), str(out / "teacher"))
    start_ranks("distill_rank.py", 2, [str(out), "teacher", *models])
    for world_size, settings in SETTINGS.items():
        start_ranks("distill_rank.py", world_size, [str(out), "student", *models, json.dumps(settings)])
    return out


def test_a_partitioned_teacher_answers_what_a_whole_one_does(trained: Path) -> None:
    config = ReferenceConfig()
    model = ModelConfig(path=str(trained / "teacher"), dtype="float32")
    whole = Reference(model, config, rank=0, address="", port=0, cuda=False, chunk=4).hidden(given())
    completions = experience(GROUPS).completions
    tokens = np.arange(len(completions.values))
    ours, theirs = (assemble_vectors(shares, completions).take(tokens) for shares in (read_shares(trained, 2), [whole]))
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for settings in SETTINGS.values() for name in settings])
def test_ranks_make_the_weights_of_one_process(trained: Path, qwen2: Path, name: str) -> None:
    learner, engine = learner_of(qwen2, ALGORITHM.model_dump(), max_steps=STEPS, teacher=trained / "teacher")
    stats = [learner.step(i, given(), None, read_shares(trained, 2), None) for i in range(STEPS)]
    divergences = [s.sums["divergence"] for s in stats]
    assert divergences[-1] < divergences[0]
    assert json.loads((trained / f"{name}.json").read_text()) == pytest.approx(divergences, rel=1e-4)
    weights = load_file(trained / f"{name}.safetensors")
    for parameter, weight in engine.weights():
        torch.testing.assert_close(weights[parameter], weight, atol=1e-5, rtol=0, msg=parameter)
