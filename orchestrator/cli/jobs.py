"""Commands `rlhf submit | jobs | status | logs | stop`: run recipes as jobs on a running Ray cluster."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import Attempts, Cluster, Fresh, JobId, Overrides, RecipePath, TokenFile
from orchestrator.errors import BadInput, ClusterError, Problem, Problems
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.cluster.ray_jobs import Job, Jobs
    from orchestrator.config import Recipe


def add_to(app: typer.Typer) -> None:
    app.command()(submit)
    app.command()(jobs)
    app.command()(status)
    app.command()(logs)
    app.command()(stop)


def submit(
    recipe: RecipePath,
    cluster: Cluster,
    overrides: Overrides = None,
    working_dir: Annotated[
        Path, typer.Option("--working-dir", metavar="DIR", help="Directory to upload; the job starts in it.")
    ] = Path("."),
    token_file: TokenFile = None,
    allow_open_cluster: Annotated[
        bool, typer.Option("--allow-open-cluster", help="Accept a cluster without token authentication.")
    ] = False,
    attempts: Attempts = 1,
    fresh: Fresh = False,
) -> int:
    """Run a recipe or a comparison as a job on a Ray cluster.

    Submitting the same recipe, data and code again returns the same job.
    """
    from orchestrator.preflight.shadowing import refuse_shadows

    submission = _submission(recipe, overrides or [], attempts=attempts, open_is_allowed=allow_open_cluster)
    for loaded in submission.recipes:
        if any(stage.cluster.device == "cuda" for stage in loaded.stages):
            from orchestrator.plan.refuse import refuse_on_every_gpu

            refuse_on_every_gpu(loaded.stages)
    inside = _inside(recipe, working_dir)
    refuse_shadows(working_dir.resolve(), problems := Problems())
    problems.raise_if_any()
    _warn_of_lost_results(submission.recipes)
    from orchestrator.cluster.ray_jobs import JobRequest, submission_id

    entrypoint = [*submission.command, *(["--fresh"] if fresh else []), str(inside), *submission.overrides]
    request = JobRequest(
        id=submission_id(submission.name, _digest(submission.recipes, working_dir, fresh=fresh)),
        entrypoint=shlex.join(entrypoint),
        working_dir=working_dir.resolve(),
        metadata={"rlhf_run": submission.name, "rlhf_recipe": str(inside)},
    )
    connected = _connect(cluster, token_file, open_is_allowed=allow_open_cluster)
    if connected.other_ray:
        _report(connected.other_ray)
    submitted = connected.submit(request)
    say(submitted.job.id)
    if not submitted.is_new:
        _report(f"submitted before; its status is {submitted.job.status}")
    for command in ("status", "logs", "stop"):
        _report(f"  rlhf {command} --cluster {cluster} {submitted.job.id}{' --follow' * (command == 'logs')}")
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """Content of a job: one recipe, or those of a comparison."""

    name: str
    recipes: tuple[Recipe, ...]
    command: tuple[str, ...]
    overrides: tuple[str, ...]


def _submission(path: Path, overrides: Sequence[str], *, attempts: int, open_is_allowed: bool) -> Submission:
    from orchestrator.compare.recipe import is_comparison, load_comparison
    from orchestrator.config import load

    if not is_comparison(path):
        recipe = load(path, overrides)
        supervised = ("--attempts", str(attempts)) if attempts > 1 else ()
        accepted = ("cluster.allow_open=true",) if open_is_allowed else ()
        return Submission(
            name=recipe.stages[-1].name,
            recipes=(recipe,),
            command=("rlhf", "run", *supervised),
            overrides=(*overrides, *accepted),
        )
    accepted = ("stages.*.cluster.allow_open=true",) if open_is_allowed else ()
    given = (*overrides, *((f"attempts={attempts}",) if attempts > 1 else ()))
    comparison = load_comparison(path, given)
    return Submission(
        name=comparison.config.name,
        recipes=tuple(run.recipe for run in comparison.runs),
        command=("rlhf", "compare"),
        overrides=(*given, *accepted),
    )


def jobs(cluster: Cluster, token_file: TokenFile = None) -> int:
    """List the jobs of a cluster, newest first."""
    listed = _connect(cluster, token_file).list()
    rows = [("ID", "STATUS", "STARTED", "TOOK", "RUN")]
    rows += [(job.id, job.status, _when(job.started), _took(job), job.metadata.get("rlhf_run", "")) for job in listed]
    for line in _aligned(rows):
        say(line)
    return 0


def status(cluster: Cluster, id: JobId = None, token_file: TokenFile = None) -> int:
    """Show the status of a job, the newest line about its progress in its log, and why it ended."""
    connected = _connect(cluster, token_file)
    job = connected.get(id) if id else connected.newest()
    rows = [
        ("job", job.id),
        ("status", job.status),
        ("started", _when(job.started)),
        ("took", _took(job)),
        ("progress", _progress(connected, job)),
        ("runs", job.entrypoint),
        ("exit code", "" if job.exit_code is None else str(job.exit_code)),
        ("message", job.message),
    ]
    for line in _aligned([row for row in rows if row[1]]):
        say(line)
    return 0


def logs(
    cluster: Cluster,
    id: JobId = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")] = False,
    token_file: TokenFile = None,
) -> int:
    """Show a job's logs."""
    connected = _connect(cluster, token_file)
    wanted = id or connected.newest().id
    if follow:
        for chunk in connected.follow(wanted):
            say(chunk.rstrip("\n"))
    else:
        say(connected.logs(wanted).rstrip("\n"))
    return 0


def stop(
    cluster: Cluster,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")],
    token_file: TokenFile = None,
) -> int:
    """Stop a job (it checkpoints first). Its run can be resumed."""
    job = _connect(cluster, token_file).stop(id)
    say(f"{job.id} was asked to stop")
    return 0


def _connect(cluster: str, token_file: Path | None, *, open_is_allowed: bool = True) -> Jobs:
    from orchestrator.cluster.job_server import Server
    from orchestrator.cluster.ray_jobs import Jobs

    return Jobs.connect(Server.at(cluster, token_file=token_file, open_is_allowed=open_is_allowed))


def _inside(recipe: Path, working_dir: Path) -> Path:
    """Return the recipe's path relative to the upload."""
    try:
        return recipe.resolve().relative_to(working_dir.resolve())
    except ValueError:
        why = f"only {working_dir.resolve()} is uploaded"
        fix = "give a --working-dir that contains the recipe and its data"
        raise BadInput(Problem(what="the recipe would not be uploaded", where=str(recipe), why=why, fix=fix)) from None


def _digest(recipes: Sequence[Recipe], working_dir: Path, *, fresh: bool) -> str:
    """Return a hash of the resolved recipes and the contents of their files, so that changes make another job."""
    from orchestrator.config import resolved
    from orchestrator.rundir.inputs import inputs_of

    configs = {str(config.directory): config for recipe in recipes for config in recipe.stages}
    stages = [[resolved(config), inputs_of(config, working_dir.resolve())] for config in configs.values()]
    content = json.dumps([stages, fresh], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _warn_of_lost_results(recipes: Sequence[Recipe]) -> None:
    directories = {config.output_dir for recipe in recipes for config in recipe.stages}
    relative = sorted(path for path in directories if not Path(path).is_absolute())
    if relative:
        _report(
            f"output_dir {', '.join(relative)} lies in the job's upload, which Ray removes some time after the job;"
        )
        _report("to keep the results give a path on shared storage: output_dir=/shared/runs")


def _report(text: str) -> None:
    """Print to standard error, so that standard output has only the job's id."""
    print(text, file=sys.stderr)


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def _took(job: Job) -> str:
    from orchestrator.monitor.figures import duration

    return duration((job.ended or time.time()) - job.started) if job.started else "-"


def _progress(connected: Jobs, job: Job) -> str:
    """Return the newest line about progress in a job's log; empty if there is none yet.

    The log is all that a cluster shows of a job's progress without a shared disk.
    """
    from orchestrator.monitor.console import newest_progress

    if job.status == "PENDING":
        return ""
    try:
        return newest_progress(connected.logs(job.id)) or ""
    except ClusterError as error:  # the machine of the log is gone: the rest of the status is shown nevertheless
        return f"unknown: {error.problems[0].why}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
