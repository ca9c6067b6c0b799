"""Runs on object storage: what a machine without the run directory resumes from, and who may go on with a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attempts import RECIPES, Run
from processes import Command, eventually

from orchestrator.rundir.directory import RunDirectory

if TYPE_CHECKING:
    from seaweed import Seaweed

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]
STEPS = ["algorithm.max_steps=5000", "checkpoint.every=5000"]  # more than a test waits for


@dataclass(frozen=True, kw_only=True)
class Place:
    """Prefix of a storage, and the variables with which a command may use it."""

    url: str
    variables: Mapping[str, str]


@pytest.fixture
def bucket(seaweed: Seaweed, bucket_prefix: str) -> Place:
    return Place(url=f"{seaweed.url}/{bucket_prefix}", variables=seaweed.environment)


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        return Place(url=f"file://{tmp_path}/bucket", variables={})
    found: Place = request.getfixturevalue("bucket")
    return found


def without_clocks(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "storage/behind_s"} for row in run.metrics_without_clocks]


@pytest.mark.long
def test_c1_a_run_resumes_from_storage_alone(finished: Finished, place: Place, qwen2: Path, tmp_path: Path) -> None:
    whole = finished("drifting", qwen2)
    here, there = tmp_path / "here", tmp_path / "there"
    run = ["run", str(RECIPES / "drifting.yaml"), f"storage={place.url}", f"output_dir={here}"]
    with Command(*run, cwd=qwen2, variables=place.variables) as command:
        command.read_until("round 2/6")
        command.terminate()
        assert command.exit_code() == 143, command.output
        assert command.leaves_nothing_behind()
    shutil.rmtree(here)
    resume = ["resume", f"{place.url}/drifting", f"output_dir={there}"]
    with Command(*resume, cwd=qwen2, variables=place.variables) as command:
        assert command.exit_code() == 0, command.output
    assert not here.exists()
    resumed = Run(there / "drifting")
    assert RunDirectory(resumed.path).is_complete
    assert resumed.weights_digest == whole.weights_digest
    assert without_clocks(resumed) == whole.metrics_without_clocks


def test_a_wrong_key_is_refused_with_the_bucket_and_the_id_of_the_key(
    bucket: Place, qwen2: Path, tmp_path: Path
) -> None:
    run = ["run", str(RECIPES / "base.yaml"), f"storage={bucket.url}", f"output_dir={tmp_path}"]
    wrong = {**bucket.variables, "AWS_ACCESS_KEY_ID": "AKIAWRONG"}
    with Command(*run, cwd=qwen2, variables=wrong) as command:
        assert command.exit_code() == 2, command.output
    assert bucket.url in command.output
    assert "AKIAWRONG" in command.output
    assert wrong["AWS_SECRET_ACCESS_KEY"] not in command.output


@pytest.mark.long
def test_a_run_in_storage_has_one_driver_and_stops_when_it_is_asked_there(
    bucket: Place, seaweed: Seaweed, bucket_prefix: str, qwen2: Path, tmp_path: Path
) -> None:
    """A second driver, on a machine with a directory of its own, is refused. A stop from a third one is obeyed."""
    import obstore

    def command(*words: str) -> Command:
        return Command(*words, cwd=qwen2, variables=bucket.variables)

    def run(machine: str) -> Command:
        places = [f"storage={bucket.url}", f"output_dir={tmp_path / machine}"]
        return command("run", str(RECIPES / "base.yaml"), *places, *STEPS)

    with run("first") as first:
        first.read_until("step    1/5000")
        with run("second") as second:
            assert second.exit_code() == 2, second.output
        assert f"{bucket.url}/base" in second.output
        assert "is in use" in second.output
        assert not first.has_ended()
        with command("stop", f"{bucket.url}/base", "--by", "alice") as stop:
            assert stop.exit_code() == 0, stop.output
        assert eventually(first.has_ended, within_s=60)
        assert first.exit_code() == 143, first.output
    store = seaweed.store(f"{bucket_prefix}/base")
    exit = json.loads(bytes(obstore.get(store, "exit.json").bytes()))
    assert (exit["cause"], exit["stop"]["by"]) == ("user", "alice")
    names = [str(meta["path"]) for page in obstore.list(store) for meta in page]
    assert f"checkpoints/step-{exit['step']}/attempt-1/manifest.json" in names
