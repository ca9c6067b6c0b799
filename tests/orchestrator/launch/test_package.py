"""Packages: which files are shipped, what is refused, limits, and equal bytes for equal contents."""

from __future__ import annotations

import hashlib
import os
import socket
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.launch import package as module
from orchestrator.launch.base import Package
from orchestrator.launch.package import MAX_BYTES, MIB, Named, build_package, write_zip

Golden = Callable[[str, str], None]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "work"
    root.mkdir()
    (root / "recipe.yaml").write_text("name: a\n")
    return root


def named(*paths: str) -> list[Named]:
    return [Named(path=path, by="data.dataset") for path in paths]


def sparse(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def refusal(root: Path, *paths: str) -> str:
    with pytest.raises(BadInput) as caught:
        build_package(named(*paths), root)
    return str(caught.value).replace(str(root.parent), "/here")


def zipped(package: Package, path: Path) -> bytes:
    write_zip(package, path)
    return path.read_bytes()


# ------------------------------------------------------------------------------------------------ contents


def test_named_files_are_copied_to_their_places_and_no_others(tree: Path, tmp_path: Path) -> None:
    (tree / ".gitignore").write_text("data/\n")
    (tree / "data").mkdir()
    (tree / "data" / "pairs.jsonl").write_text("{}\n")
    (tree / "notes.txt").write_text("private")
    package = build_package(named("recipe.yaml", "./data/pairs.jsonl", "data/pairs.jsonl"), tree, tmp_path / "copy")
    assert package.root == tmp_path / "copy"
    assert package.files == {
        "data/pairs.jsonl": hashlib.sha256(b"{}\n").hexdigest(),
        "recipe.yaml": hashlib.sha256(b"name: a\n").hexdigest(),
    }
    assert package.bytes == 11
    shipped = {str(p.relative_to(package.root)): p.read_bytes() for p in package.root.rglob("*") if p.is_file()}
    assert shipped == {"data/pairs.jsonl": b"{}\n", "recipe.yaml": b"name: a\n"}


def test_a_directory_is_shipped_without_caches_and_hidden_files(tree: Path) -> None:
    for name in ("config.json", "sub/x.jinja", ".git/config", ".env", "__pycache__/a.pyc", "b.pyc", "cache-1.arrow"):
        sparse(tree / "model" / name, 1)
    assert list(build_package(named("model"), tree).files) == ["model/config.json", "model/sub/x.jinja"]


def test_a_link_within_the_tree_is_shipped_as_what_it_leads_to(tree: Path, tmp_path: Path) -> None:
    sparse(tree / "blobs" / "1", 3)
    (tree / "model").mkdir()
    (tree / "model" / "weights").symlink_to("../blobs/1")
    (tree / "model" / "again").symlink_to(".")  # a loop
    (tree / "other").symlink_to("model")
    package = build_package(named("model", "other"), tree, tmp_path / "copy")
    assert sorted(package.files) == ["model/weights", "other/weights"]
    assert not any(path.is_symlink() for path in package.root.rglob("*"))


def test_the_digest_is_that_of_names_and_contents(tree: Path) -> None:
    sparse(tree / "a", 1)
    first = build_package(named("recipe.yaml", "a"), tree)
    os.utime(tree / "a", (1, 1))
    (tree / "a").chmod(0o755)
    assert build_package(named("a", "recipe.yaml"), tree).digest == first.digest
    (tree / "a").write_bytes(b"x")
    second = build_package(named("recipe.yaml", "a"), tree)
    (tree / "a").rename(tree / "b")
    third = build_package(named("recipe.yaml", "b"), tree)
    assert len({first.digest, second.digest, third.digest}) == 3


def test_equal_contents_are_equal_zip_files(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("recipe.yaml", "ä/b.txt", "z")
    for name in names[1:]:
        sparse(tree / name, 2 * MIB + 1)
    first = zipped(build_package(named(*names), tree, tmp_path / "one"), tmp_path / "1.zip")
    for name in names:
        os.utime(tree / name, (10_000, 10_000))
        (tree / name).chmod(0o600)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    second = zipped(build_package(named(*reversed(names)), tree), tmp_path / "2.zip")
    monkeypatch.delenv("TZ")
    time.tzset()
    assert first == second
    assert hashlib.sha256(first).hexdigest() == "e80b6f3d2d55fb4abd879aef940c89e0230c2f1a78043ead286e9ab23c70b821"
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert archive.namelist() == sorted(names)
        assert archive.read("recipe.yaml") == b"name: a\n"
        assert archive.testzip() is None


def test_a_file_that_changes_after_it_was_read_is_not_shipped(tree: Path, tmp_path: Path) -> None:
    package = build_package(named("recipe.yaml"), tree)
    (tree / "recipe.yaml").write_text("name: b\n")
    with pytest.raises(BadInput, match="it has changed since it was read"):
        write_zip(package, tmp_path / "x.zip")


# ------------------------------------------------------------------------------------------------ refusals


def test_a11_what_cannot_be_shipped_is_refused_all_at_once(tree: Path, tmp_path: Path, golden: Golden) -> None:
    sparse(tmp_path / "outside.jsonl", 1)
    (tree / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "folder").symlink_to(tmp_path)
    (tree / "model").mkdir()
    (tree / "model" / "weights").symlink_to("../../outside.jsonl")
    (tree / "innocent.jsonl").symlink_to(".env")
    sparse(tree / ".env", 1)
    sparse(tree / "keys" / "server.pem", 1)
    sparse(tree / "sub" / "deep" / "y", 1)
    sparse(tree / "x", 1)
    (tree / "to").symlink_to("sub/deep")
    sparse(tree / "a\\b", 1)
    sparse(tree / "c:" / "x", 1)
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(tree)  # the address of a socket is short
        unix.bind("socket")
        os.chdir(here)
        paths = ["missing.jsonl", "../outside.jsonl", str(tree / "recipe.yaml"), "link.jsonl", "folder/outside.jsonl"]
        paths += ["dangling", "model", ".env", "innocent.jsonl", "keys", "to/../x", "a\\b", "c:/x", "pipe", "socket"]
        golden("package-refused", refusal(tree, *paths) + "\n")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(tree: Path) -> None:
    (tree / "recipe.yaml").chmod(0)
    assert "permission denied" in refusal(tree, "recipe.yaml")


def test_a11_the_largest_of_too_large_files_are_named(tree: Path, golden: Golden) -> None:
    sparse(tree / "model" / "weights.safetensors", MAX_BYTES - 9 * MIB)
    sparse(tree / "data.jsonl", 10 * MIB)
    for i in range(5):
        sparse(tree / f"small-{i}", 10)
    golden("package-too-large", refusal(tree, "model", "data.jsonl", *(f"small-{i}" for i in range(5))) + "\n")


def test_a11_too_large_files_are_refused_before_any_is_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse(tree / "data.jsonl", 201 * MIB)

    def read(*_: object) -> tuple[str, int]:
        raise AssertionError("a file was read")

    monkeypatch.setattr(module, "_read", read)
    assert "201.0 MiB to ship exceed the limit of 200 MiB" in refusal(tree, "data.jsonl")


@pytest.mark.parametrize("size", [64 * MIB, MAX_BYTES])
def test_a11_up_to_the_limit_files_are_shipped(tree: Path, size: int) -> None:
    sparse(tree / "data.jsonl", size)
    assert build_package(named("data.jsonl"), tree).bytes == size


def test_a_directory_of_very_many_files_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 3)
    for i in range(4):
        sparse(tree / "data" / str(i), 1)
    assert "more than 3 files to ship" in refusal(tree, "data")


def test_a_working_directory_that_does_not_exist(tree: Path) -> None:
    with pytest.raises(BadInput, match="no such directory"):
        build_package([], tree / "nowhere")
