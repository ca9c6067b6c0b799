"""Dockerfiles and their build context: hadolint, no root, no secret. tests/cluster/test_images.py builds one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("Dockerfile*"))
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, continued lines joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text("utf-8")).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is missing: pip install -r requirements/deploy.txt")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint(path: Path) -> None:
    assert HADOLINT is not None
    found = subprocess.run([HADOLINT, "--no-color", str(path)], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_as_a_user_from_a_base_that_the_builder_chooses(path: Path) -> None:
    steps = instructions(path)
    assert [arguments for name, arguments in steps if name == "USER"] == ["1000:1000"]
    assert ("HEALTHCHECK", "NONE") in steps
    stages = [arguments for name, arguments in steps if name == "FROM"]
    assert stages == ["${BASE} AS build", "${BASE}"]
    final = steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]
    assert [arguments for name, arguments in final if name in ("COPY", "ADD")] == ["--from=build /opt/rlhf /opt/rlhf"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_packages_are_installed_from_the_lock_by_hash(path: Path) -> None:
    """Check every `pip install`: from a lock with hashes, the project itself, or the CPU build of torch."""
    text = " ; ".join(arguments for name, arguments in instructions(path) if name == "RUN")
    installs = re.findall(r"pip install (.*?)(?=&&|\|\||;|$)", text)
    allowed = r"--require-hashes|/src\s*$|requirements/torch-cpu\.txt"
    assert len(installs) >= 3
    assert [install for install in installs if not re.search(allowed, install) or "--no-deps" not in install] == []


def test_the_gpu_image_contains_no_cpu_build() -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text("utf-8")
    assert "requirements/gpu.txt" in text
    assert "cpu" not in re.sub(r"(?m)^#.*$", "", text)


def test_the_build_context_is_a_list_of_what_is_let_in() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in let_in)
    copied = {
        source
        for path in DOCKERFILES
        for name, arguments in instructions(path)
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    }
    assert copied == let_in
