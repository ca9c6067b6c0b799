"""A reward function's own process, seen from the worker: started once, asked batch by batch, ended at a limit.

What comes back is JSON of a bounded size, so nothing that the function does can become code here.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from workers.rewards import function_child
from workers.rewards.base import RewardError

E = TypeVar("E", bound=RewardError)

POLL_S = 0.25  # between looks at what its processes use
MAX_PROCESSES = 256  # of one function at a time
MAX_OUTPUT_BYTES = 64 * 2**20  # that it may print in one batch
MAX_ANSWER_BYTES = 64 * 2**20
TAIL_BYTES = 4000  # of what it printed, kept for an error


class Died(RewardError):
    """The function's process ended. `signal`: what killed it; None: it ended itself."""

    def __init__(self, message: str, signal: int | None) -> None:
        super().__init__(message)
        self.signal = signal


class FunctionTraceback(Exception):
    """The function's own traceback, or what it printed last: stands above the RewardError that it caused."""


class FunctionProcess:
    """One process for the function at `target`. Its `name` is the function's own."""

    def __init__(self, target: str, *, timeout_s: float, memory_mib: int) -> None:
        """Raises RewardError when the function cannot be loaded within `timeout_s`."""
        self.name = target
        self._timeout_s, self._memory_mib = timeout_s, memory_mib
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._output, output = os.pipe()
        command = [sys.executable, "-P", function_child.__file__, target]
        command += [str(n) for n in (requests, answers, memory_mib, os.getpid())]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},  # it finds what we find
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(requests, answers),
            start_new_session=True,  # its children are found by it, and the terminal's Ctrl-C passes it by
        )
        for theirs in (requests, answers, output):
            os.close(theirs)
        self._died = os.pidfd_open(self._process.pid)  # readable when it has ended, whoever still holds its pipes
        ours = (self._requests, self._answers, self._output, self._died)
        for end in ours[:3]:
            os.set_blocking(end, False)
        self.close = weakref.finalize(self, _end, self._process, ours)
        self._tail = b""
        told = self._exchange(None)
        if "missing" in told:
            self.close()
            raise RewardError(told["missing"])
        if "raised" in told:
            self.close()
            raise raised(f"reward function {target} cannot be loaded: it", told)
        self.name = str(told["name"])

    def ask(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `function_child.answer` says. Raises Died, or RewardError for a limit that was hit; the process is gone
        then."""
        # Columns come from JSON, parquet or `datasets`; what JSON has no word for (a date) arrives as text.
        body = json.dumps(arguments, default=str).encode()
        return self._exchange(len(body).to_bytes(8, "big") + body)

    # -------------------------------------------------------------------------------------------- the exchange

    def _exchange(self, request: bytes | None) -> dict[str, Any]:
        """Write the request, read the answer, and watch the limits meanwhile."""
        until = time.monotonic() + self._timeout_s
        look = time.monotonic() + POLL_S
        left, answer, printed = memoryview(request or b""), bytearray(), 0
        with selectors.DefaultSelector() as watch:
            for end in (self._answers, self._output, self._died):
                watch.register(end, selectors.EVENT_READ)
            if left:
                watch.register(self._requests, selectors.EVENT_WRITE)
            while True:
                now = time.monotonic()
                if now > until:
                    raise self._stopped(f"did not answer within timeout_s = {self._timeout_s:g}")
                if now > look:
                    self._look_at_processes()
                    look = now + POLL_S
                ready = {key.fd for key, _ in watch.select(max(0.0, min(until, look) - now))}
                if self._output in ready:
                    printed += self._forward()
                    if printed > MAX_OUTPUT_BYTES:
                        raise self._stopped(f"printed more than {MAX_OUTPUT_BYTES // 2**20} MiB in one batch")
                if self._requests in ready:
                    with suppress(BrokenPipeError):  # whose reason is told below
                        left = left[os.write(self._requests, left[:65536]) :]
                    if not left:
                        watch.unregister(self._requests)
                if self._answers in ready:
                    answer += self._received()
                    if (told := self._parsed(answer)) is not None:
                        self._forward()
                        return told
                elif self._died in ready:
                    raise self._ended()

    def _received(self) -> bytes:
        if data := os.read(self._answers, 2**20):
            return data
        if select.select([self._died], [], [], 1.0)[0]:
            raise self._ended()
        raise self._stopped("closed the pipe that its answer comes through")

    def _parsed(self, answer: bytearray) -> dict[str, Any] | None:
        """None: it has not arrived whole."""
        if len(answer) < 8:
            return None
        size = int.from_bytes(answer[:8], "big")
        if len(answer) < 8 + size <= 8 + MAX_ANSWER_BYTES:
            return None
        try:
            told = json.loads(answer[8:]) if len(answer) == 8 + size else None
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise self._stopped("wrote into the pipe that its answer comes through")
        return told

    def _forward(self) -> int:
        """Hand on what the function printed, into this process's own log; how many bytes."""
        count = 0
        with suppress(BlockingIOError):
            while count < 2**20 and (data := os.read(self._output, 65536)):
                with suppress(OSError):
                    os.write(1, data)
                self._tail = (self._tail + data)[-TAIL_BYTES:]
                count += len(data)
        return count

    # -------------------------------------------------------------------------------------------- its limits

    def _look_at_processes(self) -> None:
        family = _session(self._process.pid)
        if len(family) > MAX_PROCESSES:
            raise self._stopped(f"started more than {MAX_PROCESSES} processes")
        limit = self._memory_mib * 2**20
        # Pages that are shared count once per process in the first sum, which is quick, and once in the second.
        if sum(map(_resident, family)) > limit and (used := sum(map(_proportional, family))) > limit:
            raise self._stopped(f"used {used // 2**20} MiB of memory, more than memory_mib = {self._memory_mib}")

    def _stopped(self, why: str) -> RewardError:
        self.close()
        return self._with_tail(RewardError(f"reward {self.name} {why}; its process was ended"))

    def _ended(self) -> Died:
        self._forward()
        code = self._process.wait()
        self.close()
        if code >= 0:
            return self._with_tail(
                Died(f"reward {self.name} ended its process with exit code {code} instead of returning", None)
            )
        name = signal.Signals(-code).name
        why = " (a crash in native code)" if name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE") else ""
        return self._with_tail(Died(f"reward {self.name}: its process died of {name}{why}", -code))

    def _with_tail(self, error: E) -> E:
        if tail := self._tail.decode("utf-8", "replace").strip():
            error.__cause__ = FunctionTraceback(f"it printed last:\n{tail}")
        return error


def raised(what: str, told: Mapping[str, Any], after: str = "") -> RewardError:
    """The error for an answer with `raised` in it, with the function's own traceback above it."""
    place = f" at {told['place']}" if told.get("place") else ""
    error = RewardError(f"{what} raised {told['raised']}{place}{after}")
    error.__cause__ = FunctionTraceback("\n" + str(told.get("traceback", "")))
    return error


def _end(process: subprocess.Popen[bytes], ends: tuple[int, ...]) -> None:
    """Kill whatever is left of the function, its own children too."""
    for _ in range(50):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in (others := _session(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not others:
            break
        time.sleep(0.01)
    process.wait()
    for end in ends:
        os.close(end)


def _session(leader: int) -> list[int]:
    """The living processes of the session that `leader` began."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                # After the name, which ends with the last parenthesis: state, parent, group, session.
                state, _, _, session = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state not in "ZX":
                    found.append(int(entry.name))
    return found


def _resident(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _proportional(pid: int) -> int:
    with suppress(OSError, IndexError, ValueError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0
