"""Checkpoints: complete or ignored; damage is found before anything is loaded."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Events, FakeLearner

from orchestrator.cluster.local import LocalGang
from orchestrator.driver.checkpoint import Checkpointer, newest
from orchestrator.errors import FilesLost, ResumeError
from orchestrator.pipeline.learning import Learners
from orchestrator.rundir.manifest import State, files_of, list_checkpoints, verify
from workers.files.shared_storage import FilesNotSeen, require_files
from workers.files.written import Report


class Saver:
    """Policy of two ranks and a critic, and a checkpointer for them."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.events: Events = []
        self.ranks = [FakeLearner(self.events, rank=rank) for rank in range(2)]
        self.critic = FakeLearner(self.events, head="values")
        policy: Any = LocalGang("policy", self.ranks)
        critic: Any = LocalGang("critic", [self.critic])
        self.checkpointer = Checkpointer(Learners(policy, critic), directory, keep=keep)

    def save(self, *steps: int) -> Path:
        for step in steps:
            self.ranks[0].weights = f"weights of {step}".encode()
            last = self.checkpointer.save(State(next_step=step, reference_version=step - 1))
        return last


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def saver(directory: Path) -> Saver:
    return Saver(directory, keep=2)


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


# ------------------------------------------------------------------------------------------------ writing


def test_a_checkpoint_holds_every_rank_the_state_and_a_manifest(saver: Saver, directory: Path) -> None:
    path = saver.save(3)
    assert path == directory / "step-3"
    assert saver.events == ["policy 0: save policy", "policy 1: save policy", "critic 0: save critic"]
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert list(files) == ["critic/critic 0.bin", "policy/policy 0.bin", "policy/policy 1.bin", "state.json"]
    assert files["policy/policy 1.bin"] == {
        "bytes": 7,  # of b"weights"
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        "rank": 1,
    }
    assert "rank" not in files["state.json"], "it is the driver's"
    assert verify(path) == ""


def test_the_newest_checkpoints_are_kept(saver: Saver, directory: Path) -> None:
    saver.save(2, 10, 9, 11)
    assert names(directory) == ["step-10", "step-11"]  # by number: 9 was saved after 10 but is older
    assert [p.name for p in list_checkpoints(directory)] == ["step-10", "step-11"]


def test_a_step_that_is_saved_again_is_replaced(saver: Saver, directory: Path) -> None:
    saver.save(3)
    (directory / "step-3" / "leftover").write_text("")
    saver.save(3)
    assert not (directory / "step-3" / "leftover").exists()
    assert verify(directory / "step-3") == ""


class DyingLearner(FakeLearner):
    """Learner that fails after it has written a file."""

    def save(self, directory: str, state: Any) -> Report:
        super().save(directory, state)
        raise OSError("no space left on device")


class FarLearner(FakeLearner):
    """Learner on a machine that writes to another directory of the same name, or that loses its file at once."""

    damage = staticmethod(Path.unlink)

    def save(self, directory: str, state: Any) -> Report:
        written = super().save(directory, state)
        self.damage(Path(directory) / f"{self._name}.bin")
        return written


class TornLearner(FarLearner):
    damage = staticmethod(lambda path: path.write_bytes(b"weight"))


@pytest.mark.parametrize(("learner", "here"), [(FarLearner, "it is not there"), (TornLearner, "it has 6")])
def test_a_checkpoint_without_a_file_of_a_rank_is_no_checkpoint(
    saver: Saver, directory: Path, monkeypatch: pytest.MonkeyPatch, learner: type[FarLearner], here: str
) -> None:
    monkeypatch.setattr("workers.files.shared_storage.LAG_S", 0.0)
    saver.save(1, 2)
    gang: Any = LocalGang("policy", [FakeLearner([]), learner([], rank=1)])
    with pytest.raises(FilesLost) as caught:
        Checkpointer(Learners(gang, None), directory, keep=1).save(State(next_step=3, reference_version=0))
    problem = caught.value.problems[0]
    machine = f"policy rank 1 on {socket.gethostname()}"
    assert problem.what == f"{machine} wrote policy/policy 1.bin of 7 bytes, and seen from here {here}"
    assert problem.where == str(directory / ".step-3.partial")
    assert problem.fix == "output_dir must be on storage that every node sees; then resume the run"
    assert names(directory) == ["step-1", "step-2"], "none is deleted, and the new one is removed"


def test_a_file_that_is_damaged_after_its_report_is_found_on_resume(saver: Saver, directory: Path) -> None:
    """The driver reads no file of a rank when it seals: a flipped bit of the right size is found by the next read."""
    flip(saver.save(1, 2) / "policy" / "policy 1.bin")
    assert verify(directory / "step-2", hashes=False) == ""
    assert newest(directory)[0].name == "step-1"


def test_a_rank_that_does_not_see_the_checkpoint_says_so(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.files.shared_storage.LAG_S", 0.0)
    checkpoint = saver.save(3)
    sizes = {name: file["bytes"] for name, file in files_of(checkpoint, "policy").items()}
    assert sizes == {"policy 0.bin": 12, "policy 1.bin": 7}  # "weights of 3", "weights"
    with pytest.raises(FilesNotSeen) as caught:
        require_files(tmp_path / "elsewhere", sizes)
    assert str(caught.value) == (
        f"{socket.gethostname()} does not see {tmp_path}/elsewhere/policy 0.bin and 1 more: "
        "output_dir must be on storage that every node sees"
    )


def test_a_failed_save_deletes_no_checkpoint(saver: Saver, directory: Path) -> None:
    saver.save(1, 2)
    broken: Any = LocalGang("policy", [DyingLearner([])])
    with pytest.raises(OSError, match="no space left"):
        Checkpointer(Learners(broken, None), directory, keep=1).save(State(next_step=3, reference_version=0))
    assert names(directory) == ["step-1", "step-2"]  # nothing of the failed one
    assert newest(directory)[0].name == "step-2"
    saver.save(3)  # the next one is complete
    assert names(directory) == ["step-2", "step-3"]


# ------------------------------------------------------------------------------------------------ reading


def test_the_newest_is_found_with_its_state_and_loaded(saver: Saver, directory: Path) -> None:
    saver.save(8, 9)
    path, state, refused = newest(directory)
    assert refused == []
    assert (path.name, state) == ("step-9", State(next_step=9, reference_version=8))
    other = Saver(directory, keep=2)
    other.checkpointer.load(path)
    assert other.ranks[0].weights == b"weights of 9"
    assert other.events == [
        "policy 0: load step-9/policy",
        "policy 1: load step-9/policy",
        "critic 0: load step-9/critic",
    ]


def test_an_incomplete_checkpoint_is_ignored(saver: Saver, directory: Path) -> None:
    saver.save(8)
    (directory / ".step-9.partial" / "policy").mkdir(parents=True)
    (directory / "step-10" / "policy").mkdir(parents=True)  # without a manifest
    assert newest(directory)[0].name == "step-8"


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("policy/policy 1.bin", flip, "policy/policy 1.bin is not what was written"),
        ("critic/critic 0.bin", cut, "critic/critic 0.bin is not what was written"),
        ("state.json", flip, "state.json is not what was written"),
        ("policy/policy 0.bin", Path.unlink, "policy/policy 0.bin is missing"),
        ("manifest.json", cut, "manifest.json is not what was written"),
        ("manifest.json", lambda path: path.write_bytes(b"[]"), "manifest.json is not what was written"),
        ("manifest.json", lambda path: path.write_bytes(b"\xff\xfe"), "manifest.json is not what was written"),
    ],
)
def test_damage_is_found_and_the_one_before_is_taken(
    saver: Saver, directory: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    path = saver.save(8, 9)
    damage(path / name)
    assert verify(path) == message
    checkpoint, _, refused = newest(directory)
    assert (checkpoint.name, refused) == ("step-8", [f"{path}: {message}"])


def test_without_a_checkpoint_the_error_lists_what_was_found(saver: Saver, directory: Path) -> None:
    with pytest.raises(ResumeError, match="none was completed before the run stopped"):
        newest(directory)
    flip(saver.save(8) / "state.json")
    with pytest.raises(ResumeError, match=r"step-8: state\.json is not what was written"):
        newest(directory)


def test_a_missing_checkpoint_that_the_ledger_lists_is_reported(
    saver: Saver, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.files.shared_storage.LAG_S", 0.0)
    with pytest.raises(ResumeError, match="step-9: missing, although the ledger lists it as complete"):
        newest(directory, (9, 0))
    saver.save(8)
    path, _, refused = newest(directory, (9, 2))
    missing = f"{directory}/step-9-update-2: missing, although the ledger lists it as complete"
    assert (path.name, refused) == ("step-8", [missing])
    saver.save(9, 10)
    assert [newest(directory, expected)[2] for expected in ((9, 0), (9, 2), (10, 0))] == [[], [], []]
