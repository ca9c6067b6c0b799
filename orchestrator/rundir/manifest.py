"""What a complete checkpoint says of itself: which state it holds, and which files it consists of, each with its hash.

checkpoints/step-12/  manifest.json  state.json  policy/…  critic/…

A directory without a manifest is none. Nothing of a checkpoint is loaded before `verify` was asked.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Where a run stands. Example: `State(next_step=12, reference_version=8)`: steps 0 to 11 are committed.

    `State(next_step=12, …, updates=40)` stands in the middle of step 12, after 40 of its optimiser updates.
    """

    next_step: int
    reference_version: int
    updates: int = 0
    stats: Mapping[str, Any] | None = None  # what the learners have said of these updates
    decision: Mapping[str, Any] | None = None  # what became of the reference before them

    @property
    def progress(self) -> Progress | None:
        """How far step `next_step` has come; None: it has not begun."""
        return None if self.stats is None else Progress(updates=self.updates, stats=StepStats(**self.stats))

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return f"step-{self.next_step}" + (f"-update-{self.updates}" if self.updates else "")


def write_state(directory: Path, state: State) -> None:
    disk.write(directory / STATE, json.dumps(asdict(state)).encode())


def read_state(checkpoint: Path) -> State | None:
    """Of a checkpoint that was verified; None when it is no state, which no hash can tell."""
    try:
        state = State(**json.loads((checkpoint / STATE).read_bytes()))
        _ = state.progress  # whether it can be made of what is there
    except (ValueError, TypeError, AttributeError, RecursionError, OSError):
        return None
    counts = (state.next_step, state.reference_version, state.updates)
    return state if all(type(n) is int and n >= 0 for n in counts) else None


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p.parent for p in directory.glob(f"step-*/{MANIFEST}") if NAME.fullmatch(p.parent.name)]
    return sorted(found, key=position_of)


def step_of(checkpoint: Path) -> int:
    """How many turns were done when it was made, which its name says."""
    return position_of(checkpoint)[0]


def position_of(checkpoint: Path) -> tuple[int, int]:
    """(turns done, updates of the next one) when it was made, which its name says."""
    step, _, updates = checkpoint.name.removeprefix("step-").partition("-update-")
    return int(step), int(updates or 0)


def seal(directory: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest that says what the files are; `about` is what else it says, as JSON has it."""
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": disk.sha256(path)}
        for path in disk.files(directory)
    }
    body = {"schema": SCHEMA, "about": dict(about), "files": files}
    disk.write(directory / MANIFEST, json.dumps({**body, "sha256": _digest(body)}, indent=1).encode())


def read_about(checkpoint: Path) -> dict[str, Any]:
    """What else the manifest of a verified checkpoint says."""
    about: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())["about"]
    return about


def verify(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; empty when nothing is."""
    try:
        manifest = _read(checkpoint)
        wrong = (damage(checkpoint, {**expected, "path": name}) for name, expected in manifest["files"].items())
        return next(filter(None, wrong), "")
    except OSError as error:
        return f"cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was written"


def damage(directory: Path, file: Mapping[str, Any]) -> str:
    """What is wrong with a file of which it was recorded: `path` below `directory`, `bytes` and `sha256`."""
    path = directory / file["path"]
    if Path(file["path"]).is_absolute() or ".." in Path(file["path"]).parts:
        return f"{file['path']} would lie outside of it"
    if not path.is_file():
        return f"{file['path']} is missing"
    as_written = path.stat().st_size == file["bytes"] and disk.sha256(path) == file["sha256"]
    return "" if as_written else f"{file['path']} is not what was written"


def _read(checkpoint: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
    digest = manifest.pop("sha256")
    if digest != _digest(manifest) or manifest["schema"] != SCHEMA:
        raise ValueError("another digest or schema")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
