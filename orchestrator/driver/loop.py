"""The loop: one step of any algorithm, top to bottom.

    source ──► experience ──► reference ──► learn ──► publish ──► commit
      ▲   (sampled, scored)  (log-probs,    (policy,   (engines    (ledger, metrics,
      │                       refresh?)      critic)    take        checkpoint,
      └────────────── next version ─────────────────────── it)       evaluation)

Nothing here knows which algorithm runs: what an algorithm does without is a part that does nothing (`NoAnchor`,
`NoPublisher`). Handles travel, tokens do not; a synchronous run is `max_staleness: 0` in the source.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from orchestrator.driver.recorder import Recorder
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.publishing import Publisher
from orchestrator.pipeline.reference import ReferencePolicy, metrics_of
from orchestrator.pipeline.sources import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a loop is made of."""

    source: Source
    reference_policy: ReferencePolicy
    learners: Learners
    publisher: Publisher
    recorder: Recorder
    waited_s: Callable[[], float]  # how long the driver has waited for workers so far
    stop: Callable[[], bool]  # true when someone asked the run to end
    restarts: Callable[[], Mapping[str, int]] = dict  # of each role so far, where there were any


def run(parts: Parts, *, first_step: int, max_steps: int) -> bool:
    """Turn the loop; true when the last step was committed, false when it was stopped before."""
    for step in range(first_step, max_steps):
        if parts.stop():
            return False
        started, waited = time.monotonic(), parts.waited_s()
        parts.recorder.planned(step)
        pending = parts.source.take(step)
        reference = parts.reference_policy.logprobs(step, pending.experience)
        parts.recorder.arrived(step, pending)
        arrived = time.monotonic()
        pause = partial(parts.recorder.paused, step, parts.reference_policy.decision())
        metrics = parts.learners.learn(step, pending, reference, parts.recorder.pairs_file(step), pause)
        parts.recorder.trained(step, parts.reference_policy.decision())
        metrics |= parts.publisher.publish(step + 1)
        metrics |= metrics_of(parts.reference_policy.decision(), step)
        metrics |= {f"restarts/{role}": float(count) for role, count in parts.restarts().items()}
        metrics["timing/wait_for_batch"] = arrived - started  # much of a step: the rollouts are the bottleneck
        metrics["timing/step"] = time.monotonic() - started
        metrics["timing/driver"] = metrics["timing/step"] - (parts.waited_s() - waited)
        parts.recorder.committed(step, metrics, pending.scores)
    return True
