"""Progress of the work in this process: a count that grows with each piece of work done.

A heartbeat carries the count to the driver, which ends a call whose worker makes no progress for
`cluster.progress_timeout_s`. Pieces are small: a finished completion, a micro-batch, a layer that is sent.
"""

from __future__ import annotations

_count = 0


def report() -> None:
    """Report that a piece of work is done."""
    global _count
    _count += 1


def count() -> int:
    """Return the number of pieces of work done in this process."""
    return _count
