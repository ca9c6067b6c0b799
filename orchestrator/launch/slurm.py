"""Launcher for Slurm: a job is an sbatch job that starts a Ray cluster of its own on its nodes.

    WORK_DIR/ID/request.json      the request
               /package/          its files
               /job.sh            the script that was submitted
               /submitted         number of each Slurm job of this id, the newest last
               /state-NUMBER      how far that job is, in its own words: starting, running, requeued, ended CODE
               /job-NUMBER.log    its output
               /stop              exists if a person has asked the job to stop

Slurm accepts a job twice, and forgets it minutes after its end. So `submit` looks before it asks, under a lock on the
shared storage that holds over all login nodes, and what a job has come to stands in its own files.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator import disk
from orchestrator.driver.supervise import child_command
from orchestrator.errors import BadInput, ClusterError, Problem
from orchestrator.launch.base import (
    PREFIX,
    Job,
    JobRequest,
    JobState,
    Output,
    Submitted,
    ended_reason,
    ended_state,
    refuse_to_resume,
    refuse_to_stop,
)
from orchestrator.launch.entry import output_of, with_same_secrets
from orchestrator.launch.render_slurm import place_of, render
from orchestrator.launch.slurm_states import FIELDS, Row, parse_rows, state_of
from orchestrator.launch.targets import SlurmTarget

COMMAND_S = 60.0  # for an answer of Slurm's controller
LOCK_S = 300.0  # a submission that takes longer was killed: it asks Slurm twice and writes small files
LISTED = 500  # number of newest jobs that are listed
POLL_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """Everything that is known of a job: the request, the number of its newest Slurm job, and Slurm's row of it."""

    request: Mapping[str, object]
    number: int
    row: Row | None
    note: str  # the job's own words
    noted: float | None
    stopped: bool


class SlurmLauncher:
    """Jobs of one Slurm cluster. It works on a machine that has Slurm's commands and sees `work_dir`."""

    def __init__(self, target: SlurmTarget, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._target, self._sleep = target, sleep

    # ------------------------------------------------------------------------------------------ start

    def submit(self, request: JobRequest) -> Submitted:
        script, place = render(request, self._target), Path(place_of(self._target, request.id))
        body = asdict(replace(request, package=None)) | {"has_package": request.package is not None}
        with disk.explained(place, resume=""):
            place.mkdir(parents=True, exist_ok=True)
            package = None if request.package is None else _copied(request.package.root, place)
            try:
                return self._start(place, script, body, package)
            finally:
                if package is not None:
                    shutil.rmtree(package, ignore_errors=True)

    def resume(self, id: str, command: Sequence[str] | None = None) -> Submitted:
        job = self._newest(id)
        refuse_to_resume(job, self._where(id))
        place = Path(place_of(self._target, id))
        body, script = _read_request(place), (place / "job.sh").read_text("utf-8")
        if command is not None:
            script = _with_command(script, command)
            body = {**body, "command": list(command)}
        return self._start(place, script, body, None)

    def _start(self, place: Path, script: str, body: Mapping[str, object], package: Path | None) -> Submitted:
        """Start the job, unless it is there already and has not failed."""
        id = place.name
        with _turn(place, self._sleep) as is_mine:
            job = self.find(id)
            if job is not None and (not job.state.is_finished or job.state is JobState.succeeded):
                return Submitted(job=job, is_new=False)
            if package is not None:
                shutil.rmtree(place / "package", ignore_errors=True)
                package.rename(place / "package")
            disk.write_atomic(place / "job.sh", script)
            disk.write_atomic(place / "request.json", json.dumps({**body, "submitted": time.time()}, indent=2) + "\n")
            (place / "stop").unlink(missing_ok=True)
            if not is_mine():
                why, fix = "another submission has taken its lock", "submit it again"
                raise ClusterError(Problem(what=f"the submission of {id} took too long", why=why, fix=fix))
            number = _slurm("sbatch", "--parsable", str(place / "job.sh")).split(";")[0].strip()
            with (place / "submitted").open("a") as numbers:
                numbers.write(f"{int(number)}\n")
        started = self.find(id)
        assert started is not None, "it was just submitted"
        return Submitted(job=started, is_new=True)

    # ------------------------------------------------------------------------------------------- look

    def find(self, id: str) -> Job | None:
        known = self._known([id])
        return _job(id, known[id]) if id in known else None

    def list(self) -> Sequence[Job]:
        root = Path(place_of(self._target, PREFIX)).parent
        found = [(path.parent.stat().st_mtime, path.parent.name) for path in root.glob(f"{PREFIX}*/request.json")]
        known = self._known([id for _, id in sorted(found, reverse=True)[:LISTED]])
        return sorted((_job(id, k) for id, k in known.items()), key=lambda job: job.submitted or 0, reverse=True)

    def logs(self, id: str, *, follow: bool = False) -> Iterator[str]:
        self._newest(id)
        number = self._known([id])[id].number
        file, offset = Path(place_of(self._target, id)) / f"job-{number}.log", 0
        while True:
            job = self.find(id)  # before reading: what comes later is not missed
            with suppress(FileNotFoundError), file.open("r", encoding="utf-8", errors="replace", newline="") as log:
                log.seek(offset)
                if text := log.read():
                    yield text
                offset = log.tell()
            if not follow or job is None or job.state.is_finished:
                return
            self._sleep(POLL_S)

    def _known(self, ids: Sequence[str]) -> dict[str, _Known]:
        """Return what is known of the jobs with these ids, those that were never submitted left out."""
        if not ids:
            return {}
        arguments = ["--noheader", "--states=all", f"--name={','.join(ids)}", f"--Format={FIELDS}"]
        rows = parse_rows(_slurm("squeue", *arguments, SLURM_TIME_FORMAT="%s"))
        known = {}
        for id in ids:
            place = Path(place_of(self._target, id))
            own = [row for row in rows if row.name == id]
            if number := max([row.number for row in own] + _numbers(place), default=0):
                note, noted = _read_note(place / f"state-{number}")
                row = next((row for row in own if row.number == number), None)
                stopped = (place / "stop").exists()
                request = _read_request(place)
                known[id] = _Known(request=request, number=number, row=row, note=note, noted=noted, stopped=stopped)
        return known

    def _newest(self, id: str) -> Job:
        if job := self.find(id):
            return job
        known = ", ".join(job.id for job in list(self.list())[:3])
        fix = f"use one of {known}" if known else "submit one: rlhf submit RECIPE --on TARGET"
        raise BadInput(Problem(what=f"unknown job {id}", where=self._where(id), fix=fix))

    def _where(self, id: str) -> str:
        return str(Path(place_of(self._target, id)).parent)

    # ------------------------------------------------------------------------------- stop and execute

    def stop(self, id: str) -> None:
        """Note that a person has asked, so that Slurm does not start the job again, and tell the job's script."""
        job, known = self._newest(id), self._known([id])[id]
        refuse_to_stop(job, self._where(id))
        (Path(place_of(self._target, id)) / "stop").touch()
        runs = known.row is not None and known.row.state == "RUNNING"
        _slurm("scancel", *(["--batch", "--signal=TERM"] if runs else []), str(known.number))

    def execute(self, job: Job, arguments: Sequence[str]) -> Output:
        """Run the command here, if this machine sees the run directories; else on the node of the job's head."""
        if not job.directories or any(Path(directory).parent.is_dir() for directory in job.directories):
            return output_of(child_command(*arguments))
        known = self._known([job.id] if job.id else []).get(job.id)
        if known is None or known.row is None or known.row.state != "RUNNING":
            why = f"only nodes of the cluster do, and the job has none: {job.state}"
            fix = "run the command on a machine that mounts the storage, or wait until the job runs"
            where = ", ".join(job.directories)
            raise ClusterError(Problem(what="the run directory is not visible here", where=where, why=why, fix=fix))
        script = f"{self._target.activate or ':'}\nexec {shlex.join(['rlhf', *arguments])}"
        there = ["--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={known.row.head}", "--export=NIL", "--chdir=/"]
        return output_of(["srun", f"--jobid={known.number}", *there, "/bin/bash", "-lc", script])


# ------------------------------------------------------------------------------------------ one job


def _job(id: str, known: _Known) -> Job:
    row, request = known.row, known.request
    directories, submitted = request.get("directories"), request.get("submitted")
    job = Job(
        id=id,
        state=JobState.queued,
        run=str(request.get("run", "")),
        directories=tuple(map(str, directories)) if isinstance(directories, list) else (),
        submitted=float(submitted) if isinstance(submitted, int | float) else None,
        started=None if row is None else row.started,
        engine_state="" if row is None else f"{row.state} ({known.number})",
    )
    word, _, code = known.note.partition(" ")
    if word == "ended" and code.isdigit() and (row is None or row.has_ended):
        state, reason = ended_state(int(code)), ended_reason(int(code))
        return replace(job, state=state, reason=reason, exit_code=int(code), ended=known.noted)
    if row is None:
        if known.stopped:
            return replace(job, state=JobState.stopped, reason="stopped before it ran", exit_code=143)
        reason = f"Slurm no longer knows its job {known.number}, which has not noted an end"
        return replace(job, state=JobState.failed, reason=reason, ended=known.noted)
    state, reason, exit_code = state_of(row, running=word == "running", stopped=known.stopped)
    ended = row.ended if state.is_finished else None
    return replace(job, state=state, reason=reason, exit_code=exit_code, ended=ended)


def _read_request(place: Path) -> dict[str, object]:
    try:
        body = json.loads((place / "request.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _read_note(path: Path) -> tuple[str, float | None]:
    try:
        return path.read_text("utf-8").strip(), path.stat().st_mtime
    except OSError:
        return "", None


def _numbers(place: Path) -> list[int]:
    try:
        return [int(line) for line in (place / "submitted").read_text("utf-8").split()]
    except (OSError, ValueError):
        return []


def _with_command(script: str, command: Sequence[str]) -> str:
    """Return the script with another command, which gets the same secrets."""
    lines = script.split("\n")
    index = next(i for i, line in enumerate(lines) if line.startswith("command=("))
    words = shlex.split(lines[index].removeprefix("command=(").removesuffix(")"))
    lines[index] = f"command=({shlex.join(with_same_secrets(words, command))})"
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ storage


def _copied(package: Path, place: Path) -> Path:
    """Copy a package beside its place, under a name of its own."""
    aside = place / f".package-{uuid.uuid4().hex[:8]}"
    shutil.copytree(package, aside)
    return aside


@contextmanager
def _turn(place: Path, sleep: Callable[[float], None]) -> Iterator[Callable[[], bool]]:
    """Take turns with other submissions of the same job, on this and other machines. Yield whether the turn holds.

    The lock is a file that only one process can create, which all shared file systems promise; they do not all have
    flock. A lock of a process that was killed is removed after LOCK_S seconds by the clock of the file server.
    """
    lock, mine = place / "submit.lock", uuid.uuid4().hex
    while not _create(lock, mine):
        if _age_s(lock) > LOCK_S:
            aside = lock.with_name(f".lock-{mine}")
            with suppress(FileNotFoundError):
                lock.rename(aside)  # one of those who try succeeds
                if _age_s(aside) <= LOCK_S:  # another process was faster, and this is its new lock
                    with suppress(FileExistsError):
                        os.link(aside, lock)
                aside.unlink()
        sleep(0.2)

    def holds() -> bool:
        with suppress(FileNotFoundError):
            return lock.read_text("utf-8") == mine
        return False

    try:
        yield holds
    finally:
        if holds():
            lock.unlink(missing_ok=True)


def _create(lock: Path, text: str) -> bool:
    try:
        with lock.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _age_s(path: Path) -> float:
    """Return the age of a file. Both times are the file server's."""
    now = path.with_name(f".now-{uuid.uuid4().hex}")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        now.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------ Slurm's commands


def _slurm(command: str, *arguments: str, **variables: str) -> str:
    """Run a command of Slurm and return its output.

    Raises:
        ClusterError: the command is not on this machine, fails, or does not answer.
    """
    try:
        done = subprocess.run(
            [command, *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **variables},
        )
    except FileNotFoundError:
        fix = "run this on a login node of the cluster"
        raise ClusterError(Problem(what=f"{command} is not on this machine", where="PATH", fix=fix)) from None
    except subprocess.TimeoutExpired:
        fix = "see `scontrol ping`, and try again"
        raise ClusterError(Problem(what=f"{command} has not answered within {COMMAND_S:g} s", fix=fix)) from None
    if done.returncode:
        why = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        fix = "mend the target, or ask the cluster's administrators"
        raise ClusterError(Problem(what=f"Slurm refuses {command}", why=why, fix=fix))
    return done.stdout
