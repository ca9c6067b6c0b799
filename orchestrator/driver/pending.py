"""Directories that workers are uploading: their manifest is stored once all their files are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.rundir.ledger import STORED, Record
from orchestrator.rundir.manifest import MANIFEST, STATE, files_of, read_state
from orchestrator.rundir.stored import StoredRun
from workers.storage import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """Directory whose files workers upload, and whose manifest is stored once they are there."""

    prefix: str  # name in storage
    manifest: bytes
    files: Mapping[str, int]  # bytes of each file, by its whole name
    own: Mapping[str, bytes]  # the driver's files, by their whole names
    num_records: int = 0  # of the ledger that must be stored before
    checkpoint: str = ""  # name of the checkpoint; empty: it is none
    since: float = field(default_factory=time.monotonic, compare=False)

    @classmethod
    def of_directory(cls, target: Path, stored: StoredRun) -> Self:
        """Return a model or another directory of the run, with its manifest."""
        prefix = stored.name_of(target)
        files = {f"{prefix}/{name}": file["bytes"] for name, file in files_of(target).items()}
        return cls(prefix=prefix, manifest=(target / MANIFEST).read_bytes(), files=files, own={})

    @classmethod
    def of_checkpoint(cls, checkpoint: Path, stored: StoredRun, records: Sequence[Record]) -> Self:
        """Return a checkpoint, with the rollouts that steps after it are trained on."""
        prefix, state = stored.prefix_of(checkpoint), read_state(checkpoint)
        assert state is not None
        files = {f"{prefix}/{name}": file["bytes"] for name, file in files_of(checkpoint).items() if name != STATE}
        for record in records:
            if record.fact in STORED and record.step > state.next_step:
                files |= {stored.full(f["path"]): f["bytes"] for f in record.details.get("files", ())}
        return cls(
            prefix=prefix,
            manifest=(checkpoint / MANIFEST).read_bytes(),
            files=files,
            own={f"{prefix}/{STATE}": (checkpoint / STATE).read_bytes()},
            num_records=records[-1].seq + 1,
            checkpoint=checkpoint.name,
        )

    def missing(self, storage: Storage) -> list[str]:
        """Return the files that are not there in their sizes. Raises StorageError if the store does not answer."""
        elsewhere = {name.rpartition("/")[0] for name in self.files if not name.startswith(f"{self.prefix}/")}
        here: dict[str, int] = {}
        for directory in (self.prefix, *sorted(elsewhere)):
            here |= storage.sizes(f"{directory}/")
        return [name for name, size in self.files.items() if here.get(name) != size]
