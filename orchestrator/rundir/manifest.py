"""Manifest of a checkpoint or a model: its files with their hashes, as those who wrote them reported them.

checkpoints/step-12/  manifest.json  state.json  policy/…  critic/…

A directory without a manifest is not a checkpoint. Nothing is loaded from a checkpoint before `verify` has passed. The
driver hashes no file of a rank: it compares the ranks' reports with what it sees.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator import disk
from orchestrator.errors import FilesLost, Problem
from workers.files.shared_storage import EVERY_NODE, eventually, size_of
from workers.files.written import Report
from workers.spans import Progress
from workers.stats import StepStats

MANIFEST = "manifest.json"
STATE = "state.json"
WEIGHTS = ".safetensors"  # end of the names of files of weights
SCHEMA = 3
READABLE = (2, SCHEMA)  # in 2 a file has no rank: the driver listed and hashed what it saw
WHOLE = "."  # place of the files of a model: the directory itself
NAME = re.compile(r"step-[0-9]+(-update-[0-9]+)?")
SHOWN = 3  # files that a message names
MISSING = "missing, although the ledger lists it as complete"


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """State of a run in a checkpoint.

    Example: `State(next_step=12, reference_version=8)`: 12 steps are done, those with index 0 to 11.
    `State(next_step=12, …, updates=40)`: also done are 40 optimiser updates of the step with index 12.
    """

    next_step: int  # index of the next step, from 0; equal to the number of steps done
    reference_version: int
    updates: int = 0  # done of the next step
    stats: Mapping[str, Any] | None = None  # statistics of these updates, from the learners
    decision: Mapping[str, Any] | None = None  # decision on the reference before these updates
    critic: Mapping[str, Any] | None = None  # statistics of the critic's updates, if there is a critic

    @property
    def progress(self) -> Progress | None:
        """Progress of the next step; None if it has not begun."""
        if self.stats is None:
            return None
        critic = None if self.critic is None else StepStats(**self.critic)
        return Progress(updates=self.updates, stats=StepStats(**self.stats), critic=critic)

    @property
    def name(self) -> str:
        """Name of the checkpoint's directory."""
        return f"step-{self.next_step}" + (f"-update-{self.updates}" if self.updates else "")


def write_state(directory: Path, state: State) -> None:
    disk.write(directory / STATE, json.dumps(asdict(state)).encode())


def read_state(checkpoint: Path) -> State | None:
    """Return the state of a verified checkpoint; None if the file does not hold a valid state."""
    try:
        state = State(**json.loads((checkpoint / STATE).read_bytes()))
        _ = state.progress  # raises if `stats` is malformed
    except (ValueError, TypeError, AttributeError, RecursionError, OSError):
        return None
    counts = (state.next_step, state.reference_version, state.updates)
    return state if all(type(n) is int and n >= 0 for n in counts) else None


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    checkpoints = [p.parent for p in directory.glob(f"step-*/{MANIFEST}") if NAME.fullmatch(p.parent.name)]
    return sorted(checkpoints, key=position_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps done in a checkpoint, from its name."""
    return position_of(checkpoint)[0]


def position_of(checkpoint: Path) -> tuple[int, int]:
    """Return (steps done, updates of the next step) of a checkpoint, from its name."""
    step, _, updates = checkpoint.name.removeprefix("step-").partition("-update-")
    return int(step), int(updates or 0)


def seal(
    directory: Path,
    about: Mapping[str, Any],
    reports: Mapping[str, Sequence[Report]],
    own: Sequence[str] = (),
    *,
    is_shared: bool = True,
) -> None:
    """Write the manifest of a directory: the files that its writers reported, and `about`, which must be valid JSON.

    Args:
        reports: reports of all ranks of a gang, by the subdirectory that the gang was given.
        own: names of the driver's own files.
        is_shared: all machines see the directory; False: each has its own files, and all go to object storage.

    Raises:
        FilesLost: a rank reported nothing, a reported file is not here or has another size, or a file is here that
            nobody reported.
    """
    listed = require(directory, reports, is_shared=is_shared)
    for name in own:
        path = directory / name
        listed[name] = {"bytes": path.stat().st_size, "sha256": disk.sha256(path)}
    here = {path.relative_to(directory).as_posix() for path in disk.files(directory)}
    if unknown := sorted(here - listed.keys() - {MANIFEST}):
        why = "another process writes there, or the directory was not empty"
        fix = "end what writes there, and resume the run"
        what = f"nobody who may write there reported {', '.join(unknown[:SHOWN])}"
        raise FilesLost(Problem(what=what, where=str(directory), why=why, fix=fix))
    body = {"schema": SCHEMA, "about": dict(about), "files": dict(sorted(listed.items()))}
    disk.write(directory / MANIFEST, json.dumps({**body, "sha256": _digest(body)}, indent=1).encode())


def require(
    directory: Path, reports: Mapping[str, Sequence[Report]], *, is_shared: bool = True
) -> dict[str, dict[str, Any]]:
    """Return the reported files by name (size, hash, rank), once the driver sees all of them.

    `reports`, `is_shared` and errors as in `seal`.
    """
    for place, of_gang in reports.items():
        silent = [report.writer for report in of_gang if report.writes and not report.files]
        if silent or not any(report.files for report in of_gang):
            raise lost(f"{', '.join(silent) or 'the gang'} wrote nothing", directory / place)
    ranks = [(place, report) for place, of_gang in reports.items() for report in of_gang]
    named = [(str(PurePosixPath(place, file.name)), file, report) for place, report in ranks for file in report.files]

    def wrong() -> Iterator[str]:
        for name, file, report in named:
            if (size := size_of(directory / name)) != file.bytes:
                here = "it is not there" if size is None else f"it has {size:,}"
                yield f"{report.writer} wrote {name} of {file.bytes:,} bytes, and seen from here {here}"

    if is_shared and not eventually(lambda: not any(wrong())):
        found = list(wrong())
        more = f", and so on: {len(found)} files" if len(found) > SHOWN else ""
        raise lost("; ".join(found[:SHOWN]) + more, directory)
    return {name: {"bytes": file.bytes, "sha256": file.sha256, "rank": report.rank} for name, file, report in named}


def lost(what: str, directory: Path) -> FilesLost:
    """Return the error for files of a worker that the driver does not see."""
    return FilesLost(
        Problem(
            what=what,
            where=str(directory),
            why="the machine of that rank writes to another directory of this name, or lost the storage meanwhile",
            fix=f"{EVERY_NODE}; then resume the run",
        )
    )


def files_of(checkpoint: Path, place: str = WHOLE) -> dict[str, dict[str, Any]]:
    """Return the files in a subdirectory of a verified checkpoint (bytes, sha256, rank), by their names there."""
    files = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
    inside = {PurePosixPath(name): file for name, file in files.items()}
    return {str(name.relative_to(place)): file for name, file in inside.items() if name.is_relative_to(place)}


def read_about(checkpoint: Path) -> dict[str, Any]:
    """Return `about` from the manifest of a verified checkpoint."""
    about: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())["about"]
    return about


def verify(checkpoint: Path, *, hashes: bool = True, only: str = "") -> str:
    """Return a description of the damage to a checkpoint; empty if it is intact.

    Args:
        hashes: read every file; False: compare sizes alone, which reads none.
        only: end of the names of the files to verify.
    """
    try:
        listed = {name: file for name, file in read_manifest(checkpoint)["files"].items() if name.endswith(only)}
        wrong = (damage(checkpoint, {**expected, "path": name}, hashes=hashes) for name, expected in listed.items())
        return next(filter(None, wrong), "")
    except OSError as error:
        return f"cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was written"


def damage(directory: Path, file: Mapping[str, Any], *, hashes: bool = True) -> str:
    """Return a description of the damage to a recorded file; empty if it is intact.

    `file` holds its `path` relative to `directory`, its size in `bytes` and its `sha256`, which counts if `hashes`.
    """
    path = directory / file["path"]
    if Path(file["path"]).is_absolute() or ".." in Path(file["path"]).parts:
        return f"{file['path']} lies outside the directory"
    if not path.is_file():
        return f"{file['path']} is missing"
    digest = file["sha256"]
    intact = path.stat().st_size == file["bytes"] and (not hashes or disk.sha256(path) == digest)
    return "" if intact else f"{file['path']} is not what was written"


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return a manifest. Raises ValueError, KeyError or TypeError if it is damaged, OSError if it cannot be read."""
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
    digest = manifest.pop("sha256")
    if digest != _digest(manifest) or manifest["schema"] not in READABLE:
        raise ValueError("wrong digest or schema")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
