"""Quarantine of a prompt that crashes its engine every time. A prompt that was only in the same batch is kept."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cpu_run
import pytest
import run_in_process
from run_in_process import World
from safetensors import safe_open

from orchestrator.cli.main import main
from orchestrator.cluster.local import LocalCluster
from orchestrator.driver.rollouts import Rollouts
from orchestrator.rundir.ledger import Ledger
from workers.config import ModelConfig
from workers.engines.base import Request, Response
from workers.files import quarantine
from workers.types import Prompt

AT = 3
DEATHS = quarantine.TOGETHER + quarantine.ALONE


@pytest.mark.parametrize("world", ["grpo"], indirect=True)
def test_a_prompt_that_kills_its_engine_each_time_is_left_out(world: World) -> None:
    """Kill the whole machine with the engine: the next attempt has only the files."""
    with safe_open(world.directory / f"rollouts/step-{AT}/chunk-1-rollout-0.safetensors", framework="numpy") as kept:
        first, poison = json.loads(kept.metadata()["facts"])["prompts"]
        tokens = kept.get_tensor("prompt_tokens")[3:6].tolist()  # prompts have three tokens each

    class CrashingSampler(cpu_run.TorchSampler):
        def generate(self, requests: Sequence[Request], **settings: Any) -> list[Response]:
            if any(list(request.tokens) == tokens for request in requests):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().generate(requests, **settings)

    class Rollout(cpu_run.TorchRollout):
        def _start(self, model: ModelConfig, max_model_len: int, *, seed: int, cuda: bool) -> CrashingSampler:
            return CrashingSampler(str(model.path))

    def attempt(disk: object) -> None:
        cpu_run.run(world.config("crashing"), lambda *_, **__: LocalCluster({**cpu_run.STARTS, "rollout": Rollout}))

    root, run = world.root / "crashing", world.root / "crashing" / "run"
    assert [run_in_process.run_attempt(root, attempt) for _ in range(DEATHS + 1)] == [-signal.SIGKILL] * DEATHS + [0]
    assert quarantine.quarantined(run / "rollouts" / quarantine.LIST) == [{"prompt": poison, "deaths": DEATHS}]
    rows, expected = cpu_run.rows(run), world.expected[1]
    assert cpu_run.outcome(run)[1][: AT - 1] == expected[: AT - 1]
    assert [row["data/dropped"] for row in rows] == [0, 0, 1]
    assert main(["ledger", "verify", str(run)]) == 0
    notes: list[str] = []
    with Ledger.open(run / "ledger.jsonl") as ledger:
        Rollouts(run / "rollouts", ledger, attempt=9, note=notes.append, wait_first=lambda handles: None)
    assert [line.partition(" (")[0] for line in notes] == [
        f"prompt {poison} is left out: it crashed engines {DEATHS} times"
    ]
    assert first != poison


def batches(keep: str, *prompts: str, dies_at: int | None = None) -> list[list[str]]:
    """Return the batches of one call, until the engine dies in batch `dies_at` or the call is answered."""
    trial, tried = quarantine.Trial(keep, 0), []
    given = [(Prompt(id=id, text=id), [1]) for id in prompts if id not in trial.left_out]
    for i, batch in enumerate(trial.batches(given)):
        tried.append([prompt.id for prompt, _ in batch])
        if i == dies_at:
            return tried
    trial.note(quarantine.ANSWERED)
    return tried


@pytest.fixture
def keep(tmp_path: Path) -> str:
    (tmp_path / "step-1").mkdir()
    return f"{tmp_path}/step-1/chunk-0-"


def test_a_crashing_prompt_is_found_by_elimination(keep: str, tmp_path: Path) -> None:
    for _ in range(quarantine.TOGETHER):
        assert batches(keep, "a", "b", "c", dies_at=0) == [["a", "b", "c"]]
    for _ in range(quarantine.ALONE):
        assert batches(keep, "a", "b", "c", dies_at=1) == [["a"], ["b"]]
    assert batches(keep, "a", "b", "c") == [["a"], ["c"]]
    assert [entry["prompt"] for entry in quarantine.quarantined(tmp_path / quarantine.LIST)] == ["b"]
    (tmp_path / "step-2").mkdir()
    assert batches(f"{tmp_path}/step-2/chunk-7-", "b", "d") == [["d"]]


def test_engine_crashes_of_another_cause_quarantine_no_prompt(keep: str, tmp_path: Path) -> None:
    """Kill engines at different places: in the common batch, then at one prompt and at another."""
    for dies_at in (0, 0, 1, 2, 0):
        batches(keep, "a", "b", "c", dies_at=dies_at)
    assert batches(keep, "a", "b", "c") == [["a"], ["b"], ["c"]]
    assert batches(keep, "a", "b", "c") == [["a", "b", "c"]], "what was answered is forgotten"
    assert not (tmp_path / quarantine.LIST).exists()


def test_an_exception_counts_as_an_answer(keep: str) -> None:
    def raise_in_trial() -> None:
        with quarantine.trial(keep, 0) as trial:
            next(trial.batches([]))
            raise ValueError("wrong arguments")

    for _ in range(quarantine.TOGETHER + 1):
        with pytest.raises(ValueError, match="wrong arguments"):
            raise_in_trial()
    assert batches(keep, "a", "b") == [["a", "b"]]


def test_a_torn_note_is_ignored(keep: str) -> None:
    batches(keep, "a", "b", dies_at=0)
    with Path(f"{keep}rollout-0.tried").open("a") as file:
        file.write('\n"beg')
    assert batches(keep, "a", "b", dies_at=0) == [["a", "b"]]
    assert batches(keep, "a", "b") == [["a"], ["b"]]


def test_rollouts_that_are_not_stored_are_not_noted() -> None:
    with quarantine.trial(None, 0) as trial:
        assert (list(trial.batches([])), trial.left_out) == ([[]], set())
