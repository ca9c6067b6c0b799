"""Publication of new weights to the rollout engines.

consumes   the policy's weights after a step
produces   engines at the next version, their prefix caches empty
waits for  the previous publication, so that its bytes are not overwritten while an engine still reads them
unblocks   generation
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from orchestrator.cluster.base import Gang, Handle, wait
from workers.learner import Learner
from workers.rollout import Rollout
from workers.stats import Metrics
from workers.weights import Rendezvous


class Publisher(Protocol):
    """Publication of the policy to the workers that sample from it."""

    def publish(self, version: int) -> Metrics:
        """Publish the current weights as `version`."""
        ...


class NoPublisher:
    """Publisher of runs without rollout engines. Does nothing."""

    def publish(self, version: int) -> Metrics:
        return {}


class EnginePublisher:
    """Publisher of whole weights from the policy gang to the rollout gang: shared memory on CPU, NCCL on GPUs."""

    def __init__(
        self, policy: Gang[Learner], rollout: Gang[Rollout], *, cuda: bool, segment: str, tensor_parallel_size: int
    ) -> None:
        self._policy, self._rollout, self._cuda = policy, rollout, cuda
        rendezvous = None
        if cuda:
            address, port = policy.meeting_point()
            rendezvous = Rendezvous(address=address, port=port, world_size=1 + len(rollout) * tensor_parallel_size)
        opened = policy.all(Learner.open_weights, None if cuda else segment, rendezvous)
        self._manifest = wait(opened)[0]
        self._under_way: Sequence[Handle[float]] = ()
        self._version = 0  # of the weights in the segment
        rollout.when_restarted(self._restore_state)

    def publish(self, version: int) -> Metrics:
        received = wait(self._under_way)
        sent = self._policy.all(Learner.send_weights)
        # NCCL needs both ends at once; a shared memory segment is read after it has been written.
        after = None if self._cuda else sent
        self._under_way = self._rollout.all(Rollout.receive_weights, self._manifest, version, after)
        metrics = {"timing/publish": max(wait(sent))}
        self._version = version
        if received:
            metrics["timing/receive"] = max(received)
        return metrics

    def _restore_state(self, engines: Gang[Rollout]) -> None:
        """Load the current weights from shared memory, where they still are.

        Engines that receive by NCCL are not restarted, because an NCCL group cannot be joined later.
        """
        if self._version:
            wait(engines.all(Rollout.receive_weights, self._manifest, self._version, None))


class AdapterPublisher:
    """Publisher of LoRA adapters, by way of a directory of the run that all machines can read. The base model stays."""

    def __init__(self, policy: Gang[Learner], rollout: Gang[Rollout], *, directory: Path) -> None:
        self._policy, self._rollout, self._directory = policy, rollout, directory
        shutil.rmtree(directory, ignore_errors=True)  # left by an earlier attempt
        self._under_way: Sequence[Handle[float]] = ()
        self._newest: Path | None = None
        self._version = 0
        rollout.when_restarted(self._restore_state)

    def publish(self, version: int) -> Metrics:
        received = wait(self._under_way)
        for old in self._directory.glob("version-*"):
            if old != self._newest:
                shutil.rmtree(old)
        target = self._directory / f"version-{version}"
        sent = self._policy.all(Learner.send_adapter, str(target), version)
        self._under_way = self._rollout.all(Rollout.receive_adapter, str(target), version, sent)
        metrics = {"timing/publish": max(wait(sent))}
        self._newest, self._version = target, version
        if received:
            metrics["timing/receive"] = max(received)
        return metrics

    def _restore_state(self, engines: Gang[Rollout]) -> None:
        if self._newest is not None:
            wait(engines.all(Rollout.receive_adapter, str(self._newest), self._version, None))
