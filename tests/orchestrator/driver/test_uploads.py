"""Uploads of a driver, with a directory as the store: what may be deleted while a checkpoint is being uploaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.driver.uploads import Uploads
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Record
from orchestrator.rundir.manifest import STATE, State, seal, write_state
from orchestrator.rundir.stored import StoredRun
from workers.storage import Storage


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    stored = StoredRun(Storage(f"file://{tmp_path}/store"), RunDirectory(tmp_path / "runs" / "run"))
    return Uploads(stored, keep=2)


def save(uploads: Uploads, step: int) -> None:
    """Write a checkpoint after `step` steps, and ask for its upload."""
    state = State(next_step=step, updates=0, reference_version=0)
    checkpoint = uploads.stored.directory.checkpoints / state.name
    checkpoint.mkdir(parents=True)
    write_state(checkpoint, state)
    seal(checkpoint, {"attempt": 1}, {}, [STATE])
    uploads.saved((Record(seq=step, attempt=1, step=step, fact=Fact.checkpoint, details={}, time=1.0),))


def test_rollouts_stay_while_a_checkpoint_that_needs_them_is_uploaded(uploads: Uploads) -> None:
    assert uploads.oldest(5) == 5
    for step in (5, 6, 7):  # the thread is not started: the first one is under way for ever
        save(uploads, step)
    assert uploads.oldest(6) == 5
    assert uploads.oldest(4) == 4, "a checkpoint here needs more"


def test_what_will_be_written_again_is_deleted_before(uploads: Uploads) -> None:
    storage, model = uploads.stored.storage, uploads.stored.directory.round_model(3)
    storage.put(f"{uploads.stored.name_of(model)}/config.json", b"{}")
    storage.put("run/rounds/30/model/config.json", b"{}")
    uploads.delete_now(model)
    assert list(storage.sizes("")) == ["run/rounds/30/model/config.json"]
