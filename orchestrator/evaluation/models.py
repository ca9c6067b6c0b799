"""Models named on the command line: a model directory, a Hub id, or a run.

runs/NAME  or  runs/NAME/model ──► the run's model, its initial model, and its newest reference
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
from orchestrator.preflight.model_directory import WEIGHTS
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, read_ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """A model and, if a run produced it, the models it was trained from.

    Example: `ModelRef(path="runs/sort/model", run="sort", base="models/sort",
    reference="runs/sort/reference/version-2", weights={"model.safetensors": "9f3c…"})`. `run`, `base` and `reference`
    are None for a model that was not produced by a run.
    """

    path: str
    run: str | None = None
    base: str | None = None  # initial model of the run
    reference: str | None = None  # newest reference of the run; None: the base, or no reference
    weights: Mapping[str, str] | None = None  # SHA-256 of each weight file; None: not on this machine

    @property
    def name(self) -> str:
        """Display name: that of the run, else of the directory."""
        return self.run or Path(self.path).name or self.path

    def to_dict(self) -> dict[str, Any]:
        """Return the model as it is stored in evaluation.json. `sha256` is the hash of the list of weight files."""
        lines = [f"{sha256}  {name}\n" for name, sha256 in (self.weights or {}).items()]
        digest = hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None
        return {**asdict(self), "sha256": digest}


def model_ref(given: str) -> ModelRef:
    """Resolve a model given on the command line, without hashing its weights.

    Raises:
        BadInput: a run without a model was given.
    """
    path = local(given)
    directory = RunDirectory(path if (path / "resolved.json").is_file() else path.parent)
    if not path.is_dir() or not directory.resolved.is_file() or path not in (directory.path, directory.model):
        return ModelRef(path=given)
    if not directory.model.is_dir():
        exit = directory.read_exit() or {}
        why = f"the run ended with {exit['cause']}" if "cause" in exit else "the run is not finished"
        why = "it generated a data set" if directory.data.is_dir() else why
        fix = f"see: rlhf why {given}; or give one of its references or another model directory"
        raise BadInput(Problem(what="the run has no model", where=given, why=why, fix=fix))
    run, base = directory.path.absolute().name, directory.config().model.path
    return ModelRef(path=str(directory.model), run=run, base=base, reference=_reference(directory))


def _reference(directory: RunDirectory) -> str | None:
    """Return the reference of the newest trained step. None: its directory no longer exists, or it is the base."""
    records, _, _ = read_ledger(directory.ledger)
    trained = [record for record in records if record.fact == Fact.trained]
    version = trained[-1].details.get("reference") if trained else None
    if not version:
        return directory.config().reference.path
    return str(directory.reference(version)) if directory.reference(version).is_dir() else None


def weights(path: str) -> dict[str, str] | None:
    """Return the SHA-256 of every weight file in a local directory, or None if the model is not on this machine."""
    folder = local(path)
    files = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
    return {file.name: disk.sha256(file) for file in files} or None
