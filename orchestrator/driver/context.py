"""Context of an attempt: its number, and everything in the run directory that it writes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.driver.uploads import Uploads
from orchestrator.monitor import Monitor
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger
from orchestrator.rundir.stored import StoredRun


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptContext:
    """One attempt at a run, while it holds the lock of the run directory.

    Example: `AttemptContext(number=2, config=…, directory=RunDirectory(…), ledger=…, monitor=…)`.
    """

    number: int  # from 1
    config: RunConfig
    directory: RunDirectory
    ledger: Ledger
    monitor: Monitor
    uploads: Uploads | None = None  # to the storage of the run; None: it has none

    @property
    def stored(self) -> StoredRun | None:
        """Twin of the run in object storage; None: it has none."""
        return None if self.uploads is None else self.uploads.stored

    def record(self, fact: Fact, *, step: int, **details: Any) -> None:
        """Append a record of this attempt to the ledger.

        Args:
            step: number of the step, from 1. For a fact about the whole run: the number of steps done.
        """
        self.ledger.append(fact, attempt=self.number, step=step, **details)
