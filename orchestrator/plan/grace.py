"""Time that a run needs to stop: from the request to the end of its driver, in the worst case that is planned for.

asked ──► the driver looks ──► update ends ──► (of a step's last: published, evaluated) ──► checkpoint ──► exit.json
           NOTICE_S                                       (sampled ahead: a checkpoint waits for it)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.plan.calls import SAFETY
from orchestrator.plan.plan import Plan

NOTICE_S = 10.0
"""Time to notice the request, to write what is small, and to end the workers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StopTime:
    """Parts of the time that a run needs to stop, in planned seconds.

    Example: `StopTime(update_s=42.0, ahead_s=0.0, evaluate_s=0.0, checkpoint_s=18.0, upload_s=0.0)`.
    """

    update_s: float  # the longest update, and publication
    ahead_s: float  # the rest of what is sampled ahead, as a checkpoint waits for it
    evaluate_s: float  # an evaluation that is due after the step; the engines begin it after what is sampled ahead
    checkpoint_s: float
    upload_s: float  # of the checkpoint to object storage, at the rate of a node's share of storage

    @property
    def seconds(self) -> float:
        """Time to leave: parts count `SAFETY` times, as they do for time limits."""
        return NOTICE_S + SAFETY * (self.update_s + self.ahead_s + self.evaluate_s + self.checkpoint_s + self.upload_s)


def stop_time(plan: Plan) -> StopTime:
    """Return the time that a run of `plan` needs to stop; infinite parts if a call never ends."""
    evaluation = plan.evaluation if plan.config.evaluation.every is not None else None
    ahead = plan.time.busy.get("generate", {}) if plan.config.max_staleness else {}
    return StopTime(
        update_s=max(_seconds(plan, "learn"), default=0.0) + max(_seconds(plan, "publish"), default=0.0),
        ahead_s=max(ahead.values(), default=0.0),
        evaluate_s=0.0 if evaluation is None else evaluation.seconds,
        checkpoint_s=sum(_seconds(plan, "checkpoint")),
        upload_s=0.0 if plan.config.storage is None else sum(_seconds(plan, "checkpoint")),
    )


def stop_seconds(plan: Plan) -> float:
    """Return the seconds to leave a run of `plan` between the request to stop and its end by force."""
    return stop_time(plan).seconds


def _seconds(plan: Plan, phase: str) -> Iterator[float]:
    return (call.seconds for call in plan.calls if call.phase == phase)
