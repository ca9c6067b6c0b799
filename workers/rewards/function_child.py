"""Process that a reward function runs in: `python -P function_child.py TARGET REQUESTS REPLIES MEMORY_MIB PARENT`.

It imports no module of this project, so that the function's imports resolve as they would anywhere else. Requests and
replies are JSON after their length (8 bytes, big-endian). A request holds the function's keyword arguments. A reply is
one of

    {"name": "reward"}                                              the function is loaded (once, before any request)
    {"rewards": [1.0, null], "changed": ["completions"]}            rewards, and the arguments that were modified
    {"kind": "float"}                                               the function did not return a list
    {"row": 3, "kind": "str", "value": "'2'"}                       an entry of the list is not a number
    {"raised": "ZeroDivisionError: …", "traceback": "…", "place": "mine.py:7"}
    {"missing": "mine.py has no function `reward` …"}               the function cannot be loaded
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import importlib.util
import inspect
import json
import numbers
import os
import reprlib
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

SIGNATURE = "reward(prompts, completions, completion_ids, **columns) -> list[float | None]"
PR_SET_PDEATHSIG = 1


class NoFunctionError(Exception):
    """The target does not name a usable function. The message says why."""


def load(target: str) -> Callable[..., Any]:
    """Load the function `path/to/file.py:name` or `package.module:name`. Raises NoFunctionError if there is none."""
    place, _, name = target.rpartition(":")
    if not place:
        raise NoFunctionError(
            f"reward function {target!r} names no function; write path/to/file.py:name or package.module:name"
        )
    function = getattr(_module(place), name, None)
    if not callable(function):
        raise NoFunctionError(f"{place} has no function {name!r}; a reward function looks like {SIGNATURE}")
    return cast("Callable[..., Any]", function)


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise NoFunctionError(f"reward function file {path} does not exist")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_signature(function: Callable[..., Any], where: str) -> None:
    """Check that the function accepts `completions`. Raises NoFunctionError if it does not."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C: it has no signature to check
        return
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if "completions" not in takes and not any(p.kind == p.VAR_KEYWORD for p in parameters):
        raise NoFunctionError(f"{where} takes no `completions`; a reward function looks like {SIGNATURE}")


# ------------------------------------------------------------------------------------------------ one request


def answer(function: Callable[..., Any], request: bytes) -> dict[str, Any]:
    """Call the function and return the reply, in one of the forms listed in the module docstring."""
    arguments = json.loads(request)
    try:
        returned = function(**arguments)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
    except BaseException as error:  # SystemExit as well: the function raised it
        return _error_reply(error)
    reply = _result_reply(returned)
    changed = _changed(arguments, request)
    return {**reply, "changed": changed} if changed else reply


async def _awaited(returned: Any) -> Any:
    return await returned


def _changed(arguments: dict[str, Any], request: bytes) -> list[str]:
    """Return the names of the arguments that differ from the request. Unmodified arguments encode to the same bytes."""
    try:
        if json.dumps(arguments).encode() == request:
            return []
    except (TypeError, ValueError, RecursionError):  # the function inserted something that JSON cannot represent
        pass
    return [name for name, value in json.loads(request).items() if arguments[name] != value]


def _result_reply(returned: Any) -> dict[str, Any]:
    numpy = sys.modules.get("numpy")
    array = numpy is not None and isinstance(returned, numpy.ndarray) and returned.ndim == 1
    if not array and (not isinstance(returned, Sequence) or isinstance(returned, str | bytes)):
        return {"kind": type(returned).__name__}
    rewards: list[float | None] = []
    for row, value in enumerate(returned):
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            return {"row": row, "kind": type(value).__name__, "value": _shown(value)}
        try:
            rewards.append(None if value is None else float(value))
        except OverflowError:  # an integer beyond the range of floats
            return {"row": row, "kind": f"{type(value).__name__}, too large", "value": _shown(value)}
    return {"rewards": rewards}


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except Exception:  # in a __repr__ of the user's, or for an integer with too many digits
        return "?"


def _error_reply(error: BaseException) -> dict[str, Any]:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    return {
        "raised": traceback.format_exception_only(error)[-1].strip()[:2000],
        "traceback": "".join(traceback.format_exception(error))[-20000:],
        "place": f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "",
    }


# ------------------------------------------------------------------------------------------------ the process


def _read(source: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(source, min(size - len(data), 2**20))
        if not part:  # the worker has closed the pipe
            os._exit(0)
        data += part
    return bytes(data)


def _write(target: int, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    data = memoryview(len(body).to_bytes(8, "big") + body)
    while data:
        data = data[os.write(target, data) :]


def _limit(memory_mib: int, parent: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    _ignore_sigterm()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl
        os._exit(1)


def _ignore_sigterm() -> None:
    """Ignore SIGTERM: schedulers send it to all processes of a run, which ends after its update and needs the rewards.

    Processes that the function starts do not ignore it: a pool ends its processes by it.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)  # unlike SIG_IGN, it does not outlive exec
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked by the worker until here


def main() -> None:
    target, (requests, replies, memory_mib, parent) = sys.argv[1], map(int, sys.argv[2:])
    me = os.getpid()
    _limit(memory_mib, parent)
    try:
        function = load(target)
        check_signature(function, target)
    except NoFunctionError as error:
        _write(replies, {"missing": str(error)})
        return
    except BaseException as error:
        _write(replies, _error_reply(error))
        return
    _write(replies, {"name": getattr(function, "__name__", target.rpartition(":")[2])})
    while True:
        request = _read(requests, int.from_bytes(_read(requests, 8), "big"))
        reply = answer(function, request)
        if os.getpid() != me:  # the function has forked and returned in the child as well
            os._exit(0)
        sys.stdout.flush()
        sys.stderr.flush()
        _write(replies, reply)


if __name__ == "__main__":
    main()
