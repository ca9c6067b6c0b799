"""Entry commands of jobs: `rlhf entry secrets` and `rlhf entry output`, which run another command on the target.

    rlhf entry secrets WANDB_API_KEY=/run/secrets/wandb -- rlhf run a.yaml      reads the file on the target, sets the
                                                                                variable, and becomes the command
    rlhf entry output -- why /shared/runs/a                                     prints one line, from which the caller
                                                                                gets exit code, stdout and stderr

The engine's records show these command lines to everyone who may look at them: they name files and never hold a value.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import Problems
from orchestrator.launch.base import Output
from workers.storage import SECRET_FILES

MARK = "rlhf-output "
"""First letters of the line that `rlhf entry output` prints."""

SECRETS = ("rlhf", "entry", "secrets")


def with_secrets(command: Sequence[str], secrets: Mapping[str, str]) -> tuple[str, ...]:
    """Return the command that reads the files of `secrets` on the target, and then becomes `command`."""
    if not secrets:
        return tuple(command)
    named = (f"{variable}={file}" for variable, file in sorted(secrets.items()))
    return (*SECRETS, *named, "--", *command)


def with_same_secrets(words: Sequence[str], command: Sequence[str]) -> tuple[str, ...]:
    """Return another command for a job whose command is `words`. It gets the secrets that `with_secrets` gave that."""
    has_secrets = tuple(words[:3]) == SECRETS and "--" in words
    return (*(words[: words.index("--") + 1] if has_secrets else ()), *command)


def read_secrets(pairs: Sequence[str]) -> dict[str, str]:
    """Return variables and values, from texts like VARIABLE=FILE.

    Raises:
        BadInput: a text has another form, or a file cannot be read or is empty.
    """
    problems, values = Problems(), dict[str, str]()
    for pair in pairs:
        variable, _, file = pair.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", variable) or not file:
            problems.add("not a secret", where=pair, fix="give VARIABLE=FILE")
            continue
        try:
            values[variable] = Path(file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = (getattr(error, "strerror", None) or "it is not text").lower()
            fix = "put the secret into this file on the target, readable by the job's user"
            problems.add(f"the secret {variable} cannot be read", where=file, why=why, fix=fix)
            continue
        if not values[variable]:
            problems.add(f"the secret {variable} is empty", where=file, fix="put the secret into this file")
    problems.raise_if_any()
    return values


def become(command: Sequence[str], variables: Mapping[str, str], pairs: Sequence[str] = ()) -> None:
    """Replace this process by `command`, with `variables` added to the environment.

    `pairs`: texts like VARIABLE=FILE, from which workers on other machines read the keys of a store.
    """
    files = {SECRET_FILES: os.pathsep.join(pairs)} if pairs else {}
    os.execvpe(command[0], list(command), {**os.environ, **files, **variables})


def output_of(command: Sequence[str]) -> Output:
    """Run a command on this machine and return its output."""
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    stdout, stderr = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    return Output(exit_code=done.returncode, stdout=stdout, stderr=stderr)


def output_command(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs `rlhf ARGUMENTS` and prints its output as a line that `find_output` finds."""
    return ("rlhf", "entry", "output", "--", *arguments)


def output_line(output: Output) -> str:
    """Return an output as one line of ASCII, which no log can break."""
    return MARK + json.dumps({"exit_code": output.exit_code, "stdout": output.stdout, "stderr": output.stderr})


def find_output(log: str) -> Output | None:
    """Return the output in a log that may have other lines; None if there is none."""
    line = next((line for line in reversed(log.splitlines()) if line.startswith(MARK)), None)
    if line is None:
        return None
    try:
        return Output(**json.loads(line.removeprefix(MARK)))
    except (ValueError, TypeError):
        return None
