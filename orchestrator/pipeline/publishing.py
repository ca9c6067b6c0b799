"""New weights for the rollout engines.

consumes   the policy's weights after a step
produces   engines at the next version, their prefix caches empty
waits for  the publication before this one, so that its bytes are not overwritten while an engine still reads them
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
from workers.types import Metrics
from workers.weights import Rendezvous


class Publisher(Protocol):
    """Makes `version` of the policy known to whoever samples from it."""

    def publish(self, version: int) -> Metrics: ...


class NoPublisher:
    """For runs without rollout engines."""

    def publish(self, version: int) -> Metrics:
        return {}


class EnginePublisher:
    """From the policy gang to the rollout gang: through shared memory on CPU, by NCCL on GPUs."""

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

    def publish(self, version: int) -> Metrics:
        received = wait(self._under_way)
        sent = self._policy.all(Learner.send_weights)
        # Over NCCL both ends must run at once; a segment is read when it has been written.
        after = None if self._cuda else sent
        self._under_way = self._rollout.all(Rollout.receive_weights, self._manifest, version, after)
        metrics = {"timing/publish": max(wait(sent))}
        if received:
            metrics["timing/receive"] = max(received)
        return metrics


class AdapterPublisher:
    """Adapters alone, from the policy gang to the rollout gang, by way of a directory of the run, which
    all nodes see as they see its checkpoints. The base stays where it is."""

    def __init__(self, policy: Gang[Learner], rollout: Gang[Rollout], *, directory: Path) -> None:
        self._policy, self._rollout, self._directory = policy, rollout, directory
        shutil.rmtree(directory, ignore_errors=True)  # of an earlier attempt
        self._under_way: Sequence[Handle[float]] = ()
        self._newest: Path | None = None

    def publish(self, version: int) -> Metrics:
        received = wait(self._under_way)
        for old in self._directory.glob("version-*"):
            if old != self._newest:
                shutil.rmtree(old)
        self._newest = self._directory / f"version-{version}"
        sent = self._policy.all(Learner.send_adapter, str(self._newest), version)
        self._under_way = self._rollout.all(Rollout.receive_adapter, str(self._newest), version, sent)
        metrics = {"timing/publish": max(wait(sent))}
        if received:
            metrics["timing/receive"] = max(received)
        return metrics
