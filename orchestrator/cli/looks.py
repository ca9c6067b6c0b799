"""Commands `rlhf why | rounds | logs`: what a run did, here or on the target of a job."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, OnCluster, OnTarget, RunOrJob, RunOrNewestJob, TokenFile
from orchestrator.cli.place import Site, There, find_job, place, say_json
from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import report, say, write

if TYPE_CHECKING:
    from orchestrator.rundir.worker_logs import LogPart

FOLLOW_S, FOLLOW_THERE_S = 0.5, 5.0  # between two looks at a log: here, and on a target, where each is a small job


def add_to(app: typer.Typer) -> None:
    app.command()(why)
    app.command()(rounds)
    app.command()(logs)


def why(
    run: RunOrJob,
    on: OnTarget = None,
    cluster: OnCluster = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Explain why a run ended, the root cause, and how to continue."""
    from orchestrator.monitor.run_status import current_stage, read_status
    from orchestrator.rundir.why import explain

    there = place(run, Site(on=on, cluster=cluster, token_file=token_file))
    if isinstance(there, There):
        return there.run("why", *(["--json"] if as_json else []))
    directory = current_stage(there)
    lines = explain(directory)
    if as_json:
        say_json({"run": asdict(read_status(directory)), "lines": lines, "incidents": _incidents(directory.incidents)})
    else:
        for line in lines:
            say(line)
    return 0


def rounds(
    run: RunOrJob,
    on: OnTarget = None,
    cluster: OnCluster = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """List the rounds of iterative DPO: pairs, drift, the decision on the reference, and held-out figures."""
    from orchestrator.monitor.run_status import current_stage
    from orchestrator.report.rounds import rounds_of
    from orchestrator.report.run_record import RunRecord

    there = place(run, Site(on=on, cluster=cluster, token_file=token_file))
    if isinstance(there, There):
        return there.run("rounds", *(["--json"] if as_json else []))
    directory = current_stage(there)
    record = RunRecord.read(directory, samples=False)
    if not record.in_rounds:
        reason, fix = "only iterative DPO has rounds", f"rlhf status {directory.path}"
        raise BadInput(Problem(what="the run has no rounds", where=str(directory.path), why=reason, fix=fix))
    if as_json:
        rows = [row for row in record.rows if row["step"] > 0]
        say_json(
            {
                "run": directory.name,
                "directory": str(directory.path),
                "rounds": [
                    {"round": row["step"], "metrics": row, **record.rounds.get(row["step"], {})} for row in rows
                ],
            }
        )
    elif (table := rounds_of(record)) is None:
        say("no round has ended yet")
    else:
        for line in aligned([table.columns, *table.rows]):
            say(line)
    return 0


def logs(
    run: RunOrNewestJob = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run or job ends.")] = False,
    role: Annotated[
        str | None,
        typer.Option("--role", metavar="ROLE", help="Log of a worker of this role, e.g. policy (default: of the job)."),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", metavar="N", min=0, help="Rank of the worker, from 0.")] = 0,
    attempt: Annotated[
        int | None,
        typer.Option(
            "--attempt", metavar="K", min=1, help="Attempt of the run (default: the newest).", show_default=False
        ),
    ] = None,
    offset: Annotated[int, typer.Option("--offset", metavar="BYTES", min=0, help="First byte of a worker's log.")] = 0,
    on: OnTarget = None,
    cluster: OnCluster = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Show the log of a job's driver, or of one worker of a run.

    Exit code with --follow: that of the run or job.
    """
    if follow and as_json:
        fix = "leave out one of them"
        raise BadInput(Problem(what="--follow and --json are given", where="command line", fix=fix))
    site = Site(on=on, cluster=cluster, token_file=token_file)
    there = place(run, site) if run else _newest(site)
    if role is None:
        return _driver_log(there, follow=follow, as_json=as_json, where=site.options)
    if isinstance(there, There):
        options = ["--role", role, "--rank", str(rank), *(["--attempt", str(attempt)] if attempt else [])]
        parts = _parts_there(there, options, offset=offset)
    else:
        parts = _parts_here(there, role, rank, attempt=attempt, offset=offset)
    for part in parts:
        if as_json:
            say_json(asdict(part))
            return 0
        write(part.text)
        if not follow and part.next_offset >= part.size:
            break
    return _exit_code(there) if follow else 0


def _newest(site: Site) -> There:
    launcher = site.launcher()
    return There(launcher=launcher, job=find_job(launcher, None, site))


def _driver_log(there: Sequence[Path] | There, *, follow: bool, as_json: bool, where: str) -> int:
    """Print the log of a job's own process. `where`: options that name the target."""
    if not isinstance(there, There) or not there.job.id:
        from orchestrator.monitor.run_status import current_stage
        from orchestrator.rundir.worker_logs import workers_with_logs

        if isinstance(there, There):
            path, fix = Path(there.job.directories[0]), "give --role and --rank"
        else:
            directory = current_stage(there)
            path, known = directory.path, workers_with_logs(directory, directory.last_attempt)
            fix = f"give --role and --rank of one of {', '.join(known[:16])}" if known else "wait for its workers"
        reason = "a run directory has the logs of its workers; that of the driver is where it was started"
        raise BadInput(Problem(what="whose log?", where=str(path), why=reason, fix=fix))
    if follow:
        from orchestrator.launch.wait import wait_for_job

        return wait_for_job(there.launcher, there.job.id, say, where=where, only_log=True, report=report)
    pieces = there.launcher.logs(there.job.id)
    if as_json:
        say_json({"job": there.job.id, "text": "".join(pieces)})
        return 0
    last = "\n"
    for piece in pieces:
        write(piece)
        last = piece or last
    if not last.endswith("\n"):
        write("\n")
    return 0


def _parts_here(
    directories: Sequence[Path], role: str, rank: int, *, attempt: int | None, offset: int
) -> Iterator[LogPart]:
    from orchestrator.monitor.run_status import current_stage
    from orchestrator.rundir.worker_logs import read_part

    directory = current_stage(directories)
    while True:
        part = read_part(directory, role, rank, attempt=attempt, offset=offset)
        yield part
        attempt, offset = part.attempt, part.next_offset
        if part.is_last:
            return
        if offset >= part.size:
            time.sleep(FOLLOW_S)


def _parts_there(there: There, options: Sequence[str], *, offset: int) -> Iterator[LogPart]:
    from orchestrator.rundir.worker_logs import LogPart

    attempt: int | None = None
    while True:
        same = ["--attempt", str(attempt)] if attempt is not None and "--attempt" not in options else []
        part = LogPart(**there.ask("logs", *options, *same, "--offset", str(offset)))
        yield part
        attempt, offset = part.attempt, part.next_offset
        if part.is_last:
            return
        if offset >= part.size:
            time.sleep(FOLLOW_THERE_S)


def _exit_code(there: Sequence[Path] | There) -> int:
    """Return the exit code of a run or job that has ended; 0 if it goes on."""
    from orchestrator.launch.wait import exit_code_of
    from orchestrator.monitor.run_status import RunStatus, current_stage, read_status

    if not isinstance(there, There):
        return read_status(current_stage(there)).exit_code
    if not there.job.id:
        return RunStatus(**there.ask("status")["run"]).exit_code
    job = there.launcher.find(there.job.id)
    return exit_code_of(job) if job is not None and job.state.is_finished else 0


def _incidents(path: Path) -> list[dict[str, object]]:
    from orchestrator.rundir.incidents import read_incidents

    return [asdict(incident) for incident in read_incidents(path)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines with columns of equal width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
