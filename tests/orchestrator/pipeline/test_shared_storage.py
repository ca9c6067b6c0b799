"""The check before the first step: every member sees the run directory, and the driver every member's answer."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.local import LocalGang
from orchestrator.errors import BadInput
from orchestrator.pipeline.shared_storage import check_storage
from workers.files.shared_storage import SharesStorage, Sighting

HERE = socket.gethostname()


@pytest.fixture(autouse=True)
def no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.files.shared_storage.LAG_S", 0.0)


class Elsewhere(SharesStorage):
    """Worker whose machine has another directory under the path of the run."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def check_storage(self, directory: str, token: str, name: str) -> Sighting:
        return super().check_storage(str(self._place / Path(directory).name), token, name)


class Mute(SharesStorage):
    """Worker that sees the token, but whose answers stay on its machine."""

    def check_storage(self, directory: str, token: str, name: str) -> Sighting:
        return Sighting(node="node-7", why="")


def gangs(**members: list[SharesStorage]) -> dict[str, Any]:
    return {role: LocalGang(role, of_role) for role, of_role in members.items()}


def refused(directory: Path, **members: list[SharesStorage]) -> list[str]:
    with pytest.raises(BadInput) as caught:
        check_storage(directory, gangs(**members))
    assert caught.value.exit_code == 2
    return [problem.what for problem in caught.value.problems]


def test_a_directory_that_all_share_is_left_as_it_was(tmp_path: Path) -> None:
    check_storage(tmp_path, gangs(policy=[SharesStorage(), SharesStorage()], rollout=[SharesStorage()]))
    assert list(tmp_path.iterdir()) == []


def test_all_members_that_do_not_see_it_are_named_by_machine(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    far = Elsewhere(tmp_path / "other")
    found = refused(run, policy=[SharesStorage(), far], rollout=[far], reward=[Mute()])
    assert found == [
        f"policy rank 1 and rollout rank 0 on {HERE} do not see {run}: "
        "output_dir must be on storage that every node sees",
        f"reward rank 0 on node-7 cannot show the driver a file in {run}: "
        "output_dir must be on storage that every node sees",
    ]
    assert not (tmp_path / "other").exists(), "a worker creates no directory of the same name"
    assert list(run.iterdir()) == []


def test_a_token_of_another_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("another")
    assert SharesStorage().check_storage(str(tmp_path), "mine", "policy-0").why == "does not see"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["token"]


def test_a_directory_that_a_member_cannot_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("mine")
    (tmp_path / "policy-0").mkdir()  # root may write everywhere: a name that is taken refuses the write
    assert SharesStorage().check_storage(str(tmp_path), "mine", "policy-0").why == "cannot write (Is a directory) to"
