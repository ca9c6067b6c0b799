"""Commands `rlhf render kuberay | slurm`: print what a job would be on a cluster, without asking the cluster."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import Against, EvaluatedModel, Overrides, RecipePath
from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.launch.request import Asked
    from orchestrator.launch.targets import KubeRayTarget

HELP = "Print the manifests or the script of a job, byte-equal on every machine. No cluster is asked."
IMAGE_FIX = "give --on TARGET, or --image NAME@sha256:DIGEST"

On = Annotated[
    str | None, typer.Option("--on", metavar="TARGET", help="Target of targets.yaml (default: $RLHF_TARGET).")
]
Gpus = Annotated[
    str | None,
    typer.Option("--gpus", metavar="64xH100", help="Number and type of the GPUs; CPU for nodes without GPUs."),
]
Image = Annotated[
    str | None, typer.Option("--image", metavar="NAME@sha256:DIGEST", help="Image of the pods, in place of a target.")
]
WorkingDir = Annotated[
    Path, typer.Option("--working-dir", metavar="DIR", help="Directory that the recipe's relative paths start at.")
]
Attempts = Annotated[int, typer.Option("--attempts", metavar="N", min=1, help="Maximum number of attempts.")]

SlurmAttempts = Annotated[
    int, typer.Option("--attempts", metavar="N", min=1, help="Maximum number of attempts in one start of the job.")
]


def add_to(app: typer.Typer) -> None:
    render = typer.Typer(no_args_is_help=True, help=HELP)
    render.command()(kuberay)
    render.command()(slurm)
    app.add_typer(render, name="render")


def kuberay(
    recipe: RecipePath,
    overrides: Overrides = None,
    on: On = None,
    gpus: Gpus = None,
    image: Image = None,
    working_dir: WorkingDir = Path("."),
    attempts: Attempts = 5,
    model: EvaluatedModel = None,
    against: Against = None,
) -> int:
    """Print the RayJob of a recipe, a comparison or a suite, its ConfigMap and its NetworkPolicy: YAML for kubectl."""
    from orchestrator.launch.needs import node_of, with_needs
    from orchestrator.launch.render_kuberay import render, to_yaml
    from orchestrator.launch.request import make_request, read_content
    from orchestrator.plan.gpus import parse_gpus

    target = _kuberay_target(on, image)
    count, gpu = parse_gpus(gpus or target.gpu)
    target = target.model_copy(update={"gpu": gpu.name})
    asked = _asked(recipe, overrides, working_dir, attempts, model, against)
    content = read_content(asked, target)
    with tempfile.TemporaryDirectory() as into:
        request = make_request(asked, content, target, Path(into))
        with contextlib.chdir(working_dir):  # the planner counts the rows of data files
            request, needs = with_needs(request, content, node_of(target), given=count)
        text = to_yaml(render(request, target))
    if needs.idle_gpus:
        print(f"rlhf: {needs.idle_gpus} of {needs.gpus} GPUs would be idle", file=sys.stderr)
    say(text.rstrip("\n"))
    return 0


def slurm(
    recipe: RecipePath,
    overrides: Overrides = None,
    on: On = None,
    gpus: Gpus = None,
    working_dir: WorkingDir = Path("."),
    attempts: SlurmAttempts = 1,
    model: EvaluatedModel = None,
    against: Against = None,
) -> int:
    """Print the script of a recipe, a comparison or a suite for sbatch: it starts a Ray cluster on the job's nodes."""
    from orchestrator.launch.needs import node_of, with_needs
    from orchestrator.launch.render_slurm import render
    from orchestrator.launch.request import make_request, read_content
    from orchestrator.launch.targets import SlurmTarget, find_target
    from orchestrator.plan.gpus import parse_gpus

    target = find_target(on)
    if not isinstance(target, SlurmTarget):
        what, fix = f"the target's engine is {target.engine}", "name a target with engine: slurm"
        raise BadInput(Problem(what=what, where=on or "RLHF_TARGET", fix=fix))
    count = parse_gpus(gpus)[0] if gpus else None
    asked = _asked(recipe, overrides, working_dir, attempts, model, against)
    content = read_content(asked, target)
    with tempfile.TemporaryDirectory() as into:
        request = make_request(asked, content, target, Path(into))
        text = render(with_needs(request, content, node_of(target), given=count)[0], target)
    say(text.rstrip("\n"))
    return 0


def _asked(
    file: Path, overrides: list[str] | None, working_dir: Path, attempts: int, model: str | None, against: str | None
) -> Asked:
    from orchestrator.launch.request import Asked, kind_of

    return Asked(
        file=file,
        overrides=tuple(overrides or ()),
        working_dir=working_dir,
        attempts=1 if kind_of(file) == "suite" else attempts,  # an evaluation is done again as a whole
        model=model,
        against=against,
    )


def _kuberay_target(on: str | None, image: str | None) -> KubeRayTarget:
    """Return the target to render for: a named one, or one of a given image with the defaults of deploy/kuberay."""
    from orchestrator.launch.targets import KubeRayTarget, find_target

    if on is None and image is not None:
        return KubeRayTarget(engine="kuberay", image=image, namespace="rlhf", volume_claim="rlhf-runs")
    target = find_target(on)
    if not isinstance(target, KubeRayTarget):
        what, fix = f"the target's engine is {target.engine}", "name a target with engine: kuberay"
        raise BadInput(Problem(what=what, where=on or "RLHF_TARGET", fix=fix))
    return target if image is None else target.model_copy(update={"image": image})
