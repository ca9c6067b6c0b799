"""SIGKILL to one process of a command: its driver, or the actor of a role."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attempts import RECIPES, Run
from processes import Command

Member = tuple[str, int]
"""Role and rank; the driver is `("driver", 0)`."""
LIFE_S = 400.0
APART = ("timing/", "throughput/", "restarts/")  # what a clock says of a step, and who was started again in it


def strike(command: Command, run: Run, member: Member, after: str, delay_s: float = 0.0) -> bool:
    """Kills `member` that long after the fact `after` came into the ledger; false when the command ended before."""
    until, before = time.monotonic() + LIFE_S, len(_facts(run))
    while after not in _facts(run)[before:]:
        if command.has_ended():
            return False
        assert time.monotonic() < until, f"{after} never came:\n{command.output}"
        time.sleep(0.02)
    time.sleep(delay_s)
    pid = command.pid if member == ("driver", 0) else _actor(command, run, member)
    if pid is None or command.has_ended():
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def _facts(run: Run) -> list[str]:
    return run.facts if (run.path / "ledger.jsonl").exists() else []


def _actor(command: Command, run: Run, member: Member) -> int | None:
    """An actor is known by the file that it logs to."""
    for pid in command.left_behind():
        with suppress(OSError):
            log = Path(os.readlink(f"/proc/{pid}/fd/1"))
            if log.is_relative_to(run.path / "logs") and log.stem == f"{member[0]}-{member[1]}":
                return pid
    return None


def struck(family: Path, recipe: str, name: str, strikes: Sequence[tuple[Member, str, float]]) -> list[str]:
    """Runs a recipe to its end in spite of strikes (who, after which fact, seconds after it), by `rlhf run` and `rlhf
    resume`; how each of them was survived."""
    run, told = Run(family / "runs" / name), list[str]()
    arguments = ["run", str(RECIPES / f"{recipe}.yaml"), f"name={name}"]
    for member, after, delay_s in strikes:
        with Command(*arguments, cwd=family) as command:
            hit = strike(command, run, member, after, delay_s)
            code = command.exit_code()
            assert command.leaves_nothing_behind(), f"{member} after {after}: something was left behind"
        told.append("missed" if not hit else "in place" if code == 0 else "resumed")
        if code == 0:
            return told
        arguments = ["resume", f"runs/{name}"]
    with Command(*arguments, cwd=family) as command:
        assert command.exit_code() == 0, command.output
    return told


def outcome(run: Run) -> tuple[str, list[dict[str, Any]]]:
    """What a run came to: its weights, and its metrics without what differs from life to life."""
    rows = [{k: v for k, v in row.items() if not any(part in k for part in APART)} for row in run.metrics]
    return run.weights_digest, rows
