"""A small coverage-guided fuzzer: inputs that reach new lines of `orchestrator/` are kept and mutated further.

The loop:  pick an input ──► mutate it ──► parse it under limits ──► keep it if it reached new edges or crashed

An edge is a pair of lines of `orchestrator/` that ran one after the other within one function.
"""

from __future__ import annotations

import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from parsers import ROOT, Parser

LONGEST = 32 * 1024  # maximum size of an input in bytes
SECONDS = 5.0  # CPU time limit for one input, about a thousand times what one takes
MEMORY_BYTES = 2 * 2**30  # address space limit, in addition to what the process uses
OURS = str(ROOT / "orchestrator")

Edge = tuple[CodeType, int, int]


@dataclass(frozen=True, kw_only=True)
class Crash:
    """An input that crashed a parser. Two inputs that raise the same error in the same line have the same `kind`."""

    kind: str
    content: bytes
    text: str  # the traceback


@dataclass(kw_only=True)
class FuzzState:
    """Progress of a fuzzing session."""

    corpus: list[bytes] = field(default_factory=list)
    edges: set[Edge] = field(default_factory=set)
    crashes: dict[str, Crash] = field(default_factory=dict)
    executions: int = 0


class _TooSlowError(BaseException):
    """Error for an input over the time limit. Not an Exception, so that no handler on the way swallows it."""


def fuzz(
    parser: Parser,
    *,
    until: Callable[[FuzzState], bool],
    seed: int,
    more_seeds: Sequence[bytes] = (),
    before: Callable[[bytes], None] = lambda content: None,
) -> Iterator[FuzzState]:
    """Yield the state after every execution, until `until` returns true. Call `before` with each input beforehand."""
    draw, state = random.Random(seed), FuzzState()
    waiting = [*parser.seeds(), *more_seeds]
    with tempfile.TemporaryDirectory(prefix="rlhf-fuzz-", dir=_memory_disk()) as place:
        while not until(state):
            content = waiting.pop() if waiting else change(draw.choice(state.corpus), state.corpus, parser.words, draw)
            before(content)
            edges, crash = execute(parser, content, Path(place))
            state.executions += 1
            if crash is not None:
                state.crashes.setdefault(crash.kind, crash)
            if not edges <= state.edges or not state.corpus:
                state.edges |= edges
                state.corpus.append(content)
            yield state


def execute(parser: Parser, content: bytes, place: Path) -> tuple[set[Edge], Crash | None]:
    """Parse one input in a fresh directory under `place`. Return the edges reached, and the crash if there was one."""
    directory = place / "input"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    edges: set[Edge] = set()
    try:
        with _limited(), _tracing(edges):
            parser.parse(content, directory)
    except (Exception, _TooSlowError) as error:
        return edges, Crash(kind=_kind(error), content=content, text=traceback.format_exc())
    return edges, None


def smaller(parser: Parser, crash: Crash, place: Path, tries: int = 300) -> Crash:
    """Shrink the input of a crash: cut out as much as `tries` executions allow."""
    size = len(crash.content) // 2
    while size and tries:
        for start in range(0, len(crash.content), size):
            shorter = crash.content[:start] + crash.content[start + size :]
            _, found = execute(parser, shorter, place)
            tries -= 1
            if found is not None and found.kind == crash.kind:
                crash = found
                break
            if not tries:
                break
        else:
            size //= 2
    return crash


# ------------------------------------------------------------------------------------------------ changing inputs


def change(content: bytes, corpus: Sequence[bytes], words: Sequence[bytes], draw: random.Random) -> bytes:
    """Apply one to eight small changes at random places."""
    raw = bytearray(content)
    for _ in range(1 << draw.randrange(4)):
        draw.choice(CHANGES)(raw, corpus, words, draw)
    return bytes(raw[:LONGEST])


def _span(raw: bytearray, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(raw) + 1)
    return start, min(len(raw), start + (1 << draw.randrange(8)))


def _flip(raw: bytearray, _corpus: Any, _words: Any, draw: random.Random) -> None:
    if raw:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)


def _set(raw: bytearray, _corpus: Any, _words: Any, draw: random.Random) -> None:
    if raw:
        raw[draw.randrange(len(raw))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))


def _remove(raw: bytearray, _corpus: Any, _words: Any, draw: random.Random) -> None:
    start, stop = _span(raw, draw)
    del raw[start:stop]


def _repeat(raw: bytearray, _corpus: Any, _words: Any, draw: random.Random) -> None:
    start, stop = _span(raw, draw)
    raw[stop:stop] = raw[start:stop] * draw.choice((1, 1, 2, 50))


def _word(raw: bytearray, _corpus: Any, words: Sequence[bytes], draw: random.Random) -> None:
    start, stop = _span(raw, draw)
    raw[start : draw.choice((start, stop))] = draw.choice(words)


def _number(raw: bytearray, _corpus: Any, _words: Any, draw: random.Random) -> None:
    """Replace one of the numbers in the text by another value."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", bytes(raw)))
    if found:
        start, stop = draw.choice(found).span()
        raw[start:stop] = draw.choice(
            (b"0", b"-1", b"1", b"1.5", b"1e400", b"9" * 25, b"true", b'"1"', b"[]", b"{}", b"null")
        )


def _splice(raw: bytearray, corpus: Sequence[bytes], _words: Any, draw: random.Random) -> None:
    other = bytearray(draw.choice(corpus))
    start, stop = _span(other, draw)
    at, _ = _span(raw, draw)
    raw[at:at] = other[start : draw.choice((stop, len(other)))]


CHANGES = (_flip, _set, _remove, _repeat, _word, _word, _number, _splice)


# ------------------------------------------------------------------------------------------------ limits and traces


_IS_OURS: dict[CodeType, bool] = {}


@contextmanager
def _tracing(edges: set[Edge]) -> Iterator[None]:
    def enter(frame: FrameType, _event: str, _value: Any) -> Any:
        code = frame.f_code
        if code not in _IS_OURS:
            _IS_OURS[code] = code.co_filename.startswith(OURS)
        if not _IS_OURS[code]:
            return None
        last = 0

        def line(frame: FrameType, event: str, _value: Any) -> Any:
            nonlocal last
            if event == "line":
                edges.add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _limited() -> Iterator[None]:
    """Limit CPU time and memory. Exceeding either raises an exception, which counts as a crash."""

    def too_slow(*_: Any) -> None:
        raise _TooSlowError(f"more than {SECONDS:g} s of processor time")

    handler = signal.signal(signal.SIGVTALRM, too_slow)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, memory[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    started = time.process_time()
    try:
        yield
        if time.process_time() - started > SECONDS:  # spent in code that handles no signals
            too_slow()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGVTALRM, handler)


def _kind(error: BaseException) -> str:
    """Name a crash by its error and the last line of `orchestrator/` in its traceback.

    Example: `KeyError at orchestrator/driver/checkpoint.py:110`.
    """
    if isinstance(error, _TooSlowError):
        return "too slow"
    frames = traceback.extract_tb(error.__traceback__)
    last = next((f for f in reversed(frames) if f.filename.startswith(OURS)), frames[-1])
    return f"{type(error).__name__} at {Path(last.filename).relative_to(ROOT)}:{last.lineno}"


def _memory_disk() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
