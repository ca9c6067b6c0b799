"""The process that a reward function runs in: `python -P function_child.py TARGET REQUESTS ANSWERS MEMORY_MIB PARENT`.

It imports nothing of ours, so that the function finds the modules it would find anywhere else. Requests and answers are
JSON behind their length (8 bytes, big-endian). A request is the function's keyword arguments; an answer is one of

    {"name": "reward"}                                              the function is there (once, before any request)
    {"rewards": [1.0, null], "changed": ["completions"]}            and which arguments are no longer what they were
    {"kind": "float"}                                               it returned no list
    {"row": 3, "kind": "str", "value": "'2'"}                       an entry of its list is no number
    {"raised": "ZeroDivisionError: …", "traceback": "…", "place": "mine.py:7"}
    {"missing": "mine.py has no function `reward` …"}               it cannot be loaded
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
    """The target names no function; the message says what is there instead."""


def load(target: str) -> Callable[..., Any]:
    """The function at `path/to/file.py:name` or `package.module:name`; raises NoFunctionError when there is none."""
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
    """Raises NoFunctionError for one that cannot be called with `completions`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C: only a call can tell
        return
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if "completions" not in takes and not any(p.kind == p.VAR_KEYWORD for p in parameters):
        raise NoFunctionError(f"{where} takes no `completions`; a reward function looks like {SIGNATURE}")


# ------------------------------------------------------------------------------------------------ one request


def answer(function: Callable[..., Any], request: bytes) -> dict[str, Any]:
    """Call the function and say what came of it, in the forms that stand at the top of this file."""
    arguments = json.loads(request)
    try:
        returned = function(**arguments)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
    except BaseException as error:  # SystemExit too: it is the function's word, not ours
        return _raised(error)
    told = _told(returned)
    changed = _changed(arguments, request)
    return {**told, "changed": changed} if changed else told


async def _awaited(returned: Any) -> Any:
    return await returned


def _changed(arguments: dict[str, Any], request: bytes) -> list[str]:
    """The arguments that no longer say what the request said; written again, an untouched request is itself."""
    try:
        if json.dumps(arguments).encode() == request:
            return []
    except (TypeError, ValueError, RecursionError):  # something was put in that JSON has no word for
        pass
    return [name for name, value in json.loads(request).items() if arguments[name] != value]


def _told(returned: Any) -> dict[str, Any]:
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
        except OverflowError:  # a whole number beyond every float
            return {"row": row, "kind": f"{type(value).__name__}, too large", "value": _shown(value)}
    return {"rewards": rewards}


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except Exception:  # a __repr__ of the user's; a number of too many digits
        return "?"


def _raised(error: BaseException) -> dict[str, Any]:
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
        if not part:  # nobody asks any more
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
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(1)


def main() -> None:
    target, (requests, answers, memory_mib, parent) = sys.argv[1], map(int, sys.argv[2:])
    me = os.getpid()
    _limit(memory_mib, parent)
    try:
        function = load(target)
        check_signature(function, target)
    except NoFunctionError as error:
        _write(answers, {"missing": str(error)})
        return
    except BaseException as error:
        _write(answers, _raised(error))
        return
    _write(answers, {"name": getattr(function, "__name__", target.rpartition(":")[2])})
    while True:
        request = _read(requests, int.from_bytes(_read(requests, 8), "big"))
        told = answer(function, request)
        if os.getpid() != me:  # the function has forked, and this is the child, which nobody asked
            os._exit(0)
        sys.stdout.flush()
        sys.stderr.flush()
        _write(answers, told)


if __name__ == "__main__":
    main()
