"""Take-over of a run from object storage: wait for its driver, fetch what is stored, and upload from then on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from orchestrator.config import RunConfig, resolved
from orchestrator.driver.uploads import Uploads
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.lock import Fence
from orchestrator.rundir.stored import driver_of, explained, open_stored
from workers.storage import Storage, StorageError


def store_report(config: RunConfig, directory: RunDirectory) -> None:
    """Store the report of a run that has storage, if the storage answers."""
    if config.storage is not None and directory.report.exists():
        with suppress(StorageError, OSError):
            Storage(config.storage).put(f"{directory.name}/{directory.report.name}", directory.report.read_bytes())


@contextmanager
def uploading(config: RunConfig, directory: RunDirectory, lock: Fence) -> Iterator[tuple[Uploads | None, Fence]]:
    """Take a run over from its storage, and yield the uploads of this attempt and its fence; without storage, None.

    Args:
        lock: fence of the lock of `directory`.

    Raises:
        BadInput: another driver runs the run, or the storage refuses access.
        StorageFailed: the storage does not answer.
    """
    stored = open_stored(config, directory)
    if stored is None:
        yield None, lock
        return
    with explained(stored.storage.url):
        stored.wait_for_holder(driver_of(directory.path), print)
        stored.pull(resolved(config), print)
    uploads = Uploads(stored, keep=config.checkpoint.keep)

    def fence() -> None:
        lock()
        uploads.fence()

    try:
        yield uploads, fence
    finally:
        uploads.close()
