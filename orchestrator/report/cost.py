"""Use of time and devices by a run, from its ledger and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from orchestrator.monitor.figures import duration
from orchestrator.report.run_record import RunRecord

BUSY = {  # metric of the busy time, by role
    "policy": "timing/learn",
    "critic": "critic/timing/learn",
    "rollout": "timing/generate",
    "reward": "timing/score",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Phases:
    """Wall-clock seconds by phase, over all attempts. Steps that were lost with an attempt count as "other"."""

    NAMES: ClassVar = ("loading", "waiting for a batch", "training", "publishing", "evaluating", "other")
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, record: RunRecord) -> Self:
        """Compute the phases of a run."""
        attempts = record.meter.attempts
        waiting, publishing = record.total("timing/wait_for_batch"), record.total("timing/publish")
        steps = record.total("timing/step")
        evaluating = sum(a.evaluating_s for a in attempts) or record.total("timing/evaluate")
        loading = sum(a.loading_s for a in attempts)
        accounted = loading + steps + evaluating
        return cls(
            seconds={
                "loading": loading,
                "waiting for a batch": waiting,
                "training": max(0.0, steps - waiting - publishing),
                "publishing": publishing,
                "evaluating": evaluating,
                "other": max(0.0, record.seconds - accounted),
            }
        )

    def describe(self) -> str:
        return ", ".join(f"{name} {duration(value)}" for name, value in self.seconds.items() if value > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleUse:
    """Device time of one role while the run worked."""

    role: str
    devices: float  # number of reserved devices
    reserved: float  # device-seconds
    busy: float | None  # device-seconds; None: not measured for this role

    def describe(self, unit: str) -> str:
        share = f", busy {self.busy / self.reserved:.0%}" if self.busy is not None and self.reserved else ""
        return f"{self.role}: {self.reserved:.0f} {unit}-seconds on {self.devices:g} {unit}s{share}"


def role_uses(record: RunRecord) -> list[RoleUse]:
    """Return the device time of each role, largest first. The list is empty if the run did not record reservations."""
    attempts = record.meter.attempts
    newest = next((a.devices for a in reversed(attempts) if a.devices), {})
    uses = []
    for role, devices in newest.items():
        reserved = sum(a.devices.get(role, 0.0) * (a.working_s + a.evaluating_s) for a in attempts)
        busy = record.total(BUSY[role]) * devices if role in BUSY and record.curve(BUSY[role]) else None
        if reserved > 0:
            uses.append(RoleUse(role=role, devices=devices, reserved=reserved, busy=busy))
    return sorted(uses, key=lambda use: -use.reserved)


def unit_of(record: RunRecord) -> str:
    """Return the unit of the run's devices: "GPU" or "worker"."""
    return "GPU" if _cuda(record) else "worker"


def _cuda(record: RunRecord) -> bool:
    newest = record.directory.logs(max(1, record.directory.last_attempt)) / "devices.json"
    try:
        return bool(json.loads(newest.read_text("utf-8")).get("cuda"))
    except (OSError, ValueError, AttributeError):
        return False
