"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A YAML file, such as configs/quickstart/grpo.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="a.b=c",
        help="Values to change: of the last stage, or stages.NAME.a.b=c of another.",
        show_default=False,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Begin anew, with earlier stages of which recipe, data or code changed; NAME.old-N keeps what was there.",
    ),
]
Attempts = Annotated[
    int,
    typer.Option(
        "--attempts",
        metavar="N",
        min=1,
        help="When a worker, the driver or the cluster fails, go on from the newest checkpoint: N attempts in all.",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="a.b=c", help="Values to change: where the run lives, such as policy.num_ranks=1.", show_default=False
    ),
]
Cluster = Annotated[
    str,
    typer.Option("--cluster", metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="The dashboard: http://HEAD:8265."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="Holds the cluster's token. Else RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.",
    ),
]
JobId = Annotated[str | None, typer.Argument(metavar="[ID]", help="The newest job when left out.")]
