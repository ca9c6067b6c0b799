"""Manifests: what every rank reported, and nothing else; a file that is missing is never sealed over."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from orchestrator.errors import FilesLost
from orchestrator.rundir.manifest import MANIFEST, WHOLE, seal, verify
from workers.files.written import Report, WrittenFile, report


@pytest.fixture(autouse=True)
def no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.files.shared_storage.LAG_S", 0.0)


def written(directory: Path, name: str, data: bytes = b"weights", *, rank: int = 0) -> Report:
    """Write a file as a rank of the policy, and return the rank's report."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return report(directory, [path], role="policy", rank=rank)


def test_a_manifest_lists_what_every_rank_reported(tmp_path: Path) -> None:
    policy = [written(tmp_path / "policy", f"state/rank-{rank}.pt", bytes([rank]) * 9, rank=rank) for rank in (0, 1)]
    (tmp_path / "state.json").write_text("{}")
    seal(tmp_path, {"run": "a"}, {"policy": policy}, own=["state.json"])
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["about"] == {"run": "a"}
    assert manifest["files"] == {
        "policy/state/rank-0.pt": {"bytes": 9, "sha256": hashlib.sha256(bytes(9)).hexdigest(), "rank": 0},
        "policy/state/rank-1.pt": {"bytes": 9, "sha256": hashlib.sha256(b"\1" * 9).hexdigest(), "rank": 1},
        "state.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
    }
    assert verify(tmp_path) == ""


def test_the_driver_reads_no_file_of_a_rank(tmp_path: Path) -> None:
    reports = [written(tmp_path, "model.safetensors")]
    (tmp_path / "model.safetensors").write_bytes(b"WEIGHTS")  # damaged after the report, with its size
    seal(tmp_path, {}, {WHOLE: reports})
    assert verify(tmp_path, hashes=False) == ""
    assert verify(tmp_path) == "model.safetensors is not what was written"


def test_a_file_that_a_rank_reported_and_the_driver_does_not_see_is_not_sealed(tmp_path: Path) -> None:
    reports = [written(tmp_path, "rank-0.pt"), written(tmp_path, "rank-1.pt", rank=1)]
    (tmp_path / "rank-1.pt").unlink()
    with pytest.raises(FilesLost, match=r"policy rank 1 on .* wrote rank-1\.pt of 7 bytes, .* it is not there"):
        seal(tmp_path, {}, {WHOLE: reports})
    assert not (tmp_path / MANIFEST).exists()


def test_all_missing_files_are_counted_and_three_are_named(tmp_path: Path) -> None:
    reports = [written(tmp_path, f"rank-{rank}.pt", rank=rank) for rank in range(5)]
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(FilesLost, match=r"rank-0.*rank-1.*rank-2.*, and so on: 5 files") as caught:
        seal(tmp_path, {}, {WHOLE: reports})
    assert "rank-3" not in str(caught.value)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_rank_that_reported_nothing_is_named(tmp_path: Path, silent: int) -> None:
    nothing = Report(role="policy", rank=silent, node="node-7", files=())
    other = written(tmp_path, "rank.pt", rank=1 - silent)
    with pytest.raises(FilesLost, match=f"policy rank {silent} on node-7 wrote nothing"):
        seal(tmp_path, {}, {WHOLE: sorted([nothing, other], key=lambda r: r.rank)})


def test_a_rank_for_which_another_one_writes_may_report_nothing_unless_all_do(tmp_path: Path) -> None:
    follower = Report(role="policy", rank=1, node="node-7", files=(), writes=False)
    with pytest.raises(FilesLost, match="the gang wrote nothing"):
        seal(tmp_path, {}, {WHOLE: [follower]})
    with pytest.raises(FilesLost, match="the gang wrote nothing"):
        seal(tmp_path, {}, {WHOLE: []})
    seal(tmp_path, {}, {WHOLE: [written(tmp_path, "model.safetensors"), follower]})
    assert verify(tmp_path) == ""


def test_a_file_that_nobody_reported_is_not_sealed(tmp_path: Path) -> None:
    reports = [written(tmp_path, "rank-0.pt")]
    (tmp_path / "rank-1.pt").write_bytes(b"left by another attempt")
    with pytest.raises(FilesLost, match=r"nobody who may write there reported rank-1\.pt"):
        seal(tmp_path, {}, {WHOLE: reports})


def test_a_file_that_appears_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared storage shows another machine's file late: here, between two looks."""
    monkeypatch.setattr("workers.files.shared_storage.LAG_S", 60.0)
    reports = [written(tmp_path, "rank-0.pt")]
    (tmp_path / "rank-0.pt").rename(hidden := tmp_path.parent / "hidden")
    monkeypatch.setattr("workers.files.shared_storage.time.sleep", lambda _: hidden.rename(tmp_path / "rank-0.pt"))
    seal(tmp_path, {}, {WHOLE: reports})
    assert verify(tmp_path) == ""


def test_a_manifest_of_the_schema_before_is_still_read(tmp_path: Path) -> None:
    """Checkpoints of earlier versions name no ranks."""
    written(tmp_path, "rank-0.pt")
    for schema, found in ((2, ""), (1, "manifest.json is not what was written")):
        files = {"rank-0.pt": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}}
        old = {"schema": schema, "about": {}, "files": files}
        digest = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
        (tmp_path / MANIFEST).write_text(json.dumps({**old, "sha256": digest}))
        assert verify(tmp_path) == found


def test_a_report_is_of_what_lies_on_the_disk(tmp_path: Path) -> None:
    found = written(tmp_path, "state/rank-0.pt")
    assert found.files == (WrittenFile(name="state/rank-0.pt", bytes=7, sha256=hashlib.sha256(b"weights").hexdigest()),)
    with pytest.raises(FileNotFoundError):
        report(tmp_path, [tmp_path / "never-written"], role="policy", rank=0)
