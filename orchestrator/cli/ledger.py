"""Command `rlhf ledger verify`: verify a run directory against its checksums."""

from __future__ import annotations

import typer

from orchestrator.cli.options import RunPath
from orchestrator.terminal import say

HELP = "Verify a run's ledger, checkpoints and rollouts."


def add_to(app: typer.Typer) -> None:
    ledger = typer.Typer(no_args_is_help=True, help=HELP)
    ledger.callback(help=HELP)(_group)
    ledger.command()(verify)
    app.add_typer(ledger, name="ledger")


def _group() -> None:
    """Make `ledger` a group of subcommands."""


def verify(run_directory: RunPath) -> int:
    """Verify a run's ledger, checkpoints and rollout files against their checksums.

    Exit code: 1 if anything is missing or damaged, else 0.
    """
    from orchestrator.rundir.audit import audit
    from orchestrator.rundir.directory import RunDirectory
    from orchestrator.rundir.stored import explained, open_stored

    directory = RunDirectory.open(run_directory)
    stored = open_stored(directory.config(), directory)
    with explained(directory.config().storage or ""):
        findings = audit(directory, stored)
    for finding in findings:
        say(f"{'good' if finding.good else 'BAD '}  {finding.what}: {finding.why}")
    return 0 if all(finding.good for finding in findings) else 1
