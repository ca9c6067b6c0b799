"""Which models an evaluation is about, and where each comes from: a model directory, a hub id, or a run.

runs/NAME  or  runs/NAME/model ──► the model, and of its run: what it began with, and its newest reference
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import disk
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problem
from orchestrator.preflight.preflight import WEIGHTS
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, read_ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """A model and what is known of its making.

    Example: `ModelRef(path="runs/sort/model", run="sort", base="models/sort",
    reference="runs/sort/reference/version-2", weights={"model.safetensors": "9f3c…"})`. `run`, `base` and `reference`
    are None for a model that no run has made.
    """

    path: str
    run: str | None = None
    base: str | None = None  # what the run began with
    reference: str | None = None  # what it was held to in the end; None: the base, or nothing
    weights: Mapping[str, str] | None = None  # SHA-256 of each file; None: not on this machine

    @property
    def name(self) -> str:
        """For people: the run's, or the directory's."""
        return self.run or Path(self.path).name or self.path

    def to_dict(self) -> dict[str, Any]:
        """As evaluation.json has it; `sha256` is that of the list of files."""
        lines = [f"{sha256}  {name}\n" for name, sha256 in (self.weights or {}).items()]
        whole = hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None
        return {**asdict(self), "sha256": whole}


def model_ref(given: str) -> ModelRef:
    """Of what stands on the command line; nothing is hashed yet.

    Raises:
        BadInput: it is a run without a model.
    """
    path = local(given)
    directory = RunDirectory(path if (path / "resolved.json").is_file() else path.parent)
    if not path.is_dir() or not directory.resolved.is_file() or path not in (directory.path, directory.model):
        return ModelRef(path=given)
    if not directory.model.is_dir():
        exit = directory.read_exit() or {}
        why = f"it ended with {exit['cause']}" if "cause" in exit else "it is not finished"
        fix = f"see: rlhf why {given}; or give one of its references or another model directory"
        raise BadInput(Problem(what="the run has no model", where=given, why=why, fix=fix))
    run, base = directory.path.absolute().name, directory.config().model.path
    return ModelRef(path=str(directory.model), run=run, base=base, reference=_reference(directory))


def _reference(directory: RunDirectory) -> str | None:
    """The newest one that the run has learned against, where it is still there."""
    records, _, _ = read_ledger(directory.ledger)
    trained = [record for record in records if record.fact == Fact.trained]
    version = trained[-1].details.get("reference") if trained else None
    return str(directory.reference(version)) if version and directory.reference(version).is_dir() else None


def weights(path: str) -> dict[str, str] | None:
    """SHA-256 of every file of weights in a local directory; None: it is not on this machine."""
    folder = local(path)
    files = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
    return {file.name: disk.sha256(file) for file in files} or None
