"""`rlhf ledger verify`: whether a run directory says the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.terminal import say


def add_to(app: typer.Typer) -> None:
    ledger = typer.Typer(no_args_is_help=True, help="What a run's ledger says, and whether it is true.")
    ledger.callback()(_group)
    ledger.command()(verify)
    app.add_typer(ledger, name="ledger")


def _group() -> None:
    """What a run's ledger says, and whether it is true."""


def verify(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory: runs/NAME.")],
) -> int:
    """Check ledger, checkpoints and rollouts of a run against their hashes, and count its steps. Exit code 1 when
    something is not as it was written."""
    from orchestrator.rundir.audit import audit
    from orchestrator.rundir.directory import RunDirectory

    found = audit(RunDirectory.open(run_directory))
    for finding in found:
        say(f"{'good' if finding.good else 'BAD '}  {finding.what}: {finding.why}")
    return 0 if all(finding.good for finding in found) else 1
