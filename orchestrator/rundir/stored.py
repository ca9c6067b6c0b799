"""Twin of a run in object storage: its names there, and what a machine fetches to go on with the run.

STORAGE/RUN/
  ledger/00000007.json              one record; put if absent, so that each number is written once, by one driver
  checkpoints/step-12/attempt-3/    files of the ranks, state.json, and manifest.json last: it exists, so it counts
  model/, rounds/N/, reference/version-N/, rollouts/step-N/     under the names that they have on disk
  recipe.yaml, resolved.json, metrics.jsonl, exit.json, …       whole, some seconds behind, and at the end
  holder.json, stop                 who runs it; a request to end

With `storage`, a run resumes from this twin alone: what is on disk is a copy that saves a download.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.config.run import RunConfig
from orchestrator.errors import BadInput, Problem, ResumeError, StorageFailed
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Record, parse, read_ledger
from orchestrator.rundir.manifest import MANIFEST, STATE, WEIGHTS, State, list_checkpoints, read_manifest
from workers.files.mirror import Mirror, is_inside
from workers.storage import Storage, StorageError, StorageRefused

PARALLEL = 16  # requests at once
RECORD = "ledger/{:08d}.json"
HOLDER, STOP = "holder.json", "stop"
APART = re.compile(
    r"(ledger|checkpoints|rollouts|adapters|base|reference|judge)/|(holder\.json|stop|ledger\.jsonl|lock|progress\.json)$"
)
"""Names, relative to the run, that a driver neither uploads with its small files nor fetches with them."""
LOGS = "logs/"
OF_WORKERS = re.compile(r"model/|rounds/\d+/(model/|\w+\.parquet$)")
"""Names of what workers upload themselves."""
LEASE_S, POLL_S = 30.0, 2.0  # time for which a driver that is there may not renew its lease; wait between two looks


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCheckpoint:
    """Checkpoint that is complete in storage. Example: `StoredCheckpoint(state="step-12", attempt=3)`."""

    state: str
    attempt: int

    @property
    def prefix(self) -> str:
        """Name relative to the run."""
        return f"checkpoints/{self.state}/attempt-{self.attempt}"


class StoredRun:
    """Twin of one run directory."""

    def __init__(self, storage: Storage, directory: RunDirectory) -> None:
        self.storage, self.directory, self.name = storage, directory, directory.name
        self.mirror = Mirror(storage, directory.path.parent)
        self.num_records = 0  # in storage when the run was last pulled

    def full(self, name: str) -> str:
        """Return the name in storage of what has `name` relative to the run."""
        return f"{self.name}/{name}"

    def name_of(self, path: Path) -> str:
        """Return the name in storage of a file or directory of the run."""
        return self.full(path.relative_to(self.directory.path).as_posix())

    def has(self, name: str, num_bytes: int) -> bool:
        """Return whether an object of this name relative to the run is there, in this size."""
        return self.storage.size(self.full(name)) == num_bytes

    # -------------------------------------------------------------------------------------------- ledger

    def put_record(self, record: Record) -> bool:
        """Store a record. Return whether it is stored; False: another driver has stored one of this number."""
        name, line = self.full(RECORD.format(record.seq)), record.line()
        return self.storage.create(name, line) or self.storage.get(name) == line  # ours, if an answer was lost

    def records(self) -> list[Record]:
        """Return the records, up to the first number that is not there.

        Raises:
            ResumeError: a record is damaged.
        """
        present = self.storage.sizes(self.full("ledger/"))
        names = list(takewhile(lambda name: self.full(name) in present, map(RECORD.format, count())))
        with ThreadPoolExecutor(PARALLEL) as pool:
            lines = list(pool.map(lambda name: self.storage.get(self.full(name)), names))
        records = []
        for number, (name, line) in enumerate(zip(names, lines, strict=True)):
            record = parse(line or b"", number)
            if record is None:
                why, fix = "it was changed since it was written", "restore it, or run the recipe under another name"
                where = f"{self.storage.url}/{self.full(name)}"
                raise ResumeError(Problem(what="a record of the ledger is damaged", where=where, why=why, fix=fix))
            records.append(record)
        return records

    # -------------------------------------------------------------------------------------------- fetch

    def pull(self, settings: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
        """Bring the directory up to what is in storage. The directory must be locked, or not in use.

        Records that were never stored are dropped if storage has others of their numbers.

        Args:
            settings: resolved config of the run on this machine.

        Raises:
            BadInput: storage holds a run of this name with another config.
        """
        self._pull_settings(settings)
        local = read_ledger(self.directory.ledger)[0] if self.directory.ledger.exists() else []
        stored = self.records()
        self.num_records = len(stored)
        if not stored:
            return
        same = [ours.line() == theirs.line() for ours, theirs in zip(local, stored, strict=False)]
        is_behind = not all(same) or len(local) < len(stored)
        if is_behind:
            kept = same.index(False) if False in same else len(local)
            say(f"{self.name}: fetched from {self.storage.url}/{self.name} ({len(stored) - kept} newer records)")
            disk.make_directory(self.directory.path)
            disk.write_atomic(self.directory.ledger, b"".join(record.line() for record in stored).decode())
            shutil.rmtree(self.directory.rollouts, ignore_errors=True)
        self._pull_files(replace=is_behind)
        self._pull_checkpoints(stored)

    def _pull_settings(self, settings: Mapping[str, Any]) -> None:
        """Fetch resolved.json, with this machine's own settings; refuse a run with other settings than those here."""
        content, resolved = self.storage.get(self.full("resolved.json")), self.directory.resolved
        if content is None:
            return
        stored = self._moved(
            settings_in(content, f"{self.storage.url}/{self.full('resolved.json')}"), settings["output_dir"]
        )
        if not resolved.exists():
            disk.make_directory(self.directory.path)
            own = {key: settings[key] for key in HOW_STORED if key in settings}
            disk.write_atomic(resolved, json.dumps(stored | own, indent=2) + "\n")
            return
        here = json.loads(resolved.read_bytes())
        differ = sorted(key for key in {*here, *stored} - set(HOW_STORED) if here.get(key) != stored.get(key))
        if differ:
            where = f"{self.storage.url}/{self.name}"
            why = f"it differs from {self.directory.path} in {', '.join(differ)}"
            fix = f"remove {self.directory.path} and run: rlhf resume {where}; or choose a new name: name=NAME"
            raise BadInput(Problem(what="belongs to a run with another config", where=where, why=why, fix=fix))

    def _moved(self, settings: Any, output_dir: str, old: str | None = None) -> Any:
        """Return a resolved config with the paths of other runs below its `output_dir` moved to another one.

        A run that is neither there nor in storage is left where it was.
        """
        old = settings["output_dir"] if old is None else old
        if isinstance(settings, dict):
            return {key: self._moved(value, output_dir, old) for key, value in settings.items()}
        if isinstance(settings, list):
            return [self._moved(value, output_dir, old) for value in settings]
        if isinstance(settings, str) and settings.startswith(f"{old}/") and output_dir != old:
            inside = settings.removeprefix(f"{old}/")
            if (Path(output_dir) / inside).exists() or self.storage.sizes(f"{inside}/"):
                return f"{output_dir}/{inside}"
        return settings

    def _pull_files(self, *, replace: bool) -> None:
        """Fetch what a driver wrote; with `replace` also what is here already. Of models, all but the weights."""
        prefix = self.full("")
        names = [name.removeprefix(prefix) for name in self.storage.sizes(prefix)]
        wanted = [name for name in names if not is_apart(name) and not name.endswith(WEIGHTS) and is_inside(name)]

        def fetch(name: str) -> None:
            path = self.directory.path / name
            if (replace or not path.exists()) and name != "resolved.json":
                path.parent.mkdir(parents=True, exist_ok=True)
                aside = disk.partial(path)
                self.storage.download(self.full(name), aside)
                aside.replace(path)

        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(fetch, wanted))

    def _pull_checkpoints(self, records: Sequence[Record]) -> None:
        """Fetch manifest and state of each stored checkpoint, and delete those here that are not stored."""
        stored = {checkpoint.state: checkpoint for checkpoint in self.checkpoints(records)}
        manifests = {state: self.storage.get(self.full(f"{c.prefix}/{MANIFEST}")) for state, c in stored.items()}
        for checkpoint in list_checkpoints(self.directory.checkpoints):
            if (checkpoint / MANIFEST).read_bytes() != manifests.get(checkpoint.name):
                shutil.rmtree(checkpoint)
        for state, manifest in manifests.items():
            place = self.directory.checkpoints / state
            if manifest is None or (place / MANIFEST).exists():
                continue
            disk.make_directory(place)
            if (content := self.storage.get(self.full(f"{stored[state].prefix}/{STATE}"))) is not None:
                disk.write(place / STATE, content)
                disk.write(place / MANIFEST, manifest)

    # -------------------------------------------------------------------------------------------- checkpoints

    def checkpoints(self, records: Sequence[Record]) -> list[StoredCheckpoint]:
        """Return the complete checkpoints that the run may resume from, in no order.

        A manifest counts if the ledger lists its checkpoint, and no later attempt or rollback has left it behind: a
        driver that was superseded may have stored one after the end of its time.
        """
        listed: dict[tuple[int, int], int] = {}
        for record in records:
            target = record.step if record.fact == Fact.attempt else record.rolled_back_to
            if target is not None:
                listed = {place: attempt for place, attempt in listed.items() if place[0] <= target}
            elif record.fact == Fact.checkpoint:
                listed[record.step, record.details.get("updates", 0)] = record.attempt
        alive = {
            StoredCheckpoint(state=State(next_step=step, updates=updates, reference_version=0).name, attempt=attempt)
            for (step, updates), attempt in listed.items()
        }
        names = set(self.storage.sizes(self.full("checkpoints/")))
        return [c for c in alive if self.full(f"{c.prefix}/{MANIFEST}") in names]

    def prefix_of(self, checkpoint: Path) -> str:
        """Return the name in storage of a checkpoint of this run, from its manifest."""
        attempt = json.loads((checkpoint / MANIFEST).read_bytes())["about"]["attempt"]
        return self.full(StoredCheckpoint(state=checkpoint.name, attempt=attempt).prefix)

    def damage(self, checkpoint: Path) -> str:
        """Return a description of the damage to a checkpoint in storage; empty if it is intact.

        Contents are verified by the ranks that fetch them.
        """
        try:
            files = read_manifest(checkpoint)["files"]
            prefix = self.prefix_of(checkpoint)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
            return f"{MANIFEST} is not what was written"
        state = (checkpoint / STATE).read_bytes()
        if hashlib.sha256(state).hexdigest() != files.get(STATE, {}).get("sha256"):
            return f"{STATE} is not what was written"
        sizes = self.storage.sizes(f"{prefix}/")
        for name, file in files.items():
            if (size := sizes.get(f"{prefix}/{name}")) != file["bytes"]:
                return f"{name} is missing in {self.storage.url}" if size is None else f"{name} has {size:,} bytes"
        return ""

    # -------------------------------------------------------------------------------------------- holder

    def read_holder(self) -> dict[str, Any] | None:
        """Return who runs the run, as that driver wrote it; None if nobody does, or did until the end."""
        content = self.storage.get(self.full(HOLDER))
        return None if content is None else _object(content) or {}

    def wait_for_holder(self, me: str, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait until the driver that holds the run has not renewed its lease for LEASE_S seconds.

        Clocks are not compared: only changes count. A driver `me`, which held it before on this machine, is not waited
        for: the lock of the directory tells that it has ended.

        Raises:
            BadInput: another driver runs the run.
        """
        first = self.read_holder()
        if first is None or first.get("driver") == me:
            return
        who = first.get("process", "another driver")
        say(f"{self.name}: {who} held this run; waiting {LEASE_S:g} s to see whether it still does")
        for _ in range(round(LEASE_S / POLL_S)):
            sleep(POLL_S)
            if (now := self.read_holder()) is None:
                return
            if now != first:
                where, why = f"{self.storage.url}/{self.name}", f"{who} runs it and renews its lease"
                fix = "wait for it or stop it, or give this run another name"
                raise BadInput(Problem(what="is in use", where=where, why=why, fix=fix))


HOW_STORED = ("storage", "output_dir", "cluster", "checkpoint", "report_to", "wandb")
"""Settings that may differ between two machines that run one run."""


def open_stored(config: RunConfig, directory: RunDirectory) -> StoredRun | None:
    """Return the twin of a run; None if its recipe has no `storage`.

    Raises:
        BadInput: the storage refuses the credentials, or there is no such bucket.
        StorageFailed: it does not answer.
    """
    if config.storage is None:
        return None
    with explained(config.storage):
        stored = StoredRun(Storage(config.storage), directory)
        stored.storage.size(stored.full(HOLDER))
    return stored


def settings_in(content: bytes, where: str) -> dict[str, Any]:
    """Return the content of resolved.json. Raises ResumeError if it is damaged."""
    settings = _object(content)
    if settings is None or not isinstance(settings.get("output_dir"), str):
        why, fix = "it is not what was written", "restore it, or run the recipe under another name"
        raise ResumeError(Problem(what="resolved.json is damaged", where=where, why=why, fix=fix))
    return settings


def _object(content: bytes) -> dict[str, Any] | None:
    """Return a JSON object; None if the text is anything else."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def driver_of(directory: Path) -> str:
    """Return the name of the drivers that share the lock of a directory: machine and path."""
    return f"{socket.gethostname()}:{directory}"


def is_apart(name: str, *, logs: bool = False) -> bool:
    """Return whether a file of a run is no small file of its driver. `logs`: logs are."""
    return APART.match(name) is not None or (name.startswith(LOGS) and not logs)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn errors of a storage into those for users: BadInput if it refuses, StorageFailed if it does not answer."""
    try:
        yield
    except StorageRefused as error:
        fix = "mend the URL or the credentials, on this machine and on those of the workers (docs/cluster/storage.md)"
        raise BadInput(Problem(what="storage cannot be used", where=url, why=str(error), fix=fix)) from None
    except StorageError as error:
        raise StorageFailed(url, str(error)) from None
