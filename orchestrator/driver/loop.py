"""Loop: one step of any algorithm, top to bottom.

    source ──► experience ──► reference ──► learn ──► publish ──► commit
      ▲   (sampled, scored)  (log-probs,    (policy,   (engines    (ledger, metrics,
      │                       refresh?)      critic)    take        checkpoint,
      └────────────── next version ─────────────────────── it)       evaluation)

Experience is a stream of chunks: while one is sampled, the one before is scored, and the reference reads it. Learning
goes update by update. The loop does not know which algorithm runs. If an algorithm has no use for a part, the part does
nothing (`NoReference`, `NoPublisher`). Handles travel, tokens do not; a synchronous run is `max_staleness: 0` in the
source.

The loop counts steps from 0: the step with index i trains version i of the policy and makes version i + 1. Everything
that people read counts steps from 1. In this package, `index` is the number of the loop and `step` the number that
people read. The pipeline and the workers count from 0 as well; their parameter `step` is the index.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from orchestrator.cluster.base import Handle
from orchestrator.driver.recorder import Recorder
from orchestrator.errors import WorkerFailed
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.publishing import Publisher
from orchestrator.pipeline.reference import ReferencePolicy, metrics_of
from orchestrator.pipeline.sources import Chunk, PendingBatch, Source
from orchestrator.pipeline.writing import Writers
from orchestrator.signals import Halted
from workers.types import TokenShard


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Parts of a loop."""

    source: Source
    reference_policy: ReferencePolicy
    learners: Learners | Writers
    publisher: Publisher
    recorder: Recorder
    waited_s: Callable[[], float]  # seconds for which the driver has waited for workers so far
    stop: Callable[[], bool]  # true if the run is to end before the next step
    publishes: Callable[[], bool] = lambda: True  # whether the engines need the weights that were just trained
    ends_early: Callable[[], bool] = lambda: False  # true if this step is to end after a chunk or an update
    halts: Callable[[], bool] = lambda: False  # true if the run is to end after a chunk or an update, within the step
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext  # in it, a wait may raise Halted
    restarts: Callable[[], Mapping[str, int]] = dict  # number of restarts so far, by role


def run(parts: Parts, *, steps_done: int, max_steps: int) -> bool:
    """Run the steps that are left. Return True after the last step, False if the run is to end earlier.

    A run that halts within a step has saved the updates of that step; without any, the step begins anew.
    """
    for index in range(steps_done, max_steps):
        if parts.stop():
            return False
        started, waited = time.monotonic(), parts.waited_s()
        parts.recorder.planned(index)
        try:
            with parts.interruptible():
                pending, reference = experience(parts, index)
                parts.recorder.arrived(index, pending)
        except (Halted, WorkerFailed) as error:  # a worker that fails after a stop was asked for is not needed
            if not isinstance(error, Halted) and not parts.halts():
                raise
            parts.recorder.halted()
            return False
        arrived = time.monotonic()
        decision = parts.reference_policy.decision()
        metrics = parts.learners.learn(
            index,
            pending,
            reference,
            parts.recorder.pairs_file(index),
            pause=partial(parts.recorder.paused, index, decision),
            updated=partial(parts.recorder.updated, index),
            stop=parts.ends_early,
            halts=parts.halts,
        )
        if metrics is None:
            return False
        parts.recorder.trained(index, decision)
        if parts.publishes():
            metrics |= parts.publisher.publish(index + 1)
        metrics |= metrics_of(decision, index)
        metrics |= {f"restarts/{role}": float(count) for role, count in parts.restarts().items()}
        metrics["timing/wait_for_batch"] = arrived - started  # a large share of the step: rollouts are the bottleneck
        metrics["timing/step"] = time.monotonic() - started
        metrics["timing/driver"] = metrics["timing/step"] - (parts.waited_s() - waited)
        parts.recorder.committed(index, metrics, pending.scores)
    return True


def experience(parts: Parts, index: int) -> tuple[PendingBatch, Sequence[Handle[TokenShard]] | None]:
    """Request a step's chunks, and the reference's log-probabilities of each; None if the algorithm uses none.

    A step that goes over the budget is learned from the chunks requested so far.

    Raises:
        Halted: the run is to end.
    """
    chunks, scored = list[Chunk](), list[Sequence[Handle[TokenShard]] | None]()
    for chunk in parts.source.stream(index):
        chunks.append(chunk)
        scored.append(parts.reference_policy.logprobs(index, chunk))
        if parts.halts():
            raise Halted
        if parts.ends_early():
            break
    handles = [handle for shards in scored for handle in shards or ()]
    return PendingBatch(chunks=chunks), None if None in scored else handles
