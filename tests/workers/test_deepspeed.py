"""DeepSpeed ranks over gloo get the same weights as a plain torch loop, for any partition."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import experience
from safetensors.torch import load_file
from torch import Tensor
from torch_engine import learner_of
from transformers import AutoModelForCausalLM
from zero_gang import run_ranks
from zero_rank import ALGORITHM, BATCHES, FRESH, PAIRS, REWARD_MODEL

pytestmark = pytest.mark.stack

SMALL = {"tokens_per_micro_batch": 6}
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {  # ranks, and fields of LearnerConfig
    "one-rank": (1, {}),
    "two-ranks": (2, {}),
    "partitioned-in-small-micro-batches": (2, {**SMALL, "param_persistence_threshold": 0}),
    "checkpointed-activations": (2, {"gradient_checkpointing": True, "param_persistence_threshold": 0}),
    "stage-0": (2, {"zero_stage": 0}),
    "stage-1": (2, {**SMALL, "zero_stage": 1}),
    "stage-2": (2, {**SMALL, "zero_stage": 2}),
}
REWARD_MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "reward-model-on-one-rank": (1, {}),
    "reward-model-partitioned": (2, {"tokens_per_micro_batch": 12, "param_persistence_threshold": 0}),
    "reward-model-stage-1": (2, {"zero_stage": 1}),
}


@pytest.fixture(scope="module")
def out(qwen2: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train both models on one rank and on two ranks. Return the output directory."""
    directory = tmp_path_factory.mktemp("zero")
    for world_size in (1, 2):
        settings = {
            f"{family}-{name}": (str(path), fields)
            for family, path in {"qwen2": qwen2, "llama": llama}.items()
            for name, (size, fields) in (SETTINGS | REWARD_MODELS).items()
            if size == world_size
        }
        run_ranks(world_size, settings, directory)
    return directory


@dataclass(frozen=True)
class Plain:
    """Result of the same updates in plain torch."""

    family: str
    weights: list[dict[str, Tensor]]  # after each
    norms: list[float]
    losses: list[float]


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def plain(request: pytest.FixtureRequest) -> Plain:
    path: Path = request.getfixturevalue(request.param)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    plain = Plain(request.param, [], [], [])
    for step, rows in enumerate(BATCHES):
        if step in (0, FRESH):
            exempt = [p for n, p in model.named_parameters() if "norm" in n or n.endswith("bias")]
            decayed = [p for p in model.parameters() if all(p is not other for other in exempt)]
            groups = [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, eps=ALGORITHM.adam_epsilon, weight_decay=ALGORITHM.weight_decay)
        logprobs = [
            model(torch.tensor([prompt + completion]))
            .logits[0, len(prompt) - 1 : -1]
            .log_softmax(-1)[range(len(completion)), completion]
            for prompt, (completion,) in rows
        ]
        loss = -torch.cat(logprobs).mean()
        optimizer.zero_grad()
        loss.backward()
        plain.losses.append(loss.item())
        plain.norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), ALGORITHM.max_grad_norm)))
        for group in optimizer.param_groups:
            group["lr"] = ALGORITHM.learning_rate * (1 - step / len(BATCHES))
        optimizer.step()
        plain.weights.append({n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)})
    assert min(plain.norms) > ALGORITHM.max_grad_norm  # so that gradients are clipped
    return plain


@dataclass(frozen=True)
class GangResult:
    """Result of the gang under one setting."""

    weights: dict[str, Tensor]  # before the last update
    fresh: dict[str, Tensor]  # after it
    results: dict[str, Any]


@pytest.fixture(params=SETTINGS)
def gang(request: pytest.FixtureRequest, out: Path, plain: Plain) -> GangResult:
    name = f"{plain.family}-{request.param}"
    weights, fresh = (load_file(out / f"{name}{suffix}.safetensors") for suffix in ("", "-fresh"))
    return GangResult(weights, fresh, json.loads((out / f"{name}.json").read_text()))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert sorted(ours) == sorted(theirs)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-5, rtol=0, msg=name)


def test_weights_are_those_of_plain_torch(gang: GangResult, plain: Plain) -> None:
    assert_same(gang.weights, plain.weights[FRESH - 1])


def test_a_fresh_optimizer_has_no_state(gang: GangResult, plain: Plain) -> None:
    assert_same(gang.fresh, plain.weights[FRESH])


def test_norms_and_losses_are_those_of_plain_torch(gang: GangResult, plain: Plain) -> None:
    assert gang.results["grad_norms"] == pytest.approx(plain.norms, rel=1e-4)
    assert gang.results["losses"] == pytest.approx(plain.losses, rel=1e-5)


def test_a_gradient_that_is_nan_on_one_rank_is_refused_by_all(gang: GangResult) -> None:
    """Check the error, because DeepSpeed silently skips such an update."""
    assert re.match(r"step 4, update 1 of 1: a gradient of norm (nan|inf), on prompts ", gang.results["refused"])


def test_weights_come_under_their_names_as_described(gang: GangResult, plain: Plain) -> None:
    assert gang.results["sent"] == gang.results["described"]
    assert gang.results["sent"] == [[n, "torch.float32", list(w.shape)] for n, w in plain.weights[0].items()]
    assert "lm_head.weight" in plain.weights[0]  # also in the tied model


def test_a_checkpoint_is_exact(gang: GangResult) -> None:
    assert gang.results["resumed_to_the_bit"]
    assert gang.results["state"] == {"step": 2}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_file_of_a_checkpoint_is_reported_by_the_rank_that_wrote_it(name: str, out: Path) -> None:
    size, fields = SETTINGS[name]
    reports = [json.loads((out / f"qwen2-{name}-written-{rank}.json").read_text()) for rank in range(size)]
    assert [(r["role"], r["rank"], r["node"]) for r in reports] == [
        ("policy", rank, socket.gethostname()) for rank in range(size)
    ]
    partitioned = fields.get("zero_stage", 3) > 0
    assert [bool(r["files"]) for r in reports] == [r["writes"] for r in reports] == [True, partitioned][:size]
    directory = out / f"qwen2-{name}-checkpoint"
    reported = [(file["name"], file["bytes"], file["sha256"]) for r in reports for file in r["files"]]
    assert sorted(reported) == sorted(
        (p.relative_to(directory).as_posix(), p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in directory.rglob("*")
        if p.is_file()
    ), "each file once"


@pytest.mark.parametrize("name", REWARD_MODELS)
def test_a_reward_model_is_that_of_plain_torch(name: str, out: Path, model: Path) -> None:
    learner, engine = learner_of(model, REWARD_MODEL.model_dump(), head="scores", max_steps=len(PAIRS), draw=4)
    rewards = [experience(rows, rewards=[1.0, 0.0] * len(rows)) for rows in PAIRS]
    losses = [learner.step(i, [given], None, None, None).sums["loss"] for i, given in enumerate(rewards)]
    results = json.loads((out / f"{model.name}-{name}.json").read_text())
    assert results["losses"] == pytest.approx(losses, rel=1e-4)
    assert results["resumed_to_the_bit"]
    assert results["loaded_to_the_bit"]
    assert_same(load_file(out / f"{model.name}-{name}.safetensors"), dict(engine.weights()))
