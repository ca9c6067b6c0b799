"""Commands inside a pod: `rlhf entry preempt`, before Kubernetes ends it, and `rlhf entry guard`, before the job's own.

pod is to end ──► preempt: RUN/stop ──► driver: checkpoint, exit.json ──► SIGTERM, SIGKILL after the grace period
KubeRay starts a failed job again ──► guard: did an alarm end this job? ──► end again with its code │ the command
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator.errors import Alarmed
from orchestrator.rundir.directory import JOB, RunDirectory
from orchestrator.rundir.stop import request_stop, wait_for_end

POLL_S = 2.0


def preempt(
    directories: Sequence[Path], seconds: float, *, sleep: Callable[[float], None] = time.sleep
) -> list[RunDirectory]:
    """Ask the runs that have begun and not ended to end, wait for them, and return those that did not end in time.

    Every pod of a job calls it at once: the first request counts, and a worker's pod stays until the driver has saved.
    """
    running = [run for path in directories if _is_running(run := RunDirectory(path))]
    for run in running:
        request_stop(run, by=f"Kubernetes, which ends the pod {os.uname().nodename}", cause="preempted")
    until = time.monotonic() + seconds
    return [run for run in running if wait_for_end(run, max(0.0, until - time.monotonic()), sleep=sleep) is None]


def _is_running(run: RunDirectory) -> bool:
    if not run.path.is_dir() or run.is_complete:
        return False
    body = run.read_exit()
    return body is None or body.get("attempt") != run.last_attempt


def ended_by_alarm(directories: Sequence[Path], environment: Mapping[str, str] = os.environ) -> str | None:
    """Return what the alarm said that ended a run of this very job; None if none did.

    Another job that continues the run was submitted by a person, who has seen the alarm.
    """
    for path in directories:
        body = RunDirectory(path).read_exit()
        if body is None or body.get("exit_code") != Alarmed.exit_code:
            continue
        if body.get("job") is not None and body.get("job") == environment.get(JOB):
            return str(body.get("message", "")).partition("\n")[0]
    return None


def wait_until_free(
    directories: Sequence[Path], seconds: float, *, sleep: Callable[[float], None] = time.sleep
) -> str | None:
    """Wait until no driver holds one of the runs, and return the one that still does after `seconds`, else None.

    The pods of the cluster before may still be saving when the next cluster is there.
    """
    until = time.monotonic() + seconds
    while holder := next((found for path in directories if (found := RunDirectory(path).holder())), None):
        if time.monotonic() >= until:
            return holder
        sleep(POLL_S)
    return None
