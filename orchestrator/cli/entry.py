"""Hidden commands `rlhf entry secrets | output | keep | preempt | guard`: launchers put them before a job's own."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say

HELP = "Commands that launchers put before a job's own."
Command = Annotated[list[str], typer.Argument(metavar="COMMAND...", help="Command, after --.")]


def add_to(app: typer.Typer) -> None:
    entry = typer.Typer(no_args_is_help=True, help=HELP)
    entry.command()(secrets)
    entry.command()(output)
    entry.command()(keep)
    entry.command()(preempt)
    entry.command()(guard)
    app.add_typer(entry, name="entry", hidden=True)


def secrets(
    words: Annotated[list[str], typer.Argument(metavar="VARIABLE=FILE... -- COMMAND...", help="Secrets, and command.")],
) -> int:
    """Read each file, set its variable, and become the command. No value is printed or put on a command line."""
    from orchestrator.launch.entry import become, read_secrets

    count = next((i for i, word in enumerate(words) if "=" not in word), len(words))
    if count == len(words):
        raise BadInput(Problem(what="no command is given", where="rlhf entry secrets", fix="give it after --"))
    become(words[count:], read_secrets(words[:count]), words[:count])
    raise AssertionError("unreachable")


def output(command: Command) -> int:
    """Run `rlhf COMMAND` and print its exit code, stdout and stderr as one line."""
    from orchestrator.cli.main import main
    from orchestrator.launch.base import Output
    from orchestrator.launch.entry import output_line

    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main(command)
    say(output_line(Output(exit_code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())))
    return code


def keep(directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the job.")]) -> int:
    """Run the command of a job of this machine and record its end."""
    from orchestrator.launch.local import keep as run

    return run(directory)


def preempt(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories of the job's stages.")],
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Seconds to wait for exit.json.")],
) -> int:
    """Ask the run that is in progress to end with a checkpoint, and wait. The hook of a pod that is to end."""
    from orchestrator.launch.pod import preempt as end_runs

    late = end_runs(directories, wait)
    for run in late:
        say(f"{run.name}: no exit.json after {wait:.0f} s")
    return 1 if late else 0


def guard(
    words: Annotated[list[str], typer.Argument(metavar="RUN... -- COMMAND...", help="Run directories, and command.")],
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Seconds to wait for an earlier driver to end.")
    ] = 0.0,
) -> int:
    """Become the command after an earlier driver has ended, unless an alarm has ended a run of this job.

    An engine that starts every failed job again must not go on after an alarm. The run directories are absolute, and
    the command begins with a name that is found in PATH.
    """
    from orchestrator.errors import Alarmed
    from orchestrator.launch.entry import become
    from orchestrator.launch.pod import ended_by_alarm, wait_until_free

    count = next((i for i, word in enumerate(words) if not word.startswith("/")), len(words))
    if count == len(words):
        raise BadInput(Problem(what="no command is given", where="rlhf entry guard", fix="give it after --"))
    directories = [Path(word) for word in words[:count]]
    if holder := wait_until_free(directories, wait):
        say(f"{holder} still holds the run after {wait:.0f} s")
    if alarm := ended_by_alarm(directories):
        say(f"not started again, an alarm ended the run: {alarm}")
        return Alarmed.exit_code
    become(words[count:], {})
    raise AssertionError("unreachable")
