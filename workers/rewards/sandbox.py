"""Execution of untrusted programs: a new bubblewrap sandbox for every run.

A sandbox has its own namespaces (user, process, network, mount, IPC, host name), no capabilities, no environment and no
/proc. Its file system is the interpreter and the system's libraries, read-only, and a small /tmp. Time, memory, files
and output are limited. A system-call filter forbids new processes and sockets. If any of this is unavailable, no
program is run.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workers.rewards import sandbox_child
from workers.rewards.base import RewardError
from workers.rewards.seccomp import filter_for

MAX_OUTPUT_BYTES = 4 * 2**20
TMP_BYTES = 32 * 2**20
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
NOBODY = "65534"
LAUNCHER = "/launcher.py"
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
NEEDS = (
    "code rewards need bubblewrap (apt-get install bubblewrap), unprivileged user namespaces (in a container, its "
    "seccomp profile must allow them) and x86_64 or aarch64; without them no model output is run"
)


class NoSandboxError(RewardError):
    """Programs cannot be run safely on this machine. The message says what is missing and how to install it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramResult:
    """Result of running a program. Example: `ProgramResult(end="exit", code=0, output=b"4\\n")`."""

    end: Literal["exit", "time", "output"]  # time: it timed out; output: it printed more than MAX_OUTPUT_BYTES
    code: int | None  # exit code; None: it was killed
    output: bytes


class Sandbox:
    """Runs Python programs, each in a sandbox of its own. Thread-safe."""

    def __init__(self, *, timeout_s: float, memory_mib: int) -> None:
        """Check that a sandbox can be started. Raises NoSandboxError if it cannot.

        Args:
            timeout_s: limit of processor time. The limit of wall-clock time is twice that plus 5 s, because a program
                may sleep or wait for a core.
            memory_mib: limit of address space.
        """
        self._wall_s = 2 * timeout_s + 5
        self._limits = [str(n) for n in (math.ceil(timeout_s), memory_mib * 2**20, TMP_BYTES)]
        self._command = _bwrap_command()
        if self.run("", {"mode": "input"}) != ProgramResult(end="exit", code=0, output=b""):
            raise NoSandboxError(f"an empty program fails in the sandbox: memory_mib = {memory_mib} may be too small")

    def run(self, program: str, order: Mapping[str, Any], stdin: bytes = b"") -> ProgramResult:
        """Run `program` as described by `order` (see `sandbox_child`) and return its result.

        Raises:
            NoSandboxError: the sandbox itself failed twice. A failure of the sandbox is never taken for one of the
                program, nor the reverse.
        """
        given = json.dumps(order).encode() + b"\n" + stdin
        result, errors = self._run(program.encode("utf-8", "replace"), given)
        if not result.output.startswith(sandbox_child.READY):
            result, errors = self._run(program.encode("utf-8", "replace"), given)
        if not result.output.startswith(sandbox_child.READY):
            why = errors.decode("utf-8", "replace").strip() or f"it ended with {result.code} ({result.end})"
            raise NoSandboxError(f"the sandbox for programs does not start: {why}; {NEEDS}")
        return ProgramResult(end=result.end, code=result.code, output=result.output[len(sandbox_child.READY) :])

    def _run(self, program: bytes, stdin: bytes) -> tuple[ProgramResult, bytes]:
        """Return the result and the standard error of bubblewrap, which the program cannot write to."""
        with _sealed(_filter()) as calls, _sealed(program) as text, _sealed(stdin) as source:
            command = [*self._command, "--ro-bind-data", str(text), sandbox_child.PROGRAM, "--remount-ro", "/"]
            command += ["--seccomp", str(calls), "--", _interpreter(), "-I", LAUNCHER, *self._limits]
            process = subprocess.Popen(
                command,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                pass_fds=(calls, text),
            )
        with process:
            try:
                return _wait(process, time.monotonic() + self._wall_s)
            finally:
                process.kill()  # this kills everything in the sandbox


def _bwrap_command() -> list[str]:
    """Return the part of the bubblewrap command that is the same in all runs. Later options override earlier ones."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise NoSandboxError(f"bubblewrap (bwrap) is not installed on this machine; {NEEDS}")
    _filter()
    command = [bwrap, "--unshare-all", "--unshare-user", "--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"]
    command += ["--clearenv", "--cap-drop", "ALL", "--die-with-parent", "--new-session"]
    for place in LIBRARIES:
        if os.path.islink(place):
            command += ["--symlink", os.readlink(place), place]
        elif os.path.isdir(place):
            command += ["--ro-bind", place, place]
    if not Path(_interpreter()).is_relative_to("/usr/lib"):
        command += _python()
    command += ["--ro-bind", sandbox_child.__file__, LAUNCHER]
    for device in ("/dev/null", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    return [*command, "--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp"]


def _interpreter() -> str:
    """Return the base interpreter of this environment, so that programs have only the standard library."""
    return os.path.realpath(sys.executable)


def _python() -> list[str]:
    """Return the mounts for Python: only the binary of a system Python, whose library is mounted already; otherwise its
    whole directory."""
    interpreter = _interpreter()
    if Path(sys.base_prefix) in (Path("/usr"), Path("/")):
        return ["--ro-bind", interpreter, interpreter]
    return ["--ro-bind", sys.base_prefix, os.path.realpath(sys.base_prefix)]


def _filter() -> bytes:
    instructions = filter_for()
    if instructions is None:
        raise NoSandboxError(f"there is no system-call filter for {platform.machine()}; {NEEDS}")
    return instructions


@contextmanager
def _sealed(data: bytes) -> Iterator[int]:
    """Yield a descriptor of an immutable in-memory file with `data`, positioned at its start."""
    file = os.memfd_create("rlhf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        unwritten = memoryview(data)
        while unwritten:
            unwritten = unwritten[os.write(file, unwritten) :]
        os.lseek(file, 0, os.SEEK_SET)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
        yield file
    finally:
        os.close(file)


def _wait(process: subprocess.Popen[bytes], deadline: float) -> tuple[ProgramResult, bytes]:
    """Read until the program has closed its output, or has exceeded the limit of time or output."""
    assert process.stdout is not None
    assert process.stderr is not None
    read = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    output, errors = read.values()
    still_open = set(read)
    while still_open:
        ready, _, _ = select.select(still_open, [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return ProgramResult(end="time", code=None, output=bytes(output)), bytes(errors)
        for end in ready:
            data = os.read(end, 65536)
            read[end] += data
            if not data:
                still_open.discard(end)
            elif len(output) > MAX_OUTPUT_BYTES or len(errors) > MAX_OUTPUT_BYTES:
                return ProgramResult(end="output", code=None, output=bytes(output)), bytes(errors)
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:  # still running, with its output closed
        return ProgramResult(end="time", code=None, output=bytes(output)), bytes(errors)
    return ProgramResult(end="exit", code=code, output=bytes(output)), bytes(errors)
