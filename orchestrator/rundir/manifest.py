"""Manifest of a checkpoint: the state it holds, and its files with their hashes.

checkpoints/step-12/  manifest.json  state.json  policy/…  critic/…

A directory without a manifest is not a checkpoint. Nothing is loaded from a checkpoint before `verify` has passed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import disk
from workers.spans import Progress
from workers.types import StepStats

MANIFEST = "manifest.json"
STATE = "state.json"
SCHEMA = 2
NAME = re.compile(r"step-[0-9]+(-update-[0-9]+)?")
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

    @property
    def progress(self) -> Progress | None:
        """Progress of the next step; None if it has not begun."""
        return None if self.stats is None else Progress(updates=self.updates, stats=StepStats(**self.stats))

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


def seal(directory: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint: its files with their hashes, and `about`, which must be valid JSON."""
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": disk.sha256(path)}
        for path in disk.files(directory)
    }
    body = {"schema": SCHEMA, "about": dict(about), "files": files}
    disk.write(directory / MANIFEST, json.dumps({**body, "sha256": _digest(body)}, indent=1).encode())


def read_about(checkpoint: Path) -> dict[str, Any]:
    """Return `about` from the manifest of a verified checkpoint."""
    about: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())["about"]
    return about


def verify(checkpoint: Path) -> str:
    """Return a description of the damage to a checkpoint; empty if it is intact."""
    try:
        manifest = _read(checkpoint)
        wrong = (damage(checkpoint, {**expected, "path": name}) for name, expected in manifest["files"].items())
        return next(filter(None, wrong), "")
    except OSError as error:
        return f"cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was written"


def damage(directory: Path, file: Mapping[str, Any]) -> str:
    """Return a description of the damage to a recorded file; empty if it is intact.

    `file` holds its `path` relative to `directory`, its size in `bytes` and its `sha256`.
    """
    path = directory / file["path"]
    if Path(file["path"]).is_absolute() or ".." in Path(file["path"]).parts:
        return f"{file['path']} lies outside the directory"
    if not path.is_file():
        return f"{file['path']} is missing"
    intact = path.stat().st_size == file["bytes"] and disk.sha256(path) == file["sha256"]
    return "" if intact else f"{file['path']} is not what was written"


def _read(checkpoint: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
    digest = manifest.pop("sha256")
    if digest != _digest(manifest) or manifest["schema"] != SCHEMA:
        raise ValueError("wrong digest or schema")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
