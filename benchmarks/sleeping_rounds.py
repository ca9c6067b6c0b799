"""Rounds of iterative DPO on real Ray with workers that sleep: loop, pipeline and rollout store are real."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.sleeping_workers import Durations, plans
from orchestrator.cluster.base import Gang, Handle
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config.run import ClusterConfig
from orchestrator.driver import loop
from orchestrator.driver.rollouts import Rollouts
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.publishing import NoPublisher
from orchestrator.pipeline.reference import Decision
from orchestrator.pipeline.sources import Chunk, PendingBatch, RolloutSource
from orchestrator.rundir.ledger import Ledger
from workers.reference import Reference
from workers.spans import Progress
from workers.stats import Metrics
from workers.types import Prompt, Sampling, Scores, TokenShard


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounds:
    """Size of the rounds. Example: `Rounds(count=3, prompts=48, prompts_per_chunk=4)`."""

    count: int
    prompts: int
    prompts_per_chunk: int
    max_staleness: int = 0


class KeptReference:
    """Reference policy that is never refreshed."""

    version = 0

    def __init__(self, gang: Gang[Reference]) -> None:
        self._gang = gang
        self._begun: dict[tuple[int, int], Sequence[Handle[TokenShard]]] = {}

    def begin(self, step: int, chunk: Chunk) -> None:
        self._begun[step, chunk.index] = self._score(chunk)

    def logprobs(self, step: int, chunk: Chunk) -> Sequence[Handle[TokenShard]]:
        return self._begun.pop((step, chunk.index), None) or self._score(chunk)

    def decision(self) -> Decision | None:
        return None

    def _score(self, chunk: Chunk) -> Sequence[Handle[TokenShard]]:
        return self._gang.all(Reference.logprobs, chunk.experience, 1.0, 0)


@dataclass
class Clocks:
    """Recorder of a run that keeps the times of each round: planned, experience complete, committed."""

    rollouts: Rollouts
    planned_s: list[float] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    committed_s: list[float] = field(default_factory=list)

    def planned(self, index: int) -> None:
        self.planned_s.append(time.monotonic())

    def arrived(self, index: int, pending: PendingBatch) -> None:
        self.rollouts.record(index)

    def updated(self, index: int, update: int, num_updates: int, metrics: Metrics) -> None:
        if update == 1:  # the learner had all it needs
            self.arrived_s.append(time.monotonic())
        self.rollouts.record_ended()

    def pairs_file(self, index: int) -> None:
        return None

    def paused(self, index: int, decision: Decision | None, progress: Progress) -> None: ...

    def trained(self, index: int, decision: Decision | None) -> None: ...

    def committed(self, index: int, metrics: Metrics, scores: Sequence[Handle[Scores]] | None) -> None:
        self.committed_s.append(time.monotonic())


@contextmanager
def stage(
    durations: Durations, config: ClusterConfig, **options: Any
) -> Iterator[tuple[RayCluster, Mapping[str, Any]]]:
    """Start a cluster with sleeping workers. `options`: those of `sleeping_workers.plans`."""
    cluster = RayCluster(config)
    try:
        yield cluster, cluster.spawn(plans(durations, **options))
    finally:
        cluster.shutdown()


def run(
    cluster: RayCluster,
    gangs: Mapping[str, Any],
    rounds: Rounds,
    directory: Path,
    *,
    note: Callable[[str], None] = lambda text: None,
) -> Clocks:
    """Run the rounds and return their times."""
    with Ledger.open(directory / "ledger.jsonl") as ledger:
        rollouts = Rollouts(directory / "rollouts", ledger, attempt=1, note=note, wait_first=cluster.wait_first)
        reference_policy, clocks = KeptReference(gangs["reference"]), Clocks(rollouts)
        source = RolloutSource(
            gangs["rollout"],
            gangs["reward"],
            [Prompt(id=f"p{i}", text="a") for i in range(rounds.count * rounds.prompts)],
            Sampling(num_generations=2, max_completion_length=1),
            prompts_per_step=rounds.prompts,
            prompts_per_chunk=rounds.prompts_per_chunk,
            max_staleness=rounds.max_staleness,
            max_steps=rounds.count,
            on_begin=reference_policy.begin,
            store=rollouts,
        )
        parts = loop.Parts(
            source=source,
            reference_policy=reference_policy,
            learners=Learners(gangs["policy"], None),
            publisher=NoPublisher(),
            recorder=clocks,  # type: ignore[arg-type]
            waited_s=cluster.waited_s,
            stop=lambda: False,
        )
        loop.run(parts, steps_done=0, max_steps=rounds.count)
    return clocks
