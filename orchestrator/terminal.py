"""Output streams of the console: they may be closed, narrow, without colour, or unable to write "é"."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


class Forgiving:
    """Standard output that ignores a reader that has gone away: `rlhf run … | head` keeps running."""

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
    """Print a line. A reader that has gone away (`rlhf … | head`) is no error."""
    if sys.stdout is not None:
        out = Forgiving(sys.stdout)
        out.write(text + "\n")
        out.flush()


def report(text: str) -> None:
    """Print a line to standard error, to keep progress and notes out of the result on standard output."""
    print(text, file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Print a text as it is, such as a part of a log. A reader that has gone away is no error."""
    if sys.stdout is not None:
        out = Forgiving(sys.stdout)
        out.write(text)
        out.flush()


def _writable(text: str, stream: TextIO) -> str:
    """Return `text` with the characters that the stream cannot encode replaced."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, "replace").decode(encoding)
    return text


def redirect_to_nowhere(stream: TextIO) -> None:
    """Redirect a broken stream to /dev/null, so that the interpreter can flush it at exit without an error."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def never_fail_to_encode() -> None:
    """Replace characters that the terminal cannot encode (LANG=C), instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")


def is_live(stream: TextIO) -> bool:
    """Return whether the stream is a terminal on which a screen can be redrawn."""
    with contextlib.suppress(OSError, ValueError):
        return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")
    return False
