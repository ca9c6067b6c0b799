"""Cost of a run, computed from its ledger alone: reserved devices times the seconds they were reserved for.

    PLACED ──loading──► PLANNED (first) ──working──► the last record          of every attempt
                                          └ evaluating, as recorded by COMMITTED

A device is a GPU; on a machine without GPUs, a worker. Three parts are reported but not counted: evaluation and the
roles that only measure, which are not part of the method, and the first loading, which takes the same time in a long
run as in a short one. What a failure costs is counted: lost work, and loading again. A killed attempt counts up to the
last record it wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from orchestrator.rundir.ledger import Fact, Record


def measuring_roles(*, samples: bool) -> frozenset[str]:
    """Return the roles that serve evaluation alone: engines and scorers are among them unless the run samples."""
    return frozenset({"base", "refusal"} if samples else {"base", "refusal", "rollout", "reward"})


@dataclass(kw_only=True, slots=True)
class Spent:
    """Time and devices of one attempt so far.

    Example: `Spent(attempt=1, devices={"policy": 2.0}, placed=1.7e9, begun=1.7e9 + 20, last=1.7e9 + 81,
    evaluating_s=3.0)`: 20 s of loading, and 61 − 3 s of work on two devices.
    """

    attempt: int
    devices: Mapping[str, float] = field(default_factory=dict)  # by role; empty: not recorded (older versions)
    placed: float  # Unix seconds
    begun: float | None = None  # when the first step was planned
    last: float  # time of the newest record
    evaluating_s: float = 0.0

    def num_devices(self, measuring: Set[str] = frozenset()) -> float:
        """Return the number of reserved devices, without those of the roles `measuring`."""
        return sum(count for role, count in self.devices.items() if role not in measuring)

    @property
    def loading_s(self) -> float:
        """Seconds from placement to the first step, including the evaluation of the initial model."""
        return max(0.0, (self.last if self.begun is None else self.begun) - self.placed)

    @property
    def working_s(self) -> float:
        return 0.0 if self.begun is None else max(0.0, self.last - self.begun - self.evaluating_s)


class Meter:
    """Running total of a run's cost, updated as the ledger grows."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.attempts: list[Spent] = []
        self._samples = False  # True once a step was generated
        self._read = 0
        self.read(list(records))

    def read(self, records: Sequence[Record]) -> None:
        """Add the records of the whole ledger, skipping those that were read before."""
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
        elif record.fact == Fact.generated:
            self._samples = True
        elif record.fact == Fact.committed:
            own.evaluating_s += _number(record.details.get("evaluating_s"))

    def extend(self, until: float) -> None:
        """Count the newest attempt up to a time (Unix seconds) after its last record."""
        if self.attempts:
            self.attempts[-1].last = max(self.attempts[-1].last, until)

    @property
    def measuring(self) -> frozenset[str]:
        """Roles that only measure."""
        return measuring_roles(samples=self._samples)

    @property
    def device_seconds(self) -> float:
        """Counted device-seconds: the work of all attempts, and loading from the second attempt on."""
        return sum(a.num_devices(self.measuring) * seconds for a, seconds in self._counted())

    @property
    def measuring_device_seconds(self) -> float:
        """Device-seconds of the roles that only measure, over the counted periods, and of all roles in evaluations."""
        idle = sum((a.num_devices() - a.num_devices(self.measuring)) * seconds for a, seconds in self._counted())
        return idle + sum(a.num_devices() * a.evaluating_s for a in self.attempts)

    @property
    def seconds(self) -> float:
        """Counted wall-clock seconds, over the same periods."""
        return sum(seconds for _, seconds in self._counted())

    def _counted(self) -> list[tuple[Spent, float]]:
        return [(a, a.working_s + (a.loading_s if i else 0.0)) for i, a in enumerate(self.attempts)]


def by_step(records: Sequence[Record]) -> dict[int, tuple[float, float]]:
    """Return the (device-seconds, seconds) counted when each step was committed.

    For a step that was trained again, the last commit counts.
    """
    meter, spent = Meter(), {}
    for record in records:
        meter.add(record)
        if record.fact == Fact.committed:
            spent[record.step] = (meter.device_seconds, meter.seconds)
    return spent


def _devices(recorded: object) -> dict[str, float]:
    return {str(role): _number(count) for role, count in recorded.items()} if isinstance(recorded, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
