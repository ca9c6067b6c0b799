"""Send SIGKILL to one process of a command: its driver, or the actor of a role."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from attempts import RECIPES, Run
from processes import Command

Member = tuple[str, int]
"""Role and rank of a process; the driver is `("driver", 0)`."""
ATTEMPT_S = 400.0
EXCLUDED_METRICS = ("timing/", "throughput/", "restarts/")  # metrics that differ between attempts


def kill(command: Command, run: Run, member: Member, after: str, delay_s: float = 0.0) -> bool:
    """Kill `member` `delay_s` seconds after the next fact `after` in the ledger.

    Return False if the command ended before.
    """
    until, before = time.monotonic() + ATTEMPT_S, len(_facts(run))
    while after not in _facts(run)[before:]:
        if command.has_ended():
            return False
        assert time.monotonic() < until, f"{after} was not recorded:\n{command.output}"
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
    """Return the process id of an actor, which is identified by its log file, or None."""
    for pid in command.left_behind():
        with suppress(OSError):
            log = Path(os.readlink(f"/proc/{pid}/fd/1"))
            if log.is_relative_to(run.path / "logs") and log.stem == f"{member[0]}-{member[1]}":
                return pid
    return None


def run_with_kills(family: Path, recipe: str, name: str, kills: Sequence[tuple[Member, str, float]]) -> list[str]:
    """Run a recipe to its end with `rlhf run` and `rlhf resume`, killing one process in each attempt.

    A kill is (member, fact in the ledger, seconds after that fact). Return what each kill led to: "missed" (the
    command ended before), "in place" (the member was restarted) or "resumed" (the next attempt continued the run).
    """
    run, recoveries, commands = Run(family / "runs" / name), list[str](), dict[str, Command]()
    arguments = ["run", str(RECIPES / f"{recipe}.yaml"), f"name={name}"]
    with ExitStack() as stack:
        for member, after, delay_s in kills:
            command = stack.enter_context(Command(*arguments, cwd=family))
            commands[f"{member} after {after}"] = command
            killed = kill(command, run, member, after, delay_s)
            code = command.exit_code()
            recoveries.append("missed" if not killed else "in place" if code == 0 else "resumed")
            if code == 0:
                break
            arguments = ["resume", f"runs/{name}"]
        else:
            command = stack.enter_context(Command(*arguments, cwd=family))
            assert command.exit_code() == 0, command.output
        # Checked at the end: after a driver's death Ray's agents may wait for a minute, while the next attempt runs.
        for kill_of, command in commands.items():
            assert command.leaves_nothing_behind(), f"{kill_of}: something was left behind"
    return recoveries


def outcome(run: Run) -> tuple[str, list[dict[str, Any]]]:
    """Return the digest of a run's weights, and its metrics without those that differ between attempts."""
    rows = [{k: v for k, v in row.items() if not any(part in k for part in EXCLUDED_METRICS)} for row in run.metrics]
    return run.weights_digest, rows
