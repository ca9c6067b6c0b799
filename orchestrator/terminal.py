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
        return self._guarded(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def _guarded(self, action: Any) -> int:
        if self.closed_by_reader:
            return 0
        try:
            return action() or 0
        except UnicodeEncodeError:
            return 0
        except (OSError, ValueError):  # a pipe without a reader; a closed file
            self.closed_by_reader = True
            redirect_to_nowhere(self._stream)
            return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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


def is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


def is_live(stream: TextIO) -> bool:
    """Whether a screen can be redrawn: a person sits at a terminal that can move its cursor."""
    with contextlib.suppress(OSError, ValueError):
        return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")
    return False
