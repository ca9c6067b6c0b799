"""DeepSpeed on real ranks over gloo makes the weights that a plain torch loop makes, however it is cut up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from zero_rank import ALGORITHM, BATCHES, MAX_STEPS

pytestmark = pytest.mark.stack

HERE = Path(__file__).parent
ONE: dict[str, dict[str, Any]] = {"one-rank": {}}
TWO: dict[str, dict[str, Any]] = {
    "two-ranks": {},
    "partitioned-in-small-micro-batches": {"tokens_per_micro_batch": 6, "param_persistence_threshold": 0},
    "stage-0": {"zero_stage": 0},
    "stage-1": {"zero_stage": 1, "tokens_per_micro_batch": 6},
    "stage-2": {"zero_stage": 2, "tokens_per_micro_batch": 6},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(world_size: int, model: Path, out: Path, settings: dict[str, dict[str, Any]]) -> None:
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DS_ACCELERATOR": "cpu",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "zero_rank.py", *map(str, (rank, world_size, port, model, out)), json.dumps(settings)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        told = [rank.communicate(timeout=180)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(told)


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the directory with what one rank and two ranks made of it."""
    model: Path = request.getfixturevalue(request.param)
    out = tmp_path_factory.mktemp("zero")
    run_ranks(1, model, out, ONE)
    run_ranks(2, model, out, TWO)
    return model, out


@pytest.fixture(params=[*ONE, *TWO])
def setting(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def plain(ran: tuple[Path, Path]) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """The same three updates in a dozen lines of torch: weights, norms of the gradient, losses."""
    model: Any = AutoModelForCausalLM.from_pretrained(ran[0], dtype=torch.float32, attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), eps=ALGORITHM.adam_epsilon, weight_decay=ALGORITHM.weight_decay)
    norms, losses = [], []
    for step, rows in enumerate(BATCHES):
        logprobs = [
            model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)[
                range(len(completion)), completion
            ]
            for prompt, (completion,) in rows
        ]
        loss = -torch.cat(logprobs).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), ALGORITHM.max_grad_norm)))
        optimizer.param_groups[0]["lr"] = ALGORITHM.learning_rate * (1 - step / MAX_STEPS)
        optimizer.step()
    assert min(norms) > ALGORITHM.max_grad_norm  # so that clipping is a part of what is compared
    return {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False)}, norms, losses


def told(ran: tuple[Path, Path], setting: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ran[1] / f"{setting}.json").read_text())
    return found


def test_weights_are_those_of_plain_torch(
    ran: tuple[Path, Path], plain: tuple[dict[str, Tensor], list[float], list[float]], setting: str
) -> None:
    weights, _, _ = plain
    ours = load_file(ran[1] / f"{setting}.safetensors")
    assert sorted(ours) == sorted(weights)
    for name, weight in weights.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-5, rtol=0, msg=name)


def test_norms_and_losses_are_those_of_plain_torch(
    ran: tuple[Path, Path], plain: tuple[dict[str, Tensor], list[float], list[float]], setting: str
) -> None:
    _, norms, losses = plain
    found = told(ran, setting)
    assert found["grad_norms"] == pytest.approx(norms, rel=1e-4)
    if setting == "one-rank":  # of several ranks each tells its share
        assert found["losses"] == pytest.approx(losses, rel=1e-5)


def test_weights_come_under_their_names_as_described(
    ran: tuple[Path, Path], plain: tuple[dict[str, Tensor], list[float], list[float]], setting: str
) -> None:
    found = told(ran, setting)
    assert found["sent"] == found["described"]
    assert [tuple(entry) for entry in found["sent"]] == [
        (name, "torch.float32", list(weight.shape)) for name, weight in plain[0].items()
    ]
    assert "lm_head.weight" in plain[0]


def test_a_checkpoint_is_exact(ran: tuple[Path, Path], setting: str) -> None:
    found = told(ran, setting)
    assert found["bit_equal_after_load"]
    assert found["state"] == {"turn": 2}
