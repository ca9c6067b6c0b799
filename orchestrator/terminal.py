"""The stream that a console writes to: it may be closed, narrow, without colour, or unable to write "é"."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


class Forgiving:
    """Standard output that goes quiet when nobody reads it any more: `rlhf run … | head` goes on running."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.closed_by_reader = False

    def write(self, text: str) -> int:
        return self._guarded(lambda: self._stream.write(_writable(text, self._stream)))

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def _guarded(self, action: Any) -> int:
        if self.closed_by_reader:
            return 0
        try:
            return action() or 0
        except (OSError, ValueError):  # a pipe without a reader; a closed file
            self.closed_by_reader = True
            redirect_to_nowhere(self._stream)
            return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str) -> None:
    """Prints a line; when nobody reads it (`rlhf … | head`) that is fine."""
    if sys.stdout is not None:
        out = Forgiving(sys.stdout)
        out.write(text + "\n")
        out.flush()


def _writable(text: str, stream: TextIO) -> str:
    """What the stream's character set lacks, replaced."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, "replace").decode(encoding)
    return text


def redirect_to_nowhere(stream: TextIO) -> None:
    """Lets the interpreter flush a broken stream at its end without an error."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def never_fail_to_encode() -> None:
    """What the terminal's character set lacks is replaced, not raised (LANG=C)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")


def is_live(stream: TextIO) -> bool:
    """Whether a screen can be redrawn: a person sits at a terminal that can move its cursor."""
    with contextlib.suppress(OSError, ValueError):
        return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")
    return False
