"""Ranks on two machines, and a directory that only one of them sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from attempts import RECIPES, Run
from processes import Command
from two_machines import SECOND, Machines, needs_namespaces

from orchestrator.rundir.manifest import verify

pytestmark = [pytest.mark.stack, needs_namespaces]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Start a head with room for one rank, and a second machine."""
    with Machines.open(tmp_path_factory.mktemp("machines")) as machines:
        yield machines


def run(machines: Machines, family: Path, place: str) -> tuple[int, str, Run]:
    """Run a recipe of two ranks with its output in a directory of the machines; return exit code, output and run."""
    output_dir = machines.root / place
    overrides = [f"output_dir={output_dir}", "algorithm.max_steps=1", "checkpoint.every=1"]
    with Command("run", str(RECIPES / "base.yaml"), *overrides, cwd=family, variables=machines.variables) as command:
        return command.exit_code(), command.output, Run(output_dir / "base")


def test_a5_a_directory_that_one_machine_does_not_see_is_refused_before_the_first_step(
    machines: Machines, qwen2: Path
) -> None:
    code, output, found = run(machines, qwen2, "alone")
    assert code == 2, output
    message = f"on {SECOND} do not see {found.path}: output_dir must be on storage that every node sees"
    assert message in output
    assert any(f"policy rank {rank}" in output.split(message)[0].splitlines()[-1] for rank in (0, 1)), output
    assert (found.exit["cause"], found.exit["exit_code"]) == ("bad_input", 2)
    assert [fact for fact in found.facts if not fact.startswith(("ATTEMPT", "PLACED"))] == [], "nothing was trained"
    assert list((found.path / "checkpoints").iterdir()) == []
    assert not (found.path / "model").exists()


def test_ranks_on_two_machines_that_share_it_write_one_checkpoint(machines: Machines, qwen2: Path) -> None:
    code, output, found = run(machines, qwen2, "shared")
    assert code == 0, output
    checkpoint = found.path / "checkpoints" / "step-1"
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert {file.get("rank") for file in files.values()} == {0, 1, None}
    assert verify(checkpoint) == verify(found.path / "model") == ""
    assert (found.path / "model" / "model.safetensors").is_file()
