"""Commands `rlhf jobs | status | stop | targets`: jobs of a target, or runs of this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.looks import aligned
from orchestrator.cli.options import AsJson, OnCluster, OnTarget, RunOrJob, RunOrNewestJob, TokenFile
from orchestrator.cli.place import Site, There, fields_of, find_job, is_url, place, say_json
from orchestrator.errors import BadInput, Problem, RlhfError
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.launch.base import Job
    from orchestrator.monitor.run_status import RunStatus


def add_to(app: typer.Typer) -> None:
    app.command()(jobs)
    app.command()(status)
    app.command()(stop)
    app.command()(targets)


def jobs(on: OnTarget = None, cluster: OnCluster = None, token_file: TokenFile = None, as_json: AsJson = False) -> int:
    """List the jobs of a target, newest first."""
    listed = Site(on=on, cluster=cluster, token_file=token_file).launcher().list()
    if as_json:
        say_json({"jobs": [fields_of(job) for job in listed]})
        return 0
    rows = [("ID", "STATE", "SUBMITTED", "TOOK", "RUN", "REASON")]
    rows += [(job.id, job.state, _when(job.submitted), _took(job), job.run, job.reason) for job in listed]
    for line in aligned(rows):
        say(line)
    return 0


def status(
    run: RunOrNewestJob = None,
    on: OnTarget = None,
    cluster: OnCluster = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Show how far a run or job is, how fast, what it waits for, its alarms, and how it ended.

    Exit code: that of the run once it has ended, so that of a failed run is not 0; 0 before.
    """
    site = Site(on=on, cluster=cluster, token_file=token_file)
    if run is not None and not isinstance(there := place(run, site), There):
        from orchestrator.monitor.run_status import current_stage, read_status

        seen = read_status(current_stage(there))
        return _show_status(None, seen, "", as_json=as_json)
    if run is None:
        launcher = site.launcher()
        there = There(launcher=launcher, job=find_job(launcher, None, site))
    assert isinstance(there, There)
    ran, note = _status_there(there)
    return _show_status(there.job if there.job.id else None, ran, note, as_json=as_json)


def _status_there(there: There) -> tuple[RunStatus | None, str]:
    """Return the status of a job's run; or None, and why there is none."""
    from orchestrator.launch.base import JobState
    from orchestrator.monitor.run_status import RunStatus

    if there.job.state is JobState.queued and there.job.started is None:
        return None, ""
    if not there.job.directories:
        return None, _newest_line(there)
    try:
        return RunStatus(**there.ask("status")["run"]), ""
    except (RlhfError, KeyError, TypeError) as error:
        if not there.job.id:
            raise
        if isinstance(error, RlhfError) and error.cause == "cannot_resume":  # its run directory does not exist yet
            return None, _newest_line(there)
        note = error.problems[0].why or error.problems[0].what if isinstance(error, RlhfError) else str(error)
        return None, f"unknown: {note}"


def _newest_line(there: There) -> str:
    """Return the newest line of a log that says how far the job is, or what was wrong, else the newest line."""
    from orchestrator.monitor.console import newest_progress

    try:
        log = "".join(there.launcher.logs(there.job.id))
    except RlhfError as error:  # the machine of the log is gone: the rest of the status is shown nevertheless
        return f"unknown: {error.problems[0].why or error.problems[0].what}"
    lines = [line for line in log.splitlines() if line.strip()]
    wrong = next((line for line in reversed(lines) if line.startswith("rlhf: ")), "")
    return (there.job.state.is_finished and wrong) or newest_progress(log) or (lines[-1] if lines else "")


def _show_status(job: Job | None, run: RunStatus | None, note: str, *, as_json: bool) -> int:
    from orchestrator.launch.wait import exit_code_of

    state, code = _state(job, run), 0
    if job is not None and job.state.is_finished:
        code = exit_code_of(job)
    elif job is None and run is not None:
        code = run.exit_code
    if as_json:
        document: dict[str, Any] = {"state": state, "exit_code": code if _has_ended(job, run) else None}
        document |= {"job": None if job is None else fields_of(job), "run": None if run is None else asdict(run)}
        say_json(document | {"note": note})
        return code
    rows = [("state", state)]
    if job is not None:
        rows = [("job", job.id), ("state", state), ("reason", "" if job.reason == note else job.reason)]
        rows += [("submitted", _when(job.submitted)), ("took", _took(job))]
    rows += run.rows() if run is not None else [("run", ", ".join(job.directories) if job is not None else "")]
    rows += [
        ("log" if _has_ended(job, run) else "progress", note),
        ("exit code", str(code) if _has_ended(job, run) else ""),
    ]
    for line in aligned([row for row in rows if row[1]]):
        say(line)
    return code


def _has_ended(job: Job | None, run: RunStatus | None) -> bool:
    if job is not None:
        return job.state.is_finished
    return run is not None and run.state in ("SUCCEEDED", "FAILED", "STOPPED")


def _state(job: Job | None, run: RunStatus | None) -> str:
    """Return the state to show: the run knows more than the engine while it is running."""
    if job is None:
        return run.state if run is not None else ""
    if job.state.is_finished or run is None or run.state in ("SUCCEEDED", "FAILED", "STOPPED"):
        return str(job.state)
    return run.state


def stop(
    run: RunOrJob,
    wait: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", min=0, help="Wait this long for the end.", show_default=False),
    ] = None,
    by: Annotated[str, typer.Option("--by", metavar="WHO", help="Who asks (default: user and machine).")] = "",
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="ID", help="Only if a driver of this job runs it.", show_default=False),
    ] = None,
    on: OnTarget = None,
    cluster: OnCluster = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Ask a run or job to stop after the update that it is in, with a checkpoint. It can be resumed.

    Asking twice is asking once. Exit code with --wait: 0 if it has ended in time, else 1.
    """
    from orchestrator.rundir.stop import this_user

    if is_url(run[0]):
        from orchestrator.rundir.fetch import request_stop_at

        request_stop_at(run[0], by or this_user())
        return _tell_stop(run[0], None, None, as_json=as_json)
    there = place(run, Site(on=on, cluster=cluster, token_file=token_file))
    if not isinstance(there, There):
        return _stop_here(there, wait, by=by, job=job, as_json=as_json)
    if not there.job.id:
        options = [*([] if wait is None else ["--wait", f"{wait:g}"]), *(["--json"] if as_json else [])]
        return there.run("stop", "--by", by or this_user(), *options)
    there.launcher.stop(there.job.id)
    ended = _wait_for_job(there, wait)
    return _tell_stop(there.job.id, None if ended is None else str(ended.state), wait, as_json=as_json)


def _stop_here(directories: Sequence[Path], wait: float | None, *, by: str, job: str | None, as_json: bool) -> int:
    from orchestrator import disk
    from orchestrator.monitor.run_status import current_stage
    from orchestrator.rundir.stop import request_stop, wait_for_end

    directory = current_stage(directories)
    other = directory.job if directory.holder() is not None else None
    if job is not None and other not in (None, job):
        why, fix = (
            f"job {other} runs it",
            f"stop that job, or end this one while it waits: the engine's own stop of {job}",
        )
        raise BadInput(Problem(what="another job's run is not stopped", where=str(directory.path), why=why, fix=fix))
    with disk.explained(directory.path, resume=""):
        request_stop(directory, by=by)
    ended = None if wait is None else wait_for_end(directory, wait)
    return _tell_stop(str(directory.path), None if ended is None else str(ended.get("cause")), wait, as_json=as_json)


def _tell_stop(what: str, ended: str | None, wait: float | None, *, as_json: bool) -> int:
    if as_json:
        say_json({"asked": what, "ended": ended})
    elif ended is not None:
        say(f"{what} has ended: {ended}")
    else:
        say(f"{what} was asked to stop" + (f"; it has not ended after {wait:g} s" if wait is not None else ""))
    return 1 if wait is not None and ended is None else 0


def _wait_for_job(there: There, seconds: float | None) -> Job | None:
    """Return the job when it has ended; None if it has not in time."""
    until = time.monotonic() + (seconds or 0)
    while seconds is not None:
        job = there.launcher.find(there.job.id)
        if job is None or job.state.is_finished:
            return job
        if time.monotonic() >= until:
            break
        time.sleep(0.5)
    return None


def targets(as_json: AsJson = False) -> int:
    """List the targets of targets.yaml: the clusters that jobs are submitted to."""
    from orchestrator.launch.targets import load_targets, targets_file

    known = load_targets()
    if as_json:
        described = {name: target.model_dump(mode="json", exclude_none=True) for name, target in known.items()}
        say_json({"file": str(targets_file()), "targets": described})
        return 0
    rows = [("TARGET", "ENGINE", "AT", "OUTPUT_DIR")]
    for name, target in known.items():
        at = next((str(v) for key in ("address", "context", "partition") if (v := getattr(target, key, None))), "")
        rows.append((name, target.engine, at, target.output_dir or ""))
    for line in aligned(rows):
        say(line)
    return 0


def resume_job(there: There, overrides: Sequence[str], *, attempts: int, site: Site, as_json: bool = False) -> int:
    """Start a job again that failed or was stopped. Its run goes on from its latest checkpoint."""
    from orchestrator.launch.base import Resumer

    job = there.job
    if not job.id or not isinstance(there.launcher, Resumer):
        fix = f"submit the recipe again, it goes on: rlhf submit RECIPE{site.options}"
        raise BadInput(Problem(what="the job cannot be started again from here", where=job.id or job.run, fix=fix))
    command = None
    if overrides or attempts > 1:
        if len(job.directories) != 1:
            why, fix = "its job has several runs", f"resume it as it was: rlhf resume {job.id}{site.options}"
            raise BadInput(Problem(what="settings cannot be changed", where=job.id, why=why, fix=fix))
        supervised = ["--attempts", str(attempts)] if attempts > 1 else []
        command = ["rlhf", "resume", *supervised, job.directories[0], *overrides]
    submitted = there.launcher.resume(job.id, command)
    if as_json:
        say_json({"job": fields_of(submitted.job), "is_new": submitted.is_new})
        return 0
    say(submitted.job.id)
    if not submitted.is_new:
        print(f"it was resumed before; its state is {submitted.job.state}", file=sys.stderr)
    return 0


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def _took(job: Job) -> str:
    from orchestrator.monitor.figures import duration

    began = job.started or job.submitted
    return duration(max(0.0, (job.ended or time.time()) - began)) if began else "-"
