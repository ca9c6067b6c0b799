"""Progress of one role within a step: how much is done, how fast, and the estimate of the remaining time."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.monitor.figures import duration


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Work of a role on one step: chunks of prompts sampled or scored, or optimiser updates made.

    Speed is the mean since the phase began. Work that an earlier attempt did counts as done and takes no time.

    Example: `Phase(role="rollout", step=2, unit="prompts", done=1536, total=8192, began=10.0, moved=138.0, moves=6)`.
    """

    role: str
    step: int
    unit: str  # what is counted, in the plural
    done: int
    total: int
    began: float  # when the work that takes time began, in seconds of the monitor's clock
    moved: float  # when `done` last grew
    recalled: int = 0  # part of `done` that an earlier attempt did
    moves: int = 0  # how often `done` has grown by work of this attempt

    @property
    def is_done(self) -> bool:
        return self.done >= self.total

    @property
    def per_s(self) -> float | None:
        """Units per second; None before the first arrival."""
        made, seconds = self.done - self.recalled, self.moved - self.began
        return made / seconds if made > 0 and seconds > 0 else None

    def left_s(self, now: float) -> float | None:
        """Return the estimate of the remaining seconds; None if it is unknown, or used up.

        Between two arrivals the estimate falls with the clock, for the mean time between arrivals at most: that of a
        worker that hangs does not fall to zero.
        """
        if self.per_s is None or self.is_done:
            return None
        between = (self.moved - self.began) / max(1, self.moves)
        left = (self.total - self.done) / self.per_s - min(now - self.moved, between)
        return left if left > 0 else None

    def parts(self, now: float) -> list[str]:
        """Return the phase in words: `1,536 of 8,192 prompts`, `12/s`, `9:14 left`."""
        shown = [f"{self.done:,} of {self.total:,} {self.unit}"]
        if self.per_s is not None and self.per_s < 1:
            shown.append(f"{duration(1 / self.per_s)}/{self.unit.removesuffix('s')}")
        elif self.per_s is not None:
            shown.append(f"{self.per_s:,.1f}".removesuffix(".0") + "/s")
        left = self.left_s(now)
        return shown if left is None else [*shown, f"{duration(left)} left"]


class Phases:
    """Phases of the steps in progress, from what roles report."""

    def __init__(self) -> None:
        self._phases: dict[tuple[str, int], Phase] = {}  # by role and step
        self._began: dict[str, float] = {}  # by role: when it last turned to other work, or last advanced

    def begin(self, role: str, now: float) -> None:
        """Note that a role turns to other work, such as that of the next step."""
        self._began[role] = now

    def advance(self, role: str, now: float, *, step: int, done: int, total: int, unit: str, recalled: int) -> Phase:
        """Return the phase after `done` of `total` units. It begins now if `done` is 0.

        Otherwise it began when the role turned to it, or when its phase of the step before ended: engines work ahead.
        """
        began = self._began.get(role, now) if done else now
        before = self._phases.get((role, step))
        if before is None or done < before.done:  # a step that is taken again
            before = Phase(role=role, step=step, unit=unit, done=0, total=total, began=began, moved=began)
        only_recalled = done == recalled and recalled > 0
        made = done - recalled > before.done - before.recalled
        phase = Phase(
            role=role,
            step=step,
            unit=unit,
            done=done,
            total=max(done, total),
            began=now if only_recalled else before.began,
            moved=now if made or only_recalled else before.moved,
            recalled=recalled,
            moves=before.moves + made,
        )
        self._phases[role, step] = phase
        self._began[role] = phase.moved
        return phase

    def end(self, step: int) -> None:
        """Forget the phases of a step that has ended, and of earlier ones."""
        self._phases = {key: phase for key, phase in self._phases.items() if key[1] > step}
