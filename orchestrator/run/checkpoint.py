"""Checkpoints: written aside, described by a manifest, renamed into place. A directory without its manifest is none.

checkpoints/step-12/  manifest.json  state.json  policy/…  critic/…
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.cluster.base import wait
from orchestrator.errors import Problem, ResumeError
from orchestrator.pipeline.learning import Learners
from workers.learner import Learner

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Where a run stands. Example: `State(next_step=12, reference_version=8)`: steps 0 to 11 are committed."""

    next_step: int
    reference_version: int


class Checkpointer:
    """Saves the learners and the run's state, and keeps the newest few."""

    def __init__(self, learners: Learners, directory: Path, *, keep: int) -> None:
        self._learners, self._directory, self._keep = learners, directory, keep

    def save(self, state: State) -> Path:
        """One checkpoint; the ones before it are dropped only when it is complete."""
        target = self._directory / f"step-{state.next_step}"
        aside = disk.fresh(target)
        saving = self._learners.policy.all(Learner.save, str(aside / "policy"), {})
        if self._learners.critic:
            saving = [*saving, *self._learners.critic.all(Learner.save, str(aside / "critic"), {})]
        wait(saving)
        disk.write(aside / "state.json", json.dumps(asdict(state)).encode())
        _seal(aside)
        disk.publish(target)
        self._drop_old(target)
        return target

    def _drop_old(self, new: Path) -> None:
        """Keeps the newest few; nothing is dropped for a checkpoint that cannot be read back."""
        if damage := verify(new):
            raise OSError(f"{new}: {damage} right after it was written; the checkpoints before it are kept")
        for old in list_checkpoints(self._directory)[: -self._keep]:
            old.rename(gone := disk.partial(old))  # at once, so that no half of it bears its name
            shutil.rmtree(gone)

    def load(self, checkpoint: Path) -> None:
        """Bring the learners back to where `checkpoint` found them."""
        loading = self._learners.policy.all(Learner.load, str(checkpoint / "policy"))
        if self._learners.critic:
            loading = [*loading, *self._learners.critic.all(Learner.load, str(checkpoint / "critic"))]
        wait(loading)


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p.parent for p in directory.glob(f"step-*/{MANIFEST}") if p.parent.name[5:].isdecimal()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def newest(directory: Path) -> tuple[Path, State]:
    """The newest checkpoint whose files are all as the manifest has them; raises ResumeError when there is none."""
    refused = []
    for checkpoint in reversed(list_checkpoints(directory)):
        damage = verify(checkpoint)
        state = None if damage else _read_state(checkpoint)
        if state is not None:
            return checkpoint, state
        refused.append(f"{checkpoint}: {damage or 'state.json is not what was written'}")
    raise ResumeError(
        Problem(
            what="there is no checkpoint to go on from",
            where=str(directory),
            why="; ".join(refused) or "none was finished before the run stopped",
            fix="start the recipe anew under another name",
        )
    )


def verify(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; empty when nothing is. Nothing of it is loaded before this was asked."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        digest = manifest.pop("sha256")
        if digest != _digest(manifest) or manifest["schema"] != SCHEMA:
            return f"{MANIFEST} is not what was written"
        damages = (_damage(checkpoint, name, told["bytes"], told["sha256"]) for name, told in manifest["files"].items())
        return next(filter(None, damages), "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was written"
    except OSError as error:
        return f"cannot be read: {error}"


def _damage(checkpoint: Path, name: str, num_bytes: int, sha256: str) -> str:
    path = checkpoint / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{name} would lie outside of it"
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != num_bytes or _sha256(path) != sha256:
        return f"{name} is not what was written"
    return ""


def _read_state(checkpoint: Path) -> State | None:
    try:
        state = State(**json.loads((checkpoint / "state.json").read_bytes()))
    except (ValueError, TypeError, RecursionError, OSError):
        return None
    return state if all(type(n) is int and n >= 0 for n in (state.next_step, state.reference_version)) else None


def _seal(directory: Path) -> None:
    """Write the manifest that says what the files are."""
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in disk.files(directory)
    }
    body = {"schema": SCHEMA, "files": files}
    disk.write(directory / MANIFEST, json.dumps({**body, "sha256": _digest(body)}, indent=1).encode())


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
