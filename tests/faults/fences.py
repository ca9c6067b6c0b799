"""Partial weight publications, and references of the wrong version: figure T8.

One of two engines ignores a version, applies half of it, or fails while receiving it; or the reference ignores a
refresh. A wrapper of the learner records every wrong batch that reaches it: the product must stop the batch earlier.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cpu_run
import run_in_process
import torch

from orchestrator.cluster.local import LocalCluster
from orchestrator.config import RunConfig
from orchestrator.errors import RlhfError
from workers.engines.base import EngineError
from workers.learner import Learner
from workers.reference import Reference
from workers.segment import Segment
from workers.types import Experience, TokenShard
from workers.weights import Manifest

ENGINE_FAULTS = ("keeps the old one", "takes a half of it", "fails at it")
FLIPPED_BIT = "is sent a flipped bit"  # not drawn at random: T8 counts weights that arrive as they were sent
REFERENCE_FAULT = "reference keeps the old one"
NUM_ENGINES = 2


def config(world: run_in_process.World, name: str) -> RunConfig:
    return cpu_run.config(world.root, world.root / name, world.algorithm, rollout=cpu_run.TWO_ENGINES)


def undisturbed(world: run_in_process.World) -> Any:
    """Return the outcome of the run without a fault."""
    name = f"{world.algorithm}-in-step"
    assert run_in_process.run_attempt(world.root / name, lambda disk: cpu_run.run(config(world, name))) == 0
    return cpu_run.outcome(world.root / name / "run")


def half_synced(world: run_in_process.World, expected: Any, seed: int) -> bool:
    """Inject a random fault at a random version, then resume the run to its end.

    Raises:
        AssertionError: when a wrong batch was trained on, or the outcome is not `expected`.
    """
    draw = random.Random(f"{world.algorithm} {seed}")
    faults = (*ENGINE_FAULTS, REFERENCE_FAULT) if world.algorithm == "iterative-dpo" else ENGINE_FAULTS
    fault, engine = draw.choice(faults), draw.randrange(NUM_ENGINES)
    # Of three versions the last one is not sampled from, nor the one before it where engines are a version ahead.
    version = draw.randint(1, 2 - cpu_run.MAX_STALENESS.get(world.algorithm, 0))
    return stopped(world, expected, f"{world.algorithm}-half-{seed}", fault, engine, version)


def stopped(world: run_in_process.World, expected: Any, name: str, fault: str, engine: int, version: int) -> bool:
    """Inject `fault` at `version` into the run `name`, then resume it to its end. Raises like `half_synced`."""
    ahead = cpu_run.MAX_STALENESS.get(world.algorithm, 0)
    violations, injected = world.root / f"{name}.violations", world.root / f"{name}.injected"

    def disturbed(disk: object) -> None:
        # Any error will do: this test is about the batches that were trained on.
        with suppress(RlhfError, EngineError):
            cpu_run.run(
                config(world, name), lambda *_, **__: _cluster(fault, engine, version, violations, injected, ahead)
            )

    assert run_in_process.run_attempt(world.root / name, disturbed) in (0, 2), "it did not end by itself"
    assert injected.exists(), f"{fault}, version {version}: the fault was not injected"
    assert not (world.root / name / "run" / "model").exists(), f"{fault}, version {version}: the run completed"
    assert not violations.exists(), f"{fault}, version {version}: trained on {violations.read_text()}"
    for _ in range(run_in_process.MAX_ATTEMPTS):
        if run_in_process.run_attempt(world.root / name, lambda disk: cpu_run.run(config(world, name))) == 0:
            break
    assert cpu_run.outcome(world.root / name / "run") == expected, f"{fault}, version {version}: the outcome differs"
    shutil.rmtree(world.root / name)
    injected.unlink()
    return True


def _cluster(fault: str, engine: int, version: int, violations: Path, injected: Path, ahead: int) -> LocalCluster:
    def rollout(*, index: int, **arguments: Any) -> cpu_run.TorchRollout:
        built = cpu_run.TorchRollout(index=index, **arguments)
        if index == engine and fault != REFERENCE_FAULT:
            built._engine = Faulty(built._engine, fault, version, injected)
        return built

    def learner(*, head: Any, **arguments: Any) -> Learner:
        built = cpu_run.learner(head=head, **arguments)
        return CheckingLearner(built, violations, ahead) if head == "logprobs" else built

    def reference(**arguments: Any) -> Reference:
        at = f"version-{version}" if fault == REFERENCE_FAULT else ""
        return StuckReference(at, violations, injected, **arguments)

    return LocalCluster({**cpu_run.STARTS, "rollout": rollout, "policy": learner, "reference": reference})


class Faulty(cpu_run.TorchSampler):
    """Engine that receives one version wrongly, once."""

    def __init__(self, original: Any, fault: str, version: int, injected: Path) -> None:
        self.__dict__ |= original.__dict__
        self._fault, self._at, self._injected = fault, version, injected

    def receive(self, manifest: Manifest, version: int, rank_offset: int = 1) -> None:
        if version != self._at or self._injected.exists():
            return super().receive(manifest, version, rank_offset)
        self._injected.touch()
        if self._fault == "keeps the old one":
            return None
        if self._fault == FLIPPED_BIT:
            assert manifest.segment is not None
            middle = manifest.entries[len(manifest.entries) // 2]
            Segment(manifest.segment).tensor(middle).view(-1).view(torch.uint8)[0] ^= 1
            return super().receive(manifest, version, rank_offset)
        if self._fault == "takes a half of it":
            assert manifest.segment is not None
            with torch.no_grad():
                for name, tensor in Segment(manifest.segment).read(manifest.entries[: len(manifest.entries) // 2]):
                    self._weights[name].copy_(tensor)
        raise EngineError(f"version {version} was cut off")


class CheckingLearner(Learner):
    """Learner that records batches of mixed versions, or of a version outside the allowed staleness."""

    def __init__(self, original: Learner, violations: Path, ahead: int) -> None:
        self.__dict__ |= original.__dict__
        self._violations, self._ahead = violations, ahead

    def step(self, step: int, experience: Sequence[Experience], *scored: Any, **more: Any) -> Any:
        seen = {int(version) for part in experience for version in part.versions}
        if len(seen) != 1 or not step - self._ahead <= min(seen) <= step:
            with self._violations.open("a") as file:
                file.write(f"versions {sorted(seen)} in step {step}; ")
        return super().step(step, experience, *scored, **more)


class StuckReference(Reference):
    """Reference that ignores one refresh, and records every use of its outdated weights."""

    def __init__(self, at: str, violations: Path, injected: Path, **arguments: Any) -> None:
        self._at, self._violations, self._injected, self._is_outdated = at, violations, injected, False
        super().__init__(**arguments)

    def load(self, path: str, *version: int) -> None:
        if self._at and Path(path).name == self._at and not self._injected.exists():
            self._injected.touch()
            self._is_outdated = True
            return
        self._is_outdated = False
        super().load(path, *version)

    def logprobs(self, *arguments: Any) -> TokenShard:
        answer = super().logprobs(*arguments)
        if self._is_outdated:
            with self._violations.open("a") as file:
                file.write("log-probabilities of another reference; ")
        return answer
