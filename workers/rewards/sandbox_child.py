"""Launcher of a program inside the sandbox: `python -I launcher.py CPU_S MEMORY_BYTES FILE_BYTES`.

It sets limits that the program can only lower, writes one byte to report that it is ready, and runs /program.py. The
first line of standard input is JSON and gives the mode:

    {"mode": "input"}                                    the rest is the program's input; its output is returned
    {"mode": "assertions", "token": "9f…"}               the token is returned if the program runs to its end
    {"mode": "call", "function": "f", "arguments": […]}  the function's result is returned as JSON

In the last two modes the program's output is discarded.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import sys
from typing import Any

PROGRAM = "/program.py"
READY = b"\x01"
MAX_FILES = 64
MAX_THREADS = 64


def main() -> None:
    cpu_s, memory, file_size = map(int, sys.argv[1:])
    sys.argv[:] = [PROGRAM]
    first = b""
    while not first.endswith(b"\n"):  # byte by byte: the rest belongs to the program
        first += os.read(0, 1)
    order = json.loads(first)
    null = os.open("/dev/null", os.O_RDWR)
    out = 1
    if order["mode"] != "input":
        out = os.dup(1)
        os.dup2(null, 0)
        os.dup2(null, 1)
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_NPROC, MAX_THREADS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu_s),
    ):
        resource.setrlimit(limit, (value, value))
    os.dup2(null, 2)
    os.close(null)
    os.write(out, READY)
    if order["mode"] == "input":
        runpy.run_path(PROGRAM, run_name="__main__")
    else:
        # Not as __main__: the program's script part must not run.
        names = runpy.run_path(PROGRAM, run_name="solution")
        _write(out, order["token"] if order["mode"] == "assertions" else _called(names, order))


def _called(names: dict[str, Any], order: dict[str, Any]) -> str:
    """Call a function of the program, or a method of its class `Solution`, and return the result as JSON."""
    name = order["function"]
    function = names[name] if name in names else getattr(names["Solution"](), name)
    return json.dumps(function(*order["arguments"]))


def _write(out: int, text: str) -> None:
    data = text.encode()
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(out, data) :]


if __name__ == "__main__":
    main()
