"""Command `rlhf metrics`: Prometheus metrics of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say

DAY_S = 86400.0


def add_to(app: typer.Typer) -> None:
    app.command()(metrics)


def metrics(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Directories of runs, such as the output_dir of recipes, or single runs."
        ),
    ],
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Serve http://HOST:PORT/metrics until stopped, e.g. 127.0.0.1:9400.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="File with the bearer token that requests must carry. Needed if other machines can reach HOST.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write the metrics to FILE once, for the textfile collector of node_exporter.",
            show_default=False,
        ),
    ] = None,
    days: Annotated[
        float, typer.Option("--days", metavar="N", min=0.0, help="Leave out runs that ended more than N days ago.")
    ] = 14.0,
) -> int:
    """Show Prometheus metrics of all runs in a directory: print, write or serve them. Needs no cluster."""
    from orchestrator.monitor.prometheus import as_text, registry_of, server, write_textfile
    from orchestrator.monitor.prometheus_runs import RunsReader

    _check(runs, listen, token_file, output)
    reader = RunsReader(runs, keep_s=days * DAY_S)
    registry = registry_of(reader)
    if output is not None:
        write_textfile(registry, output)
    elif listen is not None:
        with server(registry, *_address(listen), token_file) as serving:
            reader.look()  # the first one reads all files: seconds for a run of 100,000 steps
            host, port = serving.server_address[:2]
            say(f"metrics: http://{host if isinstance(host, str) else host.decode()}:{port}/metrics")
            serving.serve_forever()
    else:
        print(as_text(registry), end="")
    return 0


def _check(runs: list[Path], listen: str | None, token_file: Path | None, output: Path | None) -> None:
    def refuse(what: str, why: str, fix: str) -> None:
        raise BadInput(Problem(what=what, where="command line", why=why, fix=fix))

    for path in runs:
        if not path.is_dir():
            refuse(str(path), "no such directory", "give the output_dir of your recipes, such as runs")
    if listen is not None and output is not None:
        refuse("--listen and --output", "metrics are either served or written", "give one of them")
    if token_file is not None and listen is None:
        refuse("--token-file", "a token is asked for by --listen alone", "give --listen, or leave it out")
    if output is not None and output.suffix != ".prom":
        refuse(f"--output {output}", "the textfile collector reads only names whose suffix is .prom", "rename the file")
    if output is not None and not output.parent.is_dir():
        refuse(f"--output {output}", f"there is no directory {output.parent}", f"mkdir {output.parent}")


def _address(listen: str) -> tuple[str, int]:
    """Return the host and the port of `HOST:PORT`."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        why, fix = "it is not HOST:PORT", "give --listen 127.0.0.1:9400"
        raise BadInput(Problem(what=f"--listen {listen}", where="command line", why=why, fix=fix))
    return host, int(port)
