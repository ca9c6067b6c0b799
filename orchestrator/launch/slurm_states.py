"""Slurm's words for the state of a job, and ours. Pure.

`squeue --json` is not used: its layout changes from version to version, and before 23.02 it lists every job of the
cluster whatever is asked for. These columns are the same in all versions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.launch.base import JobState, ended_reason, ended_state

COLUMNS = ("JobID", "Name", "State", "Reason", "RestartCnt", "StartTime", "EndTime", "BatchHost", "exit_code")
FIELDS = ",".join(f"{column}:|" for column in COLUMNS)
"""Value of `squeue --Format`: a column as long as its text, with a bar after it."""

REASONS: Mapping[str, str] = {
    "None": "Slurm has not looked at it yet",
    "Priority": "jobs with a higher priority are ahead of it",
    "Resources": "it is next, and waits for nodes",
    "BeginTime": "it starts in a moment: Slurm waits after the last start",
    "Dependency": "it waits for another job",
    "JobHeldUser": "it is held: scontrol release NUMBER",
    "JobHeldAdmin": "an administrator holds it",
    "PartitionNodeLimit": "the partition never gives a job so many nodes",
    "PartitionTimeLimit": "the partition never gives a job so much time",
    "PartitionConfig": "no node of the partition is as large as it asks for",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "Reservation": "it waits for its reservation",
    "Licenses": "it waits for licences",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node is as it asks for",
    "launch_failed_requeued_held": "a node could not start it, and it is held: scontrol release NUMBER",
}
"""Why a job waits, in words. A limit of an account or QOS begins with Assoc or QOS."""

ENDS: Mapping[str, str] = {
    "TIMEOUT": "it reached its time limit before its checkpoint was written; submit it again to go on",
    "OUT_OF_MEMORY": "a node ran out of memory",
    "NODE_FAIL": "a node failed, and Slurm did not start the job again",
    "PREEMPTED": "a job with a higher priority took its nodes, and Slurm did not start it again",
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "it reached its deadline",
    "REVOKED": "another cluster of the federation runs it",
}
"""Final states that are failures, in words; COMPLETED, FAILED and CANCELLED are not in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Line of `squeue`. Times are Unix seconds.

    Example: `Row(number=7, name="rlhf-a", state="PENDING", reason="Priority", restarts=0, head="")`.
    """

    number: int
    name: str
    state: str
    reason: str
    restarts: int
    head: str  # node of the job's script; empty: none
    started: float | None = None
    ended: float | None = None
    exit_code: int = 0

    @property
    def has_ended(self) -> bool:
        return self.state in ENDS or self.state in ("COMPLETED", "FAILED", "CANCELLED")


def parse_rows(text: str) -> list[Row]:
    """Return the rows of `squeue --noheader --Format=FIELDS` with SLURM_TIME_FORMAT=%s."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")][: len(COLUMNS)]
        if len(cells) == len(COLUMNS) and cells[0].isdigit():
            number, name, state, reason, restarts, started, ended, head, code = cells
            rows.append(
                Row(
                    number=int(number),
                    name=name,
                    state=state.split()[0] if state else "",
                    reason=reason,
                    restarts=int(restarts) if restarts.isdigit() else 0,
                    head="" if head in ("n/a", "N/A", "(null)") else head,
                    started=_seconds(started),
                    ended=_seconds(ended),
                    exit_code=_exit_code(code),
                )
            )
    return rows


def state_of(row: Row, *, running: bool, stopped: bool) -> tuple[JobState, str, int | None]:
    """Return our state, the reason in words, and the exit code.

    Args:
        running: the job's script has started the run.
        stopped: a person has asked the job to stop.
    """
    if row.state == "COMPLETED":
        return JobState.succeeded, "", 0
    if row.state == "CANCELLED":
        return JobState.stopped, "stopped before it ran" if stopped else "cancelled through Slurm", 143
    if row.state == "FAILED":
        if not row.exit_code:  # it has not run: a node could not start it
            return JobState.failed, f"Slurm says {row.reason}", None
        return ended_state(row.exit_code), ended_reason(row.exit_code), row.exit_code
    if row.state in ENDS:
        return JobState.failed, ENDS[row.state], row.exit_code or None
    if row.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        waits = _why(row.reason)
        if row.restarts:
            return JobState.preempted, f"it lost its nodes, and Slurm starts it again; {waits}", None
        return JobState.queued, waits, None
    if row.state == "SUSPENDED":
        return JobState.preempted, "Slurm has suspended it", None
    if row.state == "CONFIGURING":
        return JobState.starting, "its nodes are booting", None
    return (JobState.running, "", None) if running else (JobState.starting, "it starts Ray on its nodes", None)


def _why(reason: str) -> str:
    word = reason.split(",")[0].strip("()")
    if word in REASONS:
        return REASONS[word]
    limit = word.startswith(("QOS", "Assoc"))
    return f"a limit of its account or QOS is reached ({word})" if limit else f"Slurm says {word}"


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() and int(text) else None


def _exit_code(text: str) -> int:
    """Return the exit code of `36608`, a wait status, or `143:0`; 128 + N for a job that signal N ended."""
    code, _, number = text.partition(":")
    if not code.isdigit() or (number and not number.isdigit()):
        return 0
    if number:
        return int(code) or (128 + int(number) if int(number) else 0)
    exit_code = os.waitstatus_to_exitcode(int(code))
    return exit_code if exit_code >= 0 else 128 - exit_code
