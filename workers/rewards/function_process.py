"""Worker's side of a reward function's process: started once, called per batch, killed if it exceeds a limit.

Replies are JSON of bounded size, so the function cannot inject code into the worker.
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

POLL_S = 0.25  # interval between checks of the processes' memory and number
MAX_PROCESSES = 256  # that a function may have at a time
MAX_OUTPUT_BYTES = 64 * 2**20  # that a function may print per batch
MAX_REPLY_BYTES = 64 * 2**20
TAIL_BYTES = 4000  # end of the printed output, kept for error messages


class ProcessDied(RewardError):
    """The function's process ended. `signal`: the signal that killed it; None: it exited by itself."""

    def __init__(self, message: str, signal: int | None) -> None:
        super().__init__(message)
        self.signal = signal


class FunctionTraceback(Exception):
    """Cause of a RewardError: the function's traceback, or the end of its output."""


class FunctionProcess:
    """Process of the function at `target`. `name` is the function's name."""

    def __init__(self, target: str, *, timeout_s: float, memory_mib: int) -> None:
        """Start the process and load the function. Raises RewardError if this fails or takes over `timeout_s`."""
        self.name = target
        self._timeout_s, self._memory_mib = timeout_s, memory_mib
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self._output, output = os.pipe()
        command = [sys.executable, "-P", function_child.__file__, target]
        command += [str(n) for n in (requests, replies, memory_mib, os.getpid())]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},  # the worker's import path
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(requests, replies),
            start_new_session=True,  # identifies its child processes, and keeps Ctrl-C in the terminal away from it
        )
        for theirs in (requests, replies, output):
            os.close(theirs)
        self._died = os.pidfd_open(self._process.pid)  # readable once it has ended, even if its pipes are still open
        ours = (self._requests, self._replies, self._output, self._died)
        for end in ours[:3]:
            os.set_blocking(end, False)
        self.close = weakref.finalize(self, _end, self._process, ours)
        self._tail = b""
        reply = self._exchange(None)
        if "missing" in reply:
            self.close()
            raise RewardError(reply["missing"])
        if "raised" in reply:
            self.close()
            raise raised_error(f"reward function {target} cannot be loaded: it", reply)
        self.name = str(reply["name"])

    def call(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call the function and return the reply of `function_child`.

        Raises:
            ProcessDied: the process ended.
            RewardError: a limit was exceeded, and the process was killed.
        """
        # Columns come from JSON, parquet or `datasets`. Values that JSON cannot represent, such as dates, become text.
        body = json.dumps(arguments, default=str).encode()
        return self._exchange(len(body).to_bytes(8, "big") + body)

    # -------------------------------------------------------------------------------------------- the exchange

    def _exchange(self, request: bytes | None) -> dict[str, Any]:
        """Write the request and read the reply, while enforcing the limits."""
        deadline = time.monotonic() + self._timeout_s
        next_check = time.monotonic() + POLL_S
        unsent, received, printed = memoryview(request or b""), bytearray(), 0
        with selectors.DefaultSelector() as watch:
            for end in (self._replies, self._output, self._died):
                watch.register(end, selectors.EVENT_READ)
            if unsent:
                watch.register(self._requests, selectors.EVENT_WRITE)
            while True:
                now = time.monotonic()
                if now > deadline:
                    raise self._kill(f"did not answer within timeout_s = {self._timeout_s:g}")
                if now > next_check:
                    self._check_processes()
                    next_check = now + POLL_S
                ready = {key.fd for key, _ in watch.select(max(0.0, min(deadline, next_check) - now))}
                if self._output in ready:
                    printed += self._forward()
                    if printed > MAX_OUTPUT_BYTES:
                        raise self._kill(f"printed more than {MAX_OUTPUT_BYTES // 2**20} MiB in one batch")
                if self._requests in ready:
                    with suppress(BrokenPipeError):  # the cause is reported below
                        unsent = unsent[os.write(self._requests, unsent[:65536]) :]
                    if not unsent:
                        watch.unregister(self._requests)
                if self._replies in ready:
                    received += self._receive()
                    if (reply := self._parse(received)) is not None:
                        self._forward()
                        return reply
                elif self._died in ready:
                    raise self._death()

    def _receive(self) -> bytes:
        if data := os.read(self._replies, 2**20):
            return data
        if select.select([self._died], [], [], 1.0)[0]:
            raise self._death()
        raise self._kill("closed the pipe that returns its rewards")

    def _parse(self, received: bytearray) -> dict[str, Any] | None:
        """Parse a reply. None: it is not complete yet."""
        if len(received) < 8:
            return None
        size = int.from_bytes(received[:8], "big")
        if len(received) < 8 + size <= 8 + MAX_REPLY_BYTES:
            return None
        try:
            reply = json.loads(received[8:]) if len(received) == 8 + size else None
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise self._kill("wrote into the pipe that returns its rewards")
        return reply

    def _forward(self) -> int:
        """Copy the function's output to this process's log and return the number of bytes."""
        count = 0
        with suppress(BlockingIOError):
            while count < 2**20 and (data := os.read(self._output, 65536)):
                with suppress(OSError):
                    os.write(1, data)
                self._tail = (self._tail + data)[-TAIL_BYTES:]
                count += len(data)
        return count

    # -------------------------------------------------------------------------------------------- limits

    def _check_processes(self) -> None:
        processes = _session(self._process.pid)
        if len(processes) > MAX_PROCESSES:
            raise self._kill(f"started more than {MAX_PROCESSES} processes")
        limit = self._memory_mib * 2**20
        # The first sum is cheap but counts shared pages once per process. The second counts them once.
        if sum(map(_resident, processes)) > limit and (used := sum(map(_proportional, processes))) > limit:
            raise self._kill(f"used {used // 2**20} MiB of memory, more than memory_mib = {self._memory_mib}")

    def _kill(self, why: str) -> RewardError:
        """Kill the process and return the error to raise."""
        self.close()
        return self._with_tail(RewardError(f"reward {self.name} {why}; its process was killed"))

    def _death(self) -> ProcessDied:
        """Return the error to raise for a process that has ended."""
        self._forward()
        code = self._process.wait()
        self.close()
        if code >= 0:
            return self._with_tail(
                ProcessDied(f"reward {self.name} ended its process with exit code {code} instead of returning", None)
            )
        name = signal.Signals(-code).name
        why = " (a crash in native code)" if name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE") else ""
        return self._with_tail(ProcessDied(f"reward {self.name}: its process died of {name}{why}", -code))

    def _with_tail(self, error: E) -> E:
        if tail := self._tail.decode("utf-8", "replace").strip():
            error.__cause__ = FunctionTraceback(f"last output of the function:\n{tail}")
        return error


def raised_error(what: str, reply: Mapping[str, Any], after: str = "") -> RewardError:
    """Return the error for a reply with `raised`, caused by the function's own traceback."""
    place = f" at {reply['place']}" if reply.get("place") else ""
    error = RewardError(f"{what} raised {reply['raised']}{place}{after}")
    error.__cause__ = FunctionTraceback("\n" + str(reply.get("traceback", "")))
    return error


def _end(process: subprocess.Popen[bytes], ends: tuple[int, ...]) -> None:
    """Kill the function's processes, including its children, and close the pipes."""
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
    """Return the running processes of the session of `leader`."""
    processes = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                # Fields after the name, which ends at the last parenthesis: state, parent, group, session.
                state, _, _, session = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state not in "ZX":
                    processes.append(int(entry.name))
    return processes


def _resident(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _proportional(pid: int) -> int:
    with suppress(OSError, IndexError, ValueError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0
