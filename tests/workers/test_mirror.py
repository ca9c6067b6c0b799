"""Files of a run in object storage, as a worker sees them; a directory is the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.files import mirror
from workers.files.mirror import Mirror
from workers.files.saved import Saved
from workers.files.written import report
from workers.storage import Storage, StorageError, StorageRefused, environment, read_key_files


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Mirror, Mirror]:
    """Two machines with one store."""
    storage = Storage(f"file://{tmp_path}/store")
    return Mirror(storage, tmp_path / "a"), Mirror(storage, tmp_path / "b")


@pytest.fixture
def of_process(machines: tuple[Mirror, Mirror], monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """Make this process a worker of the first machine."""
    monkeypatch.setattr(mirror, "of_process", lambda: machines[0])
    return machines[0]


def written(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def test_a_file_is_uploaded_although_it_is_renamed_and_deleted_meanwhile(machines: tuple[Mirror, Mirror]) -> None:
    first, _ = machines
    directory = written(first.root / "run" / ".model.partial", weights="large")
    first.upload({"run/model/weights": directory / "weights"})
    directory.rename(first.root / "run" / "model")
    (first.root / "run" / "model" / "weights").unlink()
    first.flush()
    assert first.storage.get("run/model/weights") == b"large"


def test_an_upload_that_fails_is_tried_again(machines: tuple[Mirror, Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = machines
    directory, tries = written(first.root / "run", weights="large"), list[str]()
    put = first.storage.put

    def fails(name: str, data: object) -> None:
        tries.append(name)
        if len(tries) < 3:
            raise StorageError("no answer")
        put(name, data)  # type: ignore[arg-type]

    monkeypatch.setattr(first.storage, "put", fails)
    monkeypatch.setattr(mirror, "RETRY_S", (0.0,))
    first.upload({"run/weights": directory / "weights"})
    first.flush()
    assert (first.storage.get("run/weights"), len(tries)) == (b"large", 3)


def test_files_that_may_be_dropped_are_not_held_open_while_the_store_is_down(
    machines: tuple[Mirror, Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = machines
    put, down = first.storage.put, True

    def fails(name: str, data: object) -> None:
        if down:
            raise StorageError("no answer")
        put(name, data)  # type: ignore[arg-type]

    monkeypatch.setattr(first.storage, "put", fails)
    monkeypatch.setattr(mirror, "RETRY_S", (0.01,))
    names = [f"chunk-{n}" for n in range(50)]
    directory = written(first.root / "run" / "rollouts", **dict.fromkeys(names, "tokens"))
    before = len(os.listdir("/proc/self/fd"))
    first.upload({f"run/rollouts/{name}": directory / name for name in names}, droppable=True)
    assert len(os.listdir("/proc/self/fd")) < before + 10
    for name in names[10:20]:
        (directory / name).unlink()
    down = False
    first.flush()
    assert sorted(first.storage.sizes("")) == sorted(f"run/rollouts/{name}" for name in names[:10] + names[20:])


def test_another_machine_requires_a_directory(machines: tuple[Mirror, Mirror], of_process: Mirror) -> None:
    first, second = machines
    mirror.publish(written(first.root / "run" / "adapters" / "version-3", config="{}", weights="large"))
    second.require(second.root / "run" / "adapters" / "version-3", wait_s=10)
    assert (second.root / "run" / "adapters" / "version-3" / "weights").read_text() == "large"
    first.flush()


def test_what_is_here_is_not_fetched_again(machines: tuple[Mirror, Mirror], of_process: Mirror) -> None:
    first, second = machines
    mirror.publish(written(first.root / "run" / "model", weights="large"))
    first.flush()
    second.require(second.root / "run" / "model")
    first.storage.delete(["run/model/weights"])
    second.require(second.root / "run" / "model")


def test_an_object_that_is_not_what_was_written_is_refused(machines: tuple[Mirror, Mirror], of_process: Mirror) -> None:
    first, second = machines
    mirror.publish(written(first.root / "run" / "model", weights="large"))
    first.flush()
    first.storage.put("run/model/weights", b"other")
    with pytest.raises(StorageError, match="is not what was written"):
        second.require(second.root / "run" / "model")
    assert list((second.root / "run" / "model").iterdir()) == []


def test_a_manifest_that_leads_out_of_its_directory_is_refused(machines: tuple[Mirror, Mirror]) -> None:
    first, _ = machines
    first.storage.put("run/model/manifest.json", b'{"files": {"../../x": {"bytes": 1, "sha256": "0"}}}')
    with pytest.raises(StorageError, match="outside its directory"):
        first.require(first.root / "run" / "model")


def test_a_directory_elsewhere_and_one_without_a_manifest_are_left_alone(
    machines: tuple[Mirror, Mirror], tmp_path: Path
) -> None:
    first, _ = machines
    first.require(tmp_path / "elsewhere")
    first.require(first.root / "run" / "model", wait_s=0.0)
    assert not (first.root / "run").exists()


def test_without_storage_nothing_happens(tmp_path: Path) -> None:
    assert mirror.of_process() is None
    directory = written(tmp_path / "model", weights="large")
    mirror.publish(directory)
    mirror.require(str(directory))
    mirror.empty(directory)
    mirror.flush()
    assert [path.name for path in directory.iterdir()] == ["weights"]


def test_a_rank_needs_its_own_files_and_all_if_the_number_of_ranks_differs(tmp_path: Path) -> None:
    files = {f"rank-{rank}": {"bytes": 1, "sha256": "0", "rank": rank} for rank in range(4)}
    saved = Saved(files=files, prefix="run/checkpoints/step-1")
    assert list(saved.of_rank(2, 4)) == ["rank-2"]
    assert saved.of_rank(1, 2) == files
    whole = Saved(files={"whole": {"bytes": 1, "sha256": "0", "rank": 0}})  # stage 0: rank 0 writes the state of all
    assert list(whole.of_rank(3, 4)) == ["whole"]
    assert report(tmp_path, [], role="policy", rank=1, writes=False).files == ()


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://"])
def test_a_url_that_no_store_has_is_refused(url: str) -> None:
    with pytest.raises(StorageRefused):
        Storage(url)


def test_an_object_is_created_once(machines: tuple[Mirror, Mirror]) -> None:
    storage = machines[0].storage
    assert [storage.create("run/x", content) for content in (b"a", b"b")] == [True, False]
    assert storage.get("run/x") == b"a"
    assert storage.sizes("run/") == {"run/x": 1}
    assert storage.size("run/y") is None
    storage.delete(["run/x", "run/y"])
    assert storage.sizes("") == {}
    assert os.environ.get("RLHF_STORAGE") is None


def test_workers_read_the_keys_of_a_store_from_the_files_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "id").write_text("AKIA1\n")
    files = {"AWS_ACCESS_KEY_ID": tmp_path / "id", "AWS_SESSION_TOKEN": tmp_path / "none", "HF_TOKEN": tmp_path / "id"}
    for name in files:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that it is removed again
        monkeypatch.delenv(name)
    monkeypatch.setenv("RLHF_SECRET_FILES", os.pathsep.join(f"{name}={file}" for name, file in files.items()))
    read_key_files()
    assert {name: os.environ.get(name) for name in files} == {
        "AWS_ACCESS_KEY_ID": "AKIA1",
        "AWS_SESSION_TOKEN": None,  # this machine has no such file
        "HF_TOKEN": None,  # no key of a store
    }
    assert environment()["RLHF_SECRET_FILES"].startswith("AWS_ACCESS_KEY_ID=")
