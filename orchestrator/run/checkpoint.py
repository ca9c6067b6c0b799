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
    found = [p.parent for p in directory.glob(f"step-*/{MANIFEST}")]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def go_back(directory: Path, before: int) -> int | None:
    """Drop the newest checkpoints, so that the run goes on from the newest one that is at `before` or earlier, or else
    from the oldest that is kept; None, and nothing is dropped, when there is none to go back to.
    """
    *earlier, _ = [int(c.name.removeprefix("step-")) for c in list_checkpoints(directory)] or [0]
    if not earlier:
        return None
    target = max((step for step in earlier if step <= before), default=earlier[0])
    for checkpoint in list_checkpoints(directory):
        if int(checkpoint.name.removeprefix("step-")) > target:
            checkpoint.rename(gone := disk.partial(checkpoint))  # at once, so that no half of it bears its name
            shutil.rmtree(gone)
    return target


def newest(directory: Path) -> tuple[Path, State]:
    """The newest checkpoint whose files are all as the manifest has them; raises ResumeError when there is none."""
    refused = []
    for checkpoint in reversed(list_checkpoints(directory)):
        damage = verify(checkpoint)
        if not damage:
            return checkpoint, State(**json.loads((checkpoint / "state.json").read_text()))
        refused.append(f"{checkpoint}: {damage}")
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
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"
    if digest != _digest(manifest) or manifest["schema"] != SCHEMA:
        return f"{MANIFEST} is not what was written"
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            return f"{name} is not what was written"
    return ""


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
