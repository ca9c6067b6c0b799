"""Run directory: ownership, paths and exit.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_dir import RecipeDir

from orchestrator.cli.main import main
from orchestrator.config import RunConfig, load
from orchestrator.errors import BadInput, ResumeError, Superseded
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger

Golden = Callable[[str, str], None]


@pytest.fixture
def config(recipe_dir: RecipeDir) -> RunConfig:
    return load(recipe_dir.recipe()).stages[0]


def test_the_recipe_as_written_and_the_resolved_config_are_stored(config: RunConfig) -> None:
    directory = RunDirectory.create(config, "# mine\nname: arith\n")
    assert directory.path == Path("runs/arith").absolute()
    assert directory.recipe.read_text() == "# mine\nname: arith\n"
    assert directory.config() == config
    assert RunDirectory.open(Path("runs/arith")).config() == config


def test_the_same_config_finds_its_directory_again(config: RunConfig) -> None:
    first = RunDirectory.create(config, "a")
    first.ledger.write_text("x")
    assert RunDirectory.create(config, "b").recipe.read_text() == "a"
    assert first.ledger.read_text() == "x"


def test_b22_another_config_is_refused_with_the_keys_that_differ(config: RunConfig, golden: Golden) -> None:
    RunDirectory.create(config, "")
    other = config.model_copy(
        update={"seed": 3, "algorithm": config.algorithm.model_copy(update={"learning_rate": 1e-4, "beta": 0.1})}
    )
    with pytest.raises(BadInput) as caught:
        RunDirectory.create(other, "")
    golden("b22-another-config", f"{caught.value}\n")


def test_a_directory_of_something_else_is_refused(config: RunConfig, golden: Golden) -> None:
    Path("runs/arith").mkdir(parents=True)
    RunDirectory.create(config, "")
    Path("runs/arith/resolved.json").unlink()
    Path("runs/arith/recipe.yaml").rename("runs/arith/holiday.jpg")
    with pytest.raises(BadInput) as caught:
        RunDirectory.create(config, "")
    golden("directory-of-something-else", f"{caught.value}\n")


def test_a_link_cannot_lead_a_run_elsewhere(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path("runs").mkdir()
    Path("runs/arith").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="symbolic link"):
        RunDirectory.create(config, "")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_secrets_are_redacted_in_the_copy_of_the_recipe(config: RunConfig) -> None:
    directory = RunDirectory.create(config, "# my token: hf_abcdefghijklmnopqrstuvwxyz\n")
    assert directory.recipe.read_text() == "# my token: [redacted]\n"


def test_b23_resume_of_a_directory_that_is_not_a_run(
    config: RunConfig, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory.create(config, "")
    assert main(["resume", "runs/arit"]) == 2
    assert main(["resume", "."]) == 2
    golden("b23-not-a-run", capsys.readouterr().err)


def test_a_damaged_resolved_config_is_an_error(config: RunConfig) -> None:
    directory = RunDirectory.create(config, "")
    directory.resolved.write_text("{")
    with pytest.raises(ResumeError, match="not JSON"):
        directory.config()
    directory.resolved.write_text(json.dumps({"name": "arith"}))
    with pytest.raises(BadInput, match="algorithm is missing"):
        directory.config()


def test_attempts_are_counted_and_latest_points_at_the_last(config: RunConfig) -> None:
    directory = RunDirectory.create(config, "")
    assert [directory.start_attempt() for _ in range(3)] == [1, 2, 3]
    assert os.readlink(directory.path / "logs" / "latest") == "attempt-3"
    assert sorted(p.name for p in (directory.path / "logs").iterdir()) == [
        "attempt-1",
        "attempt-2",
        "attempt-3",
        "latest",
    ]


def test_exit_json(config: RunConfig) -> None:
    directory = RunDirectory.create(config, "")
    attempt = directory.start_attempt()
    directory.write_exit(cause="user", message="stopped by Ctrl-C", exit_code=130, attempt=attempt, step=3)
    assert directory.read_exit() == {
        "cause": "user",
        "message": "stopped by Ctrl-C",
        "exit_code": 130,
        "attempt": 1,
        "step": 3,
        "resume": "rlhf resume runs/arith",
    }
    assert not directory.is_complete
    directory.start_attempt()
    assert directory.read_exit() is None  # it is running again
    directory.write_exit(cause="completed", message="done", exit_code=0, attempt=2, step=10)
    assert not directory.is_complete  # without its model
    directory.model.mkdir()
    assert directory.is_complete


def test_f32_two_processes_cannot_hold_one_directory(config: RunConfig) -> None:
    directory = RunDirectory.create(config, "")
    script = (
        "import sys; from pathlib import Path; from orchestrator.rundir.directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).held(): print('held')"
    )
    command = [sys.executable, "-c", script, str(directory.path)]
    root = Path(__file__).parents[3]
    with directory.held():
        second = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert f"process {os.getpid()} on " in second.stderr
        with pytest.raises(BadInput, match="is in use"), directory.held():
            pass
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout == "held\n"


def test_f30_a_driver_that_lost_its_lock_is_fenced_off(config: RunConfig) -> None:
    """Replace the lock file while the old driver has it open, as when shared storage releases its lock."""
    directory = RunDirectory.create(config, "")
    with directory.held() as fence, Ledger.open(directory.ledger, fence) as ledger:
        ledger.append(Fact.attempt, attempt=1, step=0)
        (directory.path / "lock").unlink()
        ledger.append(Fact.planned, attempt=1, step=1)  # no other process has taken it
        with directory.held() as other:
            other()
            before = directory.ledger.read_bytes()
            with pytest.raises(Superseded, match=rf"process {os.getpid()} on "):
                ledger.append(Fact.committed, attempt=1, step=1)
            assert directory.ledger.read_bytes() == before
        with pytest.raises(Superseded):  # the other process has ended, but had taken over the run
            fence()
