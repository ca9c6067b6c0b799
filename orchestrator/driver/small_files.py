"""Files that a driver writes, such as metrics, samples, data sets and exit.json: uploaded whole when they change."""

from __future__ import annotations

import os
from collections.abc import Iterator

from orchestrator.rundir.stored import OF_WORKERS, StoredRun, is_apart

WHOLE_BYTES = 2**26  # larger files do not change once they are there


class SmallFiles:
    """Small files of a run, and which of them are stored as they are."""

    def __init__(self, stored: StoredRun) -> None:
        self._stored, self._directory = stored, stored.directory.path
        self._as_stored: dict[str, tuple[float, int]] = {}  # time and size, by name

    def upload(self, *, logs: bool) -> None:
        """Upload what has changed, exit.json last. `logs`: also the logs, which grow without pause.

        Raises:
            StorageError: the store does not answer.
        """
        changed = {name: state for name, state in self._states(logs) if self._as_stored.get(name) != state}
        for name in sorted(changed, key=lambda name: name == "exit.json"):
            try:
                self._put(name, size=changed[name][1])
            except FileNotFoundError:  # removed meanwhile
                continue
            self._as_stored[name] = changed[name]

    def _put(self, name: str, *, size: int) -> None:
        """Upload a file; a data set in parts, as it may not fit into memory."""
        path = self._directory / name
        if size <= WHOLE_BYTES:
            return self._stored.storage.put(self._stored.full(name), path.read_bytes())
        with path.open("rb") as file:
            self._stored.storage.put(self._stored.full(name), file)

    def _states(self, logs: bool) -> Iterator[tuple[str, tuple[float, int]]]:
        """Yield the name of each small file with its time and size."""
        for folder, directories, names in os.walk(self._directory):
            place = "" if folder == str(self._directory) else f"{os.path.relpath(folder, self._directory)}/"
            directories[:] = [d for d in directories if not (d.startswith(".") or is_apart(f"{place}{d}/", logs=logs))]
            for name in (f"{place}{name}" for name in names if not name.startswith(".")):
                path = self._directory / name
                if not is_apart(name, logs=logs) and not OF_WORKERS.match(name) and path.is_file():
                    status = path.stat()
                    yield name, (status.st_mtime, status.st_size)
