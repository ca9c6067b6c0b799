"""Command `rlhf submit`: run a recipe, a comparison or an evaluation as a job on a target."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import Against, AsJson, Attempts, EvaluatedModel, Fresh, Overrides, TokenFile
from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import report, say

if TYPE_CHECKING:
    from orchestrator.launch.base import JobRequest, Submitted
    from orchestrator.launch.request import Content
    from orchestrator.launch.targets import Target

SHOWN_PATHS = 4

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Recipe, comparison or suite (YAML file), e.g. configs/8b/grpo.yaml.")
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="TARGET",
        help="Target from targets.yaml, or local (default: RLHF_TARGET).",
        show_default=False,
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="URL",
        help="Ray cluster, in place of --on: its dashboard, e.g. http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS).",
        show_default=False,
    ),
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Show progress until the job ends, and end with the run's own exit code.")
]
Priority = Annotated[int, typer.Option("--priority", metavar="N", help="Jobs with a higher priority start first.")]
WorkingDir = Annotated[
    Path,
    typer.Option("--working-dir", metavar="DIR", help="Directory that relative paths start at, also those of the job."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="PATH",
        help="Ship a file or directory that no setting names, such as data that reward code reads. May be given again.",
    ),
]
AllowOpen = Annotated[
    bool, typer.Option("--allow-open-cluster", help="Accept a Ray cluster without token authentication.")
]


def add_to(app: typer.Typer) -> None:
    app.command()(submit)


def submit(
    recipe: File,
    overrides: Overrides = None,
    on: On = None,
    cluster: Url = None,
    wait: Wait = False,
    priority: Priority = 0,
    attempts: Attempts = 1,
    fresh: Fresh = False,
    model: EvaluatedModel = None,
    against: Against = None,
    working_dir: WorkingDir = Path("."),
    include: Include = None,
    token_file: TokenFile = None,
    allow_open_cluster: AllowOpen = False,
    as_json: AsJson = False,
) -> int:
    """Run a recipe, a comparison or an evaluation as a job on a target.

    The files that it names by relative paths are shipped. Submitting the same settings and files again returns the
    same job.
    """
    from orchestrator.launch.launchers import launcher_for
    from orchestrator.launch.request import Asked, make_request, read_content

    target = _target(on, cluster, open_is_allowed=allow_open_cluster)
    asked = Asked(
        file=recipe,
        overrides=tuple(overrides or ()),
        working_dir=working_dir,
        include=tuple(include or ()),
        model=model,
        against=against,
        attempts=attempts,
        fresh=fresh,
        priority=priority,
    )
    content = read_content(asked, target)
    _refuse_too_large(content)
    launcher = launcher_for(target, token_file=token_file)
    with tempfile.TemporaryDirectory(prefix="rlhf-package-") as folder:
        request = _with_needs(make_request(asked, content, target, Path(folder)), content, target)
        submitted = launcher.submit(request)
    id = submitted.job.id
    where = f"--cluster {cluster} " if cluster else f"--on {on} " if on else ""
    if note := getattr(launcher, "note", ""):
        report(note)
    if not as_json:
        say(id)
        _tell(request, submitted, content, target, where)
    code = None
    if wait:
        from orchestrator.launch.wait import wait_for_job

        code = wait_for_job(launcher, id, report if as_json else say, where=where)
    if as_json:
        say(json.dumps(_document(request, submitted, content, code), indent=2))
    return code or 0


def _target(on: str | None, cluster: str | None, *, open_is_allowed: bool) -> Target:
    from orchestrator.launch.targets import RayTarget, chosen_target, find_target

    target = chosen_target(on, cluster) or find_target(None)
    if not open_is_allowed:
        return target
    if not isinstance(target, RayTarget):
        why, fix = f"the target's engine is {target.engine}", "leave it out: other clusters are made for the job"
        what = "--allow-open-cluster is for Ray clusters"
        raise BadInput(Problem(what=what, where="command line", why=why, fix=fix))
    return target.model_copy(update={"allow_open": True})


def _with_needs(request: JobRequest, content: Content, target: Target) -> JobRequest:
    """Return the request with the time that it needs to stop, and with the machines where one has to ask for them."""
    from orchestrator.launch.needs import longest_grace_s, node_of, with_needs
    from orchestrator.launch.targets import LocalTarget, RayTarget

    if isinstance(target, LocalTarget):
        return request
    if isinstance(target, RayTarget):
        return replace(request, grace_s=longest_grace_s(content.recipes))
    return with_needs(request, content, node_of(target))[0]


def _refuse_too_large(content: Content) -> None:
    """Refuse stages for CUDA that would not fit even on the largest GPU."""
    for recipe in content.recipes:
        if any(stage.cluster.device == "cuda" for stage in recipe.stages):
            from orchestrator.plan.refuse import refuse_on_every_gpu

            refuse_on_every_gpu(recipe.stages)


def _tell(request: JobRequest, submitted: Submitted, content: Content, target: Target, where: str) -> None:
    """Print what was shipped, what was not, and what to do next, to standard error: standard output has the id."""
    from orchestrator.launch.request import staying

    if not submitted.is_new:
        report(f"submitted before; its state is {submitted.job.state}")
    elif request.package is not None and target.engine != "local":
        report(f"shipped {len(request.package.files)} files, {request.package.bytes / 2**20:.1f} MiB")
        if paths := staying(content):
            more = f" and {len(paths) - SHOWN_PATHS} more" * (len(paths) > SHOWN_PATHS)
            report(f"not shipped, because absolute paths are the target's own: {', '.join(paths[:SHOWN_PATHS])}{more}")
    for command in ("status", "logs", "stop"):
        report(f"  rlhf {command} {where}{submitted.job.id}{' --follow' * (command == 'logs')}")


def _document(request: JobRequest, submitted: Submitted, content: Content, code: int | None) -> dict[str, Any]:
    from orchestrator.launch.request import staying

    package = request.package
    return {
        "id": submitted.job.id,
        "is_new": submitted.is_new,
        "state": submitted.job.state.value,
        "run": request.run,
        "directories": list(request.directories),
        "command": list(request.command),
        "files": len(package.files) if package is not None else 0,
        "bytes": package.bytes if package is not None else 0,
        "not_shipped": staying(content),
        **({"exit_code": code} if code is not None else {}),
    }
