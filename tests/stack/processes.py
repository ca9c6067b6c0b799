"""Run a command in a session of its own and find the processes it starts, by session or by an environment variable.

Neither is enough alone: a sandbox has its own session, and Ray's agents overwrite part of their environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

MARK = "RLHF_TEST_COMMAND"
FORKS = "RLHF_FORK_SERVERS"


class Command:
    """Running `rlhf` command. Its environment hides the Ray head and the fork servers of the test session."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        variables: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "orchestrator.cli"),
    ) -> None:
        self._mark = uuid.uuid4().hex
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", FORKS))}
        self._process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=cwd,
            env={**environment, **(variables or {}), MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.left_behind():
            os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def read_until(self, text: str) -> None:
        """Read the output up to a line that contains `text`, and fail if there is none."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} never came:\n{self.output}")

    def press_ctrl_c(self) -> None:
        """Send SIGINT to the whole process group, as a terminal does."""
        os.killpg(self._process.pid, signal.SIGINT)

    def terminate(self) -> None:
        """Send SIGTERM only to the command, as a scheduler does."""
        self._process.terminate()

    def terminate_all(self) -> None:
        """Send SIGTERM to every process of the command, as a service manager or a scheduler may."""
        for pid in self.left_behind():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def exit_code(self) -> int:
        """Wait until the command ends, and return its exit code."""
        rest, _ = self._process.communicate()
        self.output += rest
        return self._process.returncode

    def left_behind(self) -> list[int]:
        return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and self._started(p)]

    def leaves_nothing_behind(self) -> bool:
        """Return whether all processes of the command have ended within 90 seconds.

        Ray's workers notice the end of their cluster with a delay. Its two agents sometimes try to reach the head,
        which has ended too, and give up after a minute.
        """
        return eventually(lambda: not self.left_behind(), within_s=90.0)

    def _started(self, process: Path) -> bool:
        try:
            if os.getsid(int(process.name)) == self._process.pid:
                return bool((process / "cmdline").read_bytes())  # empty for a zombie
            return f"{MARK}={self._mark}".encode() in (process / "environ").read_bytes()
        except OSError:  # the process has ended, or belongs to another user
            return False


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
