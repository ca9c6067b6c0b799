"""Running a program that nobody trusts: a fresh bubblewrap sandbox for every run, with nothing in it to take or break.

Own namespaces for users, processes, network, mounts, IPC and host name; no capabilities, no environment, no /proc; of
the file system the interpreter and the system's libraries, read-only, and a small /tmp; limits of time, memory, files
and output; a filter of system calls without new processes and sockets. Where any of it is missing nothing is run.
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
    "code rewards need bubblewrap (apt-get install bubblewrap), user namespaces that are allowed (in a container: by "
    "its seccomp profile) and x86_64 or aarch64; without them model output is not run at all"
)


class NoSandboxError(RewardError):
    """Programs cannot be run safely on this machine; the message says what is missing and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """How a program ended. Example: `Ran(end="exit", code=0, output=b"4\\n")`."""

    end: Literal["exit", "time", "output"]  # output: it printed more than MAX_OUTPUT_BYTES
    code: int | None  # None: it was stopped
    output: bytes


class Sandbox:
    """Runs Python programs, each alone; safe to use from several threads."""

    def __init__(self, *, timeout_s: float, memory_mib: int) -> None:
        """`timeout_s` of processor time; on the clock a program has twice that and 5 s, for it may sleep or wait its
        turn. Raises NoSandboxError where none can be had."""
        self._wall_s = 2 * timeout_s + 5
        self._limits = [str(n) for n in (math.ceil(timeout_s), memory_mib * 2**20, TMP_BYTES)]
        self._room = _room()
        if self.run("", {"way": "input"}) != Ran(end="exit", code=0, output=b""):
            raise NoSandboxError(
                f"not even an empty program runs in the sandbox: is memory_mib = {memory_mib} too little?"
            )

    def run(self, program: str, order: Mapping[str, Any], stdin: bytes = b"") -> Ran:
        """`order` as `sandbox_child` has it. Raises NoSandboxError when the sandbox itself fails, twice: what a program
        does is never taken for that, nor that for what a program does."""
        given = json.dumps(order).encode() + b"\n" + stdin
        ran, complaint = self._run(program.encode("utf-8", "replace"), given)
        if not ran.output.startswith(sandbox_child.READY):
            ran, complaint = self._run(program.encode("utf-8", "replace"), given)
        if not ran.output.startswith(sandbox_child.READY):
            why = complaint.decode("utf-8", "replace").strip() or f"it ended with {ran.code} ({ran.end})"
            raise NoSandboxError(f"the sandbox for programs does not start: {why}; {NEEDS}")
        return Ran(end=ran.end, code=ran.code, output=ran.output[len(sandbox_child.READY) :])

    def _run(self, program: bytes, stdin: bytes) -> tuple[Ran, bytes]:
        """How it ended, and what stood on standard error, which the program itself cannot reach."""
        with _sealed(_filter()) as calls, _sealed(program) as text, _sealed(stdin) as source:
            command = [*self._room, "--ro-bind-data", str(text), sandbox_child.PROGRAM, "--remount-ro", "/"]
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
                return _watched(process, time.monotonic() + self._wall_s)
            finally:
                process.kill()  # and with it all that is inside


def _room() -> list[str]:
    """The sandbox up to what differs from run to run; later options are laid over earlier ones."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise NoSandboxError(f"there is no bubblewrap (bwrap) on this machine; {NEEDS}")
    _filter()
    room = [bwrap, "--unshare-all", "--unshare-user", "--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"]
    room += ["--clearenv", "--cap-drop", "ALL", "--die-with-parent", "--new-session"]
    for place in LIBRARIES:
        if os.path.islink(place):
            room += ["--symlink", os.readlink(place), place]
        elif os.path.isdir(place):
            room += ["--ro-bind", place, place]
    if not Path(_interpreter()).is_relative_to("/usr/lib"):
        room += _python()
    room += ["--ro-bind", sandbox_child.__file__, LAUNCHER]
    for device in ("/dev/null", "/dev/urandom"):
        room += ["--dev-bind", device, device]
    return [*room, "--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp"]


def _interpreter() -> str:
    """The Python that this one's environment was made of: programs get the standard library alone."""
    return os.path.realpath(sys.executable)


def _python() -> list[str]:
    """Of a system's Python (in /usr/bin) only itself, as its library is among the system's; else its own directory."""
    interpreter = _interpreter()
    if Path(sys.base_prefix) in (Path("/usr"), Path("/")):
        return ["--ro-bind", interpreter, interpreter]
    return ["--ro-bind", sys.base_prefix, os.path.realpath(sys.base_prefix)]


def _filter() -> bytes:
    instructions = filter_for()
    if instructions is None:
        raise NoSandboxError(f"there is no filter of system calls for {platform.machine()} here; {NEEDS}")
    return instructions


@contextmanager
def _sealed(data: bytes) -> Iterator[int]:
    """A file in memory that nobody can change any more, at its beginning."""
    file = os.memfd_create("rlhf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(file, left) :]
        os.lseek(file, 0, os.SEEK_SET)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
        yield file
    finally:
        os.close(file)


def _watched(process: subprocess.Popen[bytes], until: float) -> tuple[Ran, bytes]:
    """Read until the program has closed its output, or has used up its time or its room for output."""
    assert process.stdout is not None
    assert process.stderr is not None
    read = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    output, complaint = read.values()
    left = set(read)
    while left:
        ready, _, _ = select.select(left, [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return Ran(end="time", code=None, output=bytes(output)), bytes(complaint)
        for end in ready:
            data = os.read(end, 65536)
            read[end] += data
            if not data:
                left.discard(end)
            elif len(output) > MAX_OUTPUT_BYTES or len(complaint) > MAX_OUTPUT_BYTES:
                return Ran(end="output", code=None, output=bytes(output)), bytes(complaint)
    try:
        code = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:  # it lives on with its output closed
        return Ran(end="time", code=None, output=bytes(output)), bytes(complaint)
    return Ran(end="exit", code=code, output=bytes(output)), bytes(complaint)
