"""What a run has cost, by its ledger alone: devices that were reserved, times the seconds for which they were.

    PLACED ──loading──► PLANNED (first) ──working──► the last record          of every attempt
                                          └ evaluating, as COMMITTED says it

A device is a GPU; on a machine without one, a worker. Evaluation is what we look through, not what the method does, and
the first loading is the same for a long run as for a short one: both are told and neither counts. What a failure costs
counts: work that was lost, and loading again. An attempt that was killed counts up to the last record it wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.rundir.ledger import Fact, Record


@dataclass(kw_only=True, slots=True)
class Spent:
    """One attempt so far. Example: `Spent(attempt=1, devices={"policy": 2.0}, placed=1.7e9, begun=1.7e9 + 20,
    last=1.7e9 + 81, evaluating_s=3.0)`: 20 s of loading, and 61 − 3 s of work on two devices."""

    attempt: int
    devices: Mapping[str, float] = field(default_factory=dict)  # by role; empty: an older version did not tell
    placed: float  # Unix seconds
    begun: float | None = None  # when the first step was planned
    last: float  # when it last wrote something down
    evaluating_s: float = 0.0

    @property
    def num_devices(self) -> float:
        return sum(self.devices.values())

    @property
    def loading_s(self) -> float:
        """With the evaluation of what was given."""
        return max(0.0, (self.last if self.begun is None else self.begun) - self.placed)

    @property
    def working_s(self) -> float:
        return 0.0 if self.begun is None else max(0.0, self.last - self.begun - self.evaluating_s)


class Meter:
    """Reads the ledger as it grows."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.attempts: list[Spent] = []
        self._read = 0
        self.read(list(records))

    def read(self, records: Sequence[Record]) -> None:
        """The whole ledger; what was read before is skipped."""
        for record in records[self._read :]:
            self.add(record)
        self._read = len(records)

    def add(self, record: Record) -> None:
        if not self.attempts or self.attempts[-1].attempt != record.attempt:
            self.attempts.append(Spent(attempt=record.attempt, placed=record.time, last=record.time))
        own = self.attempts[-1]
        own.last = max(own.last, record.time)
        if record.fact == Fact.placed:
            own.placed, own.devices = record.time, _devices(record.details.get("devices"))
        elif record.fact == Fact.planned and own.begun is None:
            own.begun = record.time
        elif record.fact == Fact.committed:
            own.evaluating_s += _number(record.details.get("evaluating_s"))

    @property
    def device_seconds(self) -> float:
        """What counts: the work of all attempts, and loading again."""
        return sum(a.num_devices * (a.working_s + (a.loading_s if i else 0.0)) for i, a in enumerate(self.attempts))

    @property
    def seconds(self) -> float:
        """The same on the clock."""
        return sum(a.working_s + (a.loading_s if i else 0.0) for i, a in enumerate(self.attempts))


def by_step(records: Sequence[Record]) -> dict[int, tuple[float, float]]:
    """Device-seconds and seconds that had been spent when each turn was committed, its evaluation left out; of a turn
    that was done again, the last time."""
    meter, found = Meter(), {}
    for record in records:
        meter.add(record)
        if record.fact == Fact.committed:
            found[record.step] = (meter.device_seconds, meter.seconds)
    return found


def _devices(told: object) -> dict[str, float]:
    return {str(role): _number(count) for role, count in told.items()} if isinstance(told, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
