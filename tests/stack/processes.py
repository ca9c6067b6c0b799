"""A command in a session of its own, and whoever it starts: of its session, or with a mark in its environment.

Neither is enough: a sandbox is a session of its own, and Ray's agents write their names over parts of their environ.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

MARK = "RLHF_TEST_COMMAND"
FORKS = "RLHF_FORK_SERVERS"


class Command:
    """`rlhf …`, running. Ray and fork servers are its own: nothing in its environment leads to those of the session."""

    def __init__(self, *arguments: str, cwd: Path, variables: Mapping[str, str] | None = None) -> None:
        self._mark = uuid.uuid4().hex
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", FORKS))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
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
        """Until a line that has `text` in it, or the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} never came:\n{self.output}")

    def press_ctrl_c(self) -> None:
        """As a terminal does it: to the whole group in the foreground."""
        os.killpg(self._process.pid, signal.SIGINT)

    def terminate(self) -> None:
        """As a scheduler does it: to the process that it started."""
        self._process.terminate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def exit_code(self) -> int:
        """When it has ended."""
        rest, _ = self._process.communicate()
        self.output += rest
        return self._process.returncode

    def left_behind(self) -> list[int]:
        return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and self._started(p)]

    def leaves_nothing_behind(self) -> bool:
        """Ray's workers notice a moment later that their cluster is gone. Its two agents at times want to tell the head
        of it first, which is gone, too, and give up after a minute."""
        return eventually(lambda: not self.left_behind(), within_s=90.0)

    def _started(self, process: Path) -> bool:
        try:
            if os.getsid(int(process.name)) == self._process.pid:
                return bool((process / "cmdline").read_bytes())  # else it has ended, and nobody has asked how
            return f"{MARK}={self._mark}".encode() in (process / "environ").read_bytes()
        except OSError:  # it ended, or is not ours
            return False


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
