"""Uploads of one attempt, in a thread beside the driver: nothing that the driver does waits for object storage.

    ledger ──record──► ledger/00000007.json    in order; a number that another driver has written: superseded
    ranks  ──shards──► checkpoints/…  ┐
    ranks  ──model───► model/…        ├ seen in full? ──► manifest.json, by this thread, after all records before
    driver ──metrics, samples, …──────┘

While storage does not answer, the run goes on and the thread tries again. One checkpoint at a time is uploaded: the
newest one when the one before is complete.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.driver.pending import Pending
from orchestrator.driver.small_files import SmallFiles
from orchestrator.errors import Alarmed, Interrupted, RlhfError, Superseded
from orchestrator.rundir.ledger import Ledger, Record
from orchestrator.rundir.manifest import MANIFEST, files_of, list_checkpoints, step_of
from orchestrator.rundir.stop import StopFile
from orchestrator.rundir.stored import HOLDER, LEASE_S, STOP, StoredRun, driver_of, explained
from workers.files.mirror import RETRY_S, WAIT_S
from workers.learner import Learner
from workers.storage import StorageError

TICK_S = 0.2
FILES_S, RENEW_S = 10.0, LEASE_S / 4  # between two uploads of small files; between two renewals of the lease
SHARE = 0.05  # of the time that uploading small files may take
LOOK_S = 1.0  # between two looks at what workers upload
STALE_S = 3600.0  # after which a directory that is not complete is given up: whoever uploaded it has died
CLOSE_S = 30.0
RESCUE_S = 60.0  # for which an attempt that fails waits for uploads under way
BEHIND_S = 30.0  # without an answer, after which the user is told


class Uploads:
    """Uploads of one attempt. Methods are called by the driver's thread; they do not wait, unless they say so."""

    def __init__(self, stored: StoredRun, *, keep: int) -> None:
        """Prepare; nothing is uploaded before `claim`. `keep`: number of checkpoints to keep in storage."""
        self.stored, self._keep = stored, keep
        self._remarks: deque[str] = deque()  # of the thread, for the driver to tell the user
        self._directory = stored.directory.path
        self._lock = threading.RLock()
        self._records: deque[Record] = deque()
        self._num_stored = 0  # records
        self._pending: list[Pending] = []
        self._complete: list[str] = []  # names of the checkpoints that are complete in storage, oldest first
        self._deleted: list[str] = []  # prefixes
        self._files = SmallFiles(stored)
        self._files_due = self._lease_due = self._look_due = 0.0
        self._failing_since: float | None = None
        self._has_noted, self._renewals = False, 0
        self._superseded = False
        self._wants_files = self._wants_logs = False
        self._records_seen: tuple[Record, ...] = ()
        self._policy: Mapping[str, Gang[Learner]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)

    # -------------------------------------------------------------------------------------------- for the ledger

    def claim(self, record: Record) -> None:
        """Store the record of this attempt, and start the thread. Waits for the store.

        Raises:
            Superseded: another driver has stored a record of this number.
            StorageFailed: the store does not answer.
        """
        with explained(self.stored.storage.url):
            if not self.stored.put_record(record):
                raise self._error()
        self._num_stored = record.seq + 1
        self._complete = [checkpoint.name for checkpoint in list_checkpoints(self._directory / "checkpoints")]
        self._thread.start()

    def send(self, record: Record) -> None:
        """Take a further record of the ledger."""
        self._records.append(record)

    def follow(self, ledger: Ledger) -> None:
        """Store each record from now on, and those that an earlier attempt has written and not stored.

        Raises:
            Superseded: another driver has stored a record of one of these numbers.
            StorageFailed: the store does not answer.
        """
        with explained(self.stored.storage.url):
            for record in ledger.records[self.stored.num_records :]:
                if not self.stored.put_record(record):
                    raise self._error()
        ledger.copies = self

    def fence(self) -> None:
        """Raise Superseded if another driver has taken over the run."""
        if self._superseded:
            raise self._error()

    # -------------------------------------------------------------------------------------------- for the driver

    def uploads_of(self, gangs: Mapping[str, Gang[Learner]]) -> None:
        """Set the gangs whose checkpoints are uploaded, by the subdirectory that is theirs."""
        self._policy = gangs

    def written(self, target: Path) -> None:
        """Store the manifest of a directory that a worker is uploading, once its files are there."""
        self._add(Pending.of_directory(target, self.stored))

    def saved(self, records: tuple[Record, ...]) -> None:
        """Let the ranks upload the newest checkpoint, unless one is under way or it is stored."""
        self._records_seen = records
        checkpoints = list_checkpoints(self._directory / "checkpoints")
        with self._lock:
            busy = any(pending.checkpoint for pending in self._pending)
            if busy or not checkpoints or checkpoints[-1].name in self._complete:
                return
        newest = checkpoints[-1]
        self._request(newest)
        self._add(Pending.of_checkpoint(newest, self.stored, records))

    def rescue(self, error: BaseException) -> None:
        """Wait for what an attempt that ends with `error` has to save: as long as it takes if it ended as planned."""
        if isinstance(error, Superseded) or not self._thread.is_alive():
            return
        limit_s = RESCUE_S
        if isinstance(error, Interrupted | Alarmed) and self._records_seen:
            with suppress(RlhfError):  # a rank has died, and its uploads with it
                self._wait_for_ranks()
                self.flush(limit_s=WAIT_S)
                self.saved(self._records_seen)  # the newest checkpoint, if the one before was under way
                self._wait_for_ranks()
                limit_s = WAIT_S
        if not self.flush(limit_s=limit_s) and not self._superseded:
            print(f"not everything is in {self.stored.storage.url}: {self._waiting_for()}", flush=True)

    def _wait_for_ranks(self) -> None:
        """Wait until the ranks have uploaded what they were asked to. Raises WorkerFailed if one has died."""
        wait([handle for gang in self._policy.values() for handle in gang.all(Learner.uploaded)])

    def _waiting_for(self) -> str:
        with self._lock:
            names = [pending.prefix for pending in self._pending]
        return ", ".join(names) or f"{len(self._records)} records of the ledger"

    def remarks(self) -> Iterator[str]:
        """Yield what the user is to be told, once."""
        while self._remarks:
            yield self._remarks.popleft()

    def oldest(self, done: int) -> int:
        """Return the fewest steps done in a checkpoint that is being uploaded, or `done` if that is less."""
        with self._lock:
            return min([done, *(step_of(Path(p.checkpoint)) for p in self._pending if p.checkpoint)])

    def delete_now(self, directory: Path) -> None:
        """Delete what is stored of a directory that will be written again. Waits for the store.

        Raises:
            StorageFailed: the store does not answer.
        """
        with explained(self.stored.storage.url):
            self.stored.storage.delete(self.stored.storage.sizes(f"{self.stored.name_of(directory)}/"))

    def delete(self, directory: Path) -> None:
        """Delete what is stored of a directory, and do not complete it."""
        prefix = self.stored.name_of(directory)
        with self._lock:
            self._pending = [pending for pending in self._pending if pending.prefix != prefix]
            self._deleted.append(f"{prefix}/")

    def copied(self, source: Path, target: Path) -> None:
        """Store a directory, which is stored, under another name as well. Waits for the store.

        Raises:
            StorageFailed: the store does not answer.
        """
        old, new = self.stored.name_of(source), self.stored.name_of(target)
        with explained(self.stored.storage.url):
            for name in files_of(source):
                self.stored.storage.copy(f"{old}/{name}", f"{new}/{name}")
            self.stored.storage.put(f"{new}/{MANIFEST}", (target / MANIFEST).read_bytes())

    @property
    def behind_s(self) -> float:
        """Seconds for which the store has not answered; 0 if it does."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since

    def flush(self, poll: Callable[[], object] = lambda: None, *, limit_s: float | None = None) -> bool:
        """Wait until everything is stored. Return whether it is; False after `limit_s`, or if nobody uploads any more.

        `poll` is called meanwhile and may raise.
        """
        until = None if limit_s is None else time.monotonic() + limit_s
        told = time.monotonic() + 5.0
        self._wants_files = True
        while self._thread.is_alive() and not self._superseded and self._is_busy():
            poll()
            if until is not None and time.monotonic() >= until:
                return False
            if time.monotonic() >= told:
                told = float("inf")
                print(f"waiting until everything is in {self.stored.storage.url}", flush=True)
            time.sleep(TICK_S / 2)
        return not self._is_busy()

    def close(self) -> None:
        """Store how the attempt ended and its logs, end the thread, and give the run back.

        What is not stored within CLOSE_S is not stored any more.
        """
        self._wants_logs = True
        self.flush(limit_s=CLOSE_S)
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=60)
        if not self._superseded and self._num_stored:
            with suppress(StorageError):
                self.stored.storage.delete([self.stored.full(HOLDER)])

    # -------------------------------------------------------------------------------------------- thread

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                self._turn()
                failures, self._failing_since, self._has_noted = 0, None, self._recovered()
            except StorageError as error:
                self._failing_since = self._failing_since or time.monotonic()
                if not self._has_noted and self.behind_s >= BEHIND_S:
                    self._has_noted = True
                    self._remarks.append(
                        f"storage has not answered for {self.behind_s:.0f} s; the run goes on: {error}"
                    )
                failures += 1
            except Exception as error:  # the thread must not die: nothing would be stored any more
                self._failing_since = self._failing_since or time.monotonic()
                self._remarks.append(f"an upload failed and is tried again: {type(error).__name__}: {error}")
                failures += 1
            if self._superseded:
                return
            self._closed.wait(RETRY_S[min(failures, len(RETRY_S)) - 1] if failures else TICK_S)

    def _recovered(self) -> bool:
        if self._has_noted:
            self._remarks.append("storage answers again; uploads catch up")
        return False

    def _turn(self) -> None:
        """Do what is due. Raises StorageError if the store does not answer."""
        while self._records:
            if not self.stored.put_record(self._records[0]):
                self._superseded = True
                return
            self._num_stored = self._records.popleft().seq + 1
        now = time.monotonic()
        if now >= self._lease_due:
            self._lease_due = now + RENEW_S
            self._renew()
        for prefix in list(self._deleted):
            self.stored.storage.delete(self.stored.storage.sizes(prefix))
            self._deleted.remove(prefix)
        if now >= self._look_due:
            self._look_due = now + LOOK_S
            self._complete_all()
        if now >= self._files_due or self._wants_files:
            self._upload_files()

    def _complete_all(self) -> None:
        """Store the manifest of each directory whose files are there."""
        with self._lock:
            pending = list(self._pending)
        for number, one in enumerate(pending):
            # A checkpoint may need what was written before it: a version of the reference, the best model so far.
            if not one.checkpoint or not any(p in self._pending for p in pending[:number]):
                self._complete_one(one)
            if one in self._pending and time.monotonic() - one.since > STALE_S:
                self._remarks.append(f"{one.prefix} was not uploaded in full, and is given up")
                with self._lock:
                    self._pending.remove(one)

    def _complete_one(self, pending: Pending) -> None:
        storage = self.stored.storage
        if self._num_stored < pending.num_records:
            return
        if missing := pending.missing(storage):
            self._upload_in_place_of_others(missing)
            return
        if pending.checkpoint:
            self._upload_files()
        for name, content in pending.own.items():
            storage.put(name, content)
        storage.put(f"{pending.prefix}/{MANIFEST}", pending.manifest)
        with self._lock:
            if pending in self._pending:
                self._pending.remove(pending)
            if pending.checkpoint:
                self._complete.append(pending.checkpoint)
        if pending.checkpoint:
            self._drop_old()

    def _upload_in_place_of_others(self, missing: Collection[str]) -> None:
        """Upload rollouts that are on this machine, too: their engine may have been restarted before it had done it."""
        for name in missing:
            path = self._directory.parent / name
            if name.startswith(self.stored.full("rollouts/")) and path.exists():
                self.stored.storage.put(name, path.read_bytes())

    def _drop_old(self) -> None:
        """Delete all but the newest checkpoints, and the rollouts that none of them needs."""
        prefix = self.stored.full("checkpoints/")
        listing = self.stored.storage.sizes(prefix)
        kept = set(self._complete[-self._keep :])
        with self._lock:
            kept |= {pending.checkpoint for pending in self._pending if pending.checkpoint}
        old = [name for name in listing if name.removeprefix(prefix).partition("/")[0] not in kept]
        old.sort(key=lambda name: not name.endswith(f"/{MANIFEST}"))  # first, so that no half of one is complete
        rollouts = self.stored.full("rollouts/")
        oldest = min(int(name.split("-")[1]) for name in kept)
        for name in self.stored.storage.sizes(rollouts):
            step = name.removeprefix(f"{rollouts}step-").partition("/")[0]
            if step.isdigit() and int(step) <= oldest:
                old.append(name)
        self.stored.storage.delete(old)

    def _upload_files(self) -> None:
        """Upload the driver's small files that have changed, and after `close` the logs."""
        started = time.monotonic()
        self._wants_files = False
        self._files.upload(logs=self._wants_logs)
        self._files_due = time.monotonic() + max(FILES_S, (time.monotonic() - started) / SHARE)

    def _renew(self) -> None:
        self._renewals += 1
        holder = {"process": f"process {os.getpid()} on {socket.gethostname()}", "driver": driver_of(self._directory)}
        content = json.dumps({**holder, "renewals": self._renewals}).encode()
        self.stored.storage.put(self.stored.full(HOLDER), content)
        if (asked := self.stored.storage.get(self.stored.full(STOP))) is not None:
            StopFile(self._directory).request(by=asked.decode("utf-8", "replace")[:200] or "the object stop")
            self.stored.storage.delete([self.stored.full(STOP)])

    # -------------------------------------------------------------------------------------------- parts

    def _add(self, pending: Pending) -> None:
        with self._lock:
            self._pending = [p for p in self._pending if p.prefix != pending.prefix] + [pending]

    def _is_busy(self) -> bool:
        with self._lock:
            return bool(self._records or self._pending or self._deleted or self._wants_files)

    def _request(self, checkpoint: Path) -> None:
        """Ask each rank to upload its files of a checkpoint."""
        target = checkpoint.parent.parent.parent / self.stored.prefix_of(checkpoint)
        calls: list[Handle[None]] = []
        for role, gang in self._policy.items():
            listed = files_of(checkpoint, role)
            shares = [[name for name, file in listed.items() if file["rank"] == rank] for rank in range(len(gang))]
            calls += gang.each(
                Learner.upload, [(str(checkpoint / role), str(target / role), share) for share in shares]
            )
        wait(calls)

    def _error(self) -> Superseded:
        place = f"{self.stored.storage.url}/{self.stored.name}"
        return Superseded(place, "another driver")
