"""Launcher for this machine: a job is a process in the background, and its state is a directory.

    STATE/ID/job.json       the request                          STATE: $RLHF_STATE, else ~/.local/state/rlhf/jobs
            /keeper.json    pid and start time of the keeper     `rlhf entry keep DIR`: starts the command, waits for
            /child.json     those of the command                 its end, and records it
            /log            output of the command
            /files          the package, if there is one: the command is started in it
            /stop.json      when somebody asked the job to stop
            /end.json       exit code and time

The directory appears complete, under a temporary name that is renamed, so of two equal submissions one finds the other.
A process is known by pid, start time and boot: a pid that was used again is another process.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.driver.supervise import child_command
from orchestrator.errors import BadInput, DiskFailed, Problem
from orchestrator.launch.base import (
    PREFIX,
    Job,
    JobRequest,
    JobState,
    Output,
    Submitted,
    ended_reason,
    ended_state,
    newest_repetition,
    refuse_to_resume,
    refuse_to_stop,
)
from orchestrator.launch.entry import output_of, with_secrets

POLL_S = 0.2
START_S = 30.0  # a job whose process has not begun after this time never will
LOST = 137  # exit code of a job whose keeper and command were both killed, as a shell reports SIGKILL


def state_directory() -> Path:
    return Path(os.environ.get("RLHF_STATE") or "~/.local/state/rlhf").expanduser() / "jobs"


class LocalLauncher:
    """Jobs of this machine and this user. They start at once."""

    def __init__(self, state: Path | None = None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Set the directory of the jobs; None: `state_directory()`."""
        self._state, self._sleep = state or state_directory(), sleep

    # ------------------------------------------------------------------------------------------ start

    def submit(self, request: JobRequest) -> Submitted:
        root = None if request.package is None else request.package.root
        body = {**asdict(replace(request, package=None)), "root": os.getcwd(), "submitted": time.time()}
        return self._start(request.id, body, root)

    def resume(self, id: str, command: Sequence[str] | None = None) -> Submitted:
        job = self._newest(id)
        refuse_to_resume(job, str(self._state))
        files = self._state / job.id / "files"
        body = _read(self._state / job.id / "job.json") | {"submitted": time.time()}
        if command is not None:
            body["command"] = list(command)
        return self._start(str(body["id"]), body, files if files.is_dir() else None)

    def _start(self, id: str, body: Mapping[str, Any], package: Path | None) -> Submitted:
        """Start the job under its id, or the first of `ID-2`, `ID-3`, … that is free, unless one runs or is done."""
        number = 1
        while True:
            directory = self._state / (id if number == 1 else f"{id}-{number}")
            if (job := self._read(directory)) is not None:
                if not job.state.is_finished or job.state is JobState.succeeded:
                    return Submitted(job=job, is_new=False)
                number += 1
            elif self._create(directory, body, package):
                started = self._read(directory)
                assert started is not None, "it was just written"
                return Submitted(job=started, is_new=True)
            elif self._read(directory) is None:  # a directory that is no job
                number += 1

    def _create(self, directory: Path, body: Mapping[str, Any], package: Path | None) -> bool:
        """Create the directory and start the keeper. Return False if somebody else was faster."""
        aside = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}")
        with disk.explained(directory, resume=""):
            self._state.mkdir(parents=True, mode=0o700, exist_ok=True)
            aside.mkdir(mode=0o700)
            if package is not None:
                shutil.copytree(package, aside / "files")
                body = {**body, "root": str(directory / "files")}
            disk.write_atomic(aside / "job.json", json.dumps(body, indent=2) + "\n")
            (aside / "log").touch(0o600)
        try:
            aside.rename(directory)
        except OSError as error:
            shutil.rmtree(aside)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        _start_keeper(directory)
        return True

    # ------------------------------------------------------------------------------------------- look

    def find(self, id: str) -> Job | None:
        return newest_repetition(id, lambda each: self._read(self._state / each))

    def list(self) -> Sequence[Job]:
        paths = self._state.glob(f"{PREFIX}*") if self._state.is_dir() else ()
        jobs = [job for path in paths if (job := self._read(path)) is not None]
        return sorted(jobs, key=lambda job: job.submitted or 0, reverse=True)

    def logs(self, id: str, *, follow: bool = False) -> Iterator[str]:
        job = self._newest(id)
        with (self._state / job.id / "log").open("r", encoding="utf-8", errors="replace", newline="") as log:
            while True:
                ended = self._newest(job.id).state.is_finished  # before reading: what comes later is not missed
                if text := log.read():
                    yield text
                if ended or not follow:
                    return
                self._sleep(POLL_S)

    def _newest(self, id: str) -> Job:
        if job := self.find(id):
            return job
        known = ", ".join(job.id for job in list(self.list())[:3])
        fix = f"use one of {known}" if known else "submit one: rlhf submit RECIPE --on local"
        raise BadInput(Problem(what=f"unknown job {id}", where=str(self._state), fix=fix))

    def _read(self, directory: Path) -> Job | None:
        is_inside = directory.parent == self._state and not directory.name.startswith(".")
        body = _read(directory / "job.json") if is_inside else {}
        if not body:
            return None
        keeper, child, end = (_read(directory / f"{name}.json") for name in ("keeper", "child", "end"))
        job = Job(
            id=directory.name,
            state=JobState.running if child else JobState.starting,
            run=str(body.get("run", "")),
            directories=tuple(body.get("directories", ())),
            submitted=body.get("submitted"),
            started=child.get("time"),
            engine_state=f"process {child['pid']}" if child else "",
        )
        if end:
            code = int(end["exit_code"])
            return replace(
                job, state=ended_state(code), exit_code=code, ended=end.get("time"), reason=ended_reason(code)
            )
        never_began = not keeper and time.time() - (job.submitted or 0) > START_S
        if never_began or (keeper and not _is_alive(keeper) and not _is_alive(child)):
            if _read(directory / "end.json"):  # written since
                return self._read(directory)
            if _read(directory / "stop.json"):
                return replace(job, state=JobState.stopped, exit_code=143, reason="stopped before it began")
            reason = "its process was killed, or this machine was restarted" if keeper else "it was never started"
            return replace(job, state=JobState.failed, exit_code=LOST, reason=reason)
        return job

    # ------------------------------------------------------------------------------- stop and execute

    def stop(self, id: str) -> None:
        """Send SIGTERM, which a run answers by writing its stop file."""
        job = self._newest(id)
        refuse_to_stop(job, str(self._state))
        disk.write_atomic(self._state / job.id / "stop.json", json.dumps({"time": time.time()}) + "\n")
        for name in ("keeper", "child"):
            if _is_alive(process := _read(self._state / job.id / f"{name}.json")):
                with suppress(ProcessLookupError):
                    os.kill(int(process["pid"]), signal.SIGTERM)
                return

    def execute(self, job: Job, arguments: Sequence[str]) -> Output:
        return output_of(child_command(*arguments))


# ------------------------------------------------------------------------------------------ the keeper


def _start_keeper(directory: Path) -> None:
    """Start the keeper in a session of its own, and note its identity. Nobody waits for it here."""
    command = [sys.executable, "-P", "-m", "orchestrator.cli", "entry", "keep", str(directory)]
    log = str(directory / "log")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_APPEND, 0),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions, setsid=True)
    disk.write_atomic(directory / "keeper.json", json.dumps(_identity(pid)) + "\n")


def keep(directory: Path) -> int:
    """Run the command of a job, record its end, and return its exit code. SIGTERM and Ctrl-C go to the command."""
    body = _read(directory / "job.json")
    asked: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: object) -> None:
        if child is None:
            asked.append(number)
        else:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = 143
        if not asked:
            words = with_secrets(tuple(body["command"]), body.get("secrets", {}))
            command = child_command(*words[1:]) if words[0] == "rlhf" else list(words)
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            child = subprocess.Popen(command, cwd=body["root"], env=environment, process_group=0)
            disk.write_atomic(directory / "child.json", json.dumps(_identity(child.pid)) + "\n")
            for number in asked:
                child.send_signal(number)
            code = child.wait()
    except OSError as error:
        print(f"rlhf: the job cannot be started: {error}", file=sys.stderr)
        code = 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = code if code >= 0 else 128 - code
    with suppress(OSError, DiskFailed):
        disk.write_atomic(directory / "end.json", json.dumps({"exit_code": code, "time": time.time()}) + "\n")
    return code


def _identity(pid: int) -> dict[str, Any]:
    """Return what tells a process from every other: pid, start time in ticks since boot, and boot."""
    return {"pid": pid, "ticks": _ticks(pid), "boot": _boot(), "time": time.time()}


def _is_alive(identity: Mapping[str, Any]) -> bool:
    if not identity or identity.get("boot") != _boot():
        return False
    ticks = _ticks(int(identity["pid"]))
    return ticks is not None and ticks == identity.get("ticks")


def _ticks(pid: int) -> int | None:
    """Return the start time of a process; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in ("Z", "X") else int(rest[18])


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    return ""


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if the file is missing or holds anything else."""
    try:
        body = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
