"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe (YAML file), e.g. configs/quickstart/grpo.yaml.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory: runs/NAME.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="a.b=c",
        help="Override a setting, e.g. algorithm.beta=0.05 (of the last stage; stages.NAME.a.b=c for others; "
        "output_dir for all).",
        show_default=False,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Start the run over, and earlier stages whose recipe, data or code changed. Existing runs are kept as "
        "NAME.old-N.",
    ),
]
Attempts = Annotated[
    int,
    typer.Option(
        "--attempts",
        metavar="N",
        min=1,
        help="Maximum number of attempts: after a failure of a worker, the driver or the cluster the run resumes from "
        "its latest checkpoint.",
    ),
]
ResumeOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="a.b=c",
        help="Override a setting that does not affect the training, e.g. policy.num_ranks=1.",
        show_default=False,
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Address of the cluster's dashboard, e.g. http://HEAD:8265.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="File with the cluster's token (default: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token).",
    ),
]
OnTarget = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="TARGET",
        help="Target that has the job, from targets.yaml (default: RLHF_TARGET, else this machine).",
        show_default=False,
    ),
]
OnCluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="URL",
        help="Ray cluster that has the job, in place of --on: its dashboard, e.g. http://HEAD:8265 "
        "(default: RAY_API_SERVER_ADDRESS).",
        show_default=False,
    ),
]
RunOrJob = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|ID",
        help="Run directory, or id of a job. Of several directories, those of the stages of one job, the newest that "
        "has begun.",
    ),
]
RunOrNewestJob = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|ID",
        help="Run directory, or id of a job (default: the newest job of the target).",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
EvaluatedModel = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="Model that a suite evaluates: a path on the target, or the id of a Hub model."
    ),
]
Against = Annotated[
    str | None, typer.Option("--against", metavar="MODEL2|base", help="Second model of a suite, for the win rate.")
]
JobId = Annotated[str | None, typer.Argument(metavar="[ID]", help="Id of the job (default: the newest job).")]


def directory_option(default: str, use: str = "") -> Any:
    """Return the option `--output` of a command that writes a directory; `use` says when it has an effect."""
    text = f"Directory for the result ({use}default: {default})."
    return typer.Option("--output", metavar="DIR", help=text, show_default=False)
