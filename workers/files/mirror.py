"""Files of runs in object storage, as one worker process sees them. Light at import.

    OUTPUT_DIR/RUN/rounds/3/pairs.parquet  ◄──twin──►  STORAGE/RUN/rounds/3/pairs.parquet

With `storage` no file system is shared: a worker uploads what it has written in the background, and one that reads a
file of another machine fetches it first. A directory is complete when its manifest.json, which is uploaded last, is
there. Without `storage` everything here does nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from workers import progress
from workers.files import durable
from workers.files.written import files, sha256
from workers.storage import Storage, StorageError, StorageRefused, read_key_files

STORAGE, ROOT = "RLHF_STORAGE", "RLHF_STORAGE_ROOT"
"""Environment variables of a worker: the URL, and the directory on this machine whose files have their twins there."""

MANIFEST = "manifest.json"
RETRY_S = (1.0, 2.0, 5.0, 10.0)  # between two tries of an upload; the last one is repeated
WAIT_S = 600.0  # for what another machine is uploading
POLL_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """File to be uploaded under a name."""

    file: BinaryIO | Path  # open, as it may be renamed or deleted meanwhile; a path is opened in its turn
    name: str


class Mirror:
    """Twin of a directory in object storage."""

    def __init__(self, storage: Storage, root: Path) -> None:
        self.storage, self.root = storage, root
        self._waiting: queue.Queue[Upload] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def name_of(self, path: Path) -> str | None:
        """Return the name of a file's or directory's twin; None if it lies outside the root."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else None

    # -------------------------------------------------------------------------------------------- upload

    def upload(self, files: Mapping[str, Path], *, droppable: bool = False) -> None:
        """Upload files (by the names of their twins) in the background, in order.

        Args:
            droppable: they are not renamed, and one that is deleted before its turn is not uploaded. Others are opened
                now: while storage is down, a process would run out of file descriptors with files of every step.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._upload_all, name="uploads", daemon=True)
                self._thread.start()
        for name, path in files.items():
            self._waiting.put(Upload(file=path if droppable else path.open("rb"), name=name))

    def flush(self) -> None:
        """Wait until everything is uploaded."""
        while self._waiting.unfinished_tasks:
            progress.report()
            time.sleep(0.05)

    def _upload_all(self) -> None:
        while True:
            upload = self._waiting.get()
            try:
                with upload.file.open("rb") if isinstance(upload.file, Path) else upload.file as file:
                    self._upload(upload.name, file)
            except FileNotFoundError:  # no checkpoint needs it any more
                pass
            finally:
                self._waiting.task_done()

    def _upload(self, name: str, file: BinaryIO) -> None:
        """Upload a file, trying again until it is there."""
        for attempt in count():
            try:
                file.seek(0)
                return self.storage.put(name, file)
            except (StorageError, OSError) as error:
                if attempt in (0, 10) or not attempt % 60:
                    print(f"not uploaded yet, tried {attempt + 1} times: {error}", file=sys.stderr, flush=True)
            time.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])

    # -------------------------------------------------------------------------------------------- fetch

    def fetch_file(self, path: Path, *, wait_s: float = 0.0) -> bool:
        """Fetch a file that is not on this machine. Return whether it is here now.

        Args:
            wait_s: seconds to wait for a file that another machine is uploading.

        Raises:
            StorageError: the store did not answer within `wait_s`.
        """
        name = self.name_of(path)
        if path.exists() or name is None:
            return path.exists()
        with held(path):
            return path.exists() or self._eventually(lambda: self._fetch(name, path), wait_s)

    def require(self, directory: Path, *, wait_s: float = WAIT_S) -> None:
        """Make a directory complete on this machine: fetch what its manifest lists and is not here.

        A directory outside the root is left alone, and so is one that is here and has no manifest anywhere.

        Args:
            wait_s: seconds to wait for the manifest, which another machine may be about to upload.

        Raises:
            StorageError: the store did not answer, or a file is missing or not what the manifest lists.
        """
        name = self.name_of(directory)
        if name is None:
            return
        manifest, stored = directory / MANIFEST, f"{name}/{MANIFEST}"
        if not manifest.exists() and not self._eventually(lambda: self.storage.size(stored) is not None, wait_s):
            return
        with held(directory):
            content = manifest.read_bytes() if manifest.exists() else self.storage.get(stored) or b"{}"
            self.fetch(directory, name, json.loads(content).get("files", {}))
            if not manifest.exists():
                durable.replace(manifest, content)

    def fetch_beside(self, directory: Path, weights: str) -> None:
        """Fetch all files of a directory that are not here but those whose names end in `weights`.

        A driver reads the tokenizer and config of a model; its workers fetch the rest.
        """
        prefix = self.name_of(directory)
        for name in self.storage.sizes(f"{prefix}/") if prefix is not None else ():
            path = self.root / _inside(name)
            if not name.endswith(weights) and not path.exists():
                self._fetch(name, path)

    def fetch(self, directory: Path, prefix: str, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Fetch the listed files (name → bytes, sha256) that are not here.

        Raises:
            StorageError: a file is missing, or is not what was listed.
        """
        for name, facts in files.items():
            path = directory / _inside(name)
            if path.exists() and path.stat().st_size == facts["bytes"]:
                continue
            if not self._fetch(f"{prefix}/{name}", path, facts["sha256"]):
                raise StorageError(f"{self.storage.url}/{prefix}/{name} is missing, although its manifest lists it")

    def _fetch(self, name: str, path: Path, sha: str | None = None) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self.storage.download(name, aside, progress.report)
            if sha is not None and sha256(aside) != sha:
                raise StorageError(f"{self.storage.url}/{name} is not what was written: its SHA-256 differs")
            aside.replace(path)
        except FileNotFoundError:
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _eventually(self, holds: Callable[[], bool], wait_s: float) -> bool:
        """Return whether a condition on the store holds, trying for up to `wait_s` seconds."""
        until = time.monotonic() + wait_s
        while True:
            try:
                if holds():
                    return True
                problem: StorageError | None = None
            except StorageRefused:
                raise
            except StorageError as error:
                problem = error
            if time.monotonic() >= until:
                if problem is not None:
                    raise problem
                return False
            progress.report()
            time.sleep(POLL_S)


@cache
def of_process() -> Mirror | None:
    """Return the mirror of this worker process; None if the run has no storage."""
    url, root = os.environ.get(STORAGE), os.environ.get(ROOT)
    if not url or not root:
        return None
    read_key_files()
    return Mirror(Storage(url), Path(root))


def environment(url: str, root: Path) -> dict[str, str]:
    """Return the environment of a worker whose run has storage."""
    return {STORAGE: url, ROOT: str(root)}


def upload(paths: Sequence[Path], *, droppable: bool = False) -> None:
    """Upload files of a run in the background, under their own names, if it has storage. See `Mirror.upload`."""
    if (mirror := of_process()) is not None:
        named = {name: path for path in paths if (name := mirror.name_of(path)) is not None}
        mirror.upload(named, droppable=droppable)


def upload_as(target: Path, directory: Path, names: Sequence[str]) -> None:
    """Upload files of a directory in the background, as those of `target`, where the run has storage."""
    if (mirror := of_process()) is not None and (prefix := mirror.name_of(target)) is not None:
        mirror.upload({f"{prefix}/{name}": directory / name for name in names})


def flush() -> None:
    """Wait until everything that this process was told to upload is in the storage of its run, if it has one."""
    if (mirror := of_process()) is not None:
        mirror.flush()


def empty(directory: Path) -> None:
    """Empty a directory on this machine where the run has storage: the driver has emptied that of its own machine."""
    if of_process() is not None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)


def publish(directory: Path) -> None:
    """Upload a directory that this process wrote alone in the background, where the run has storage."""
    if (mirror := of_process()) is None or (prefix := mirror.name_of(directory)) is None:
        return
    written = {path.relative_to(directory).as_posix(): path for path in files(directory)}
    listed = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in written.items()}
    durable.write(directory / MANIFEST, json.dumps({"files": listed}).encode())
    mirror.upload({f"{prefix}/{name}": path for name, path in (written | {MANIFEST: directory / MANIFEST}).items()})


def require(path: str, *, wait_s: float = WAIT_S) -> None:
    """Make a directory of a run complete on this machine, where the run has storage. See `Mirror.require`."""
    if (mirror := of_process()) is not None:
        mirror.require(Path(path), wait_s=wait_s)


def require_models(arguments: Any) -> None:
    """Make the models complete on this machine that a worker's arguments name by path, where the run has storage."""
    if of_process() is None:
        return
    parts = arguments.values() if isinstance(arguments, Mapping) else arguments
    for part in parts:
        if isinstance(part, Mapping | list | tuple):
            require_models(part)
        elif isinstance(path := getattr(part, "path", None), str):
            require(path, wait_s=0.0)


def fetch_file(path: Path, *, wait_s: float = 0.0) -> None:
    """Fetch a file of a run that is not on this machine, where the run has storage."""
    if (mirror := of_process()) is not None:
        mirror.fetch_file(path, wait_s=wait_s)


def is_inside(name: str) -> bool:
    """Return whether a name leads to a place inside its directory."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _inside(name: str) -> PurePosixPath:
    """Return a listed name as a path. Raises StorageError if it leads out of the directory."""
    path = PurePosixPath(name)
    if not is_inside(name):
        raise StorageError(f"the manifest lists {name}, which lies outside its directory")
    return path


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock between the processes of this machine that fetch or rename the same path."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"rlhf-fetch-{os.getuid()}-{digest}"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress.report()
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
