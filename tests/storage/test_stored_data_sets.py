"""Runs that generate a data set, with storage: killed at requests, and gone on with on another machine."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import cpu_run
import pytest
import stored_runs
from fault_proxy import FaultProxy
from seaweed import Seaweed

from orchestrator.config import RunConfig
from orchestrator.errors import FilesLost
from orchestrator.generation.data_set import ROWS
from orchestrator.rundir.fetch import fetch_inputs
from workers.storage import Storage

pytestmark = pytest.mark.slow

SEED, KILLS = int(os.environ["RLHF_TEST_SEED"]), 3


@pytest.fixture(scope="module")
def expected(task: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the data set of the run without storage."""
    settings = stored_runs.generating(task, tmp_path_factory.mktemp("expected"), None)
    process = stored_runs.server().Process(target=cpu_run.run, args=(settings,))
    process.start()
    process.join()
    return settings.data_file.read_bytes()


@pytest.fixture
def on(
    seaweed: Seaweed, proxy: FaultProxy, bucket_prefix: str, task: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], RunConfig]:  # fmt: skip
    """Return the function that returns the run on a machine, which is a directory."""
    for name, value in (seaweed.environment | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
        monkeypatch.setenv(name, value)
    return lambda machine: stored_runs.generating(task, tmp_path / machine, f"{seaweed.url}/{bucket_prefix}")


def test_a_data_set_is_gone_on_with_on_another_machine(
    on: Callable[[str], RunConfig], proxy: FaultProxy, expected: bytes, seaweed: Seaweed
) -> None:
    assert stored_runs.run(on("whole"), os.environ) == 0
    assert on("whole").data_file.read_bytes() == expected
    puts = [request.path for request in proxy.requests if request.method == "PUT"]
    assert len({path for path in puts if "/parts/step-" in path}) == 6
    storage = Storage(on("whole").storage or "")
    assert storage.get(f"run/data/{ROWS}") == expected
    first = next(number for number, path in enumerate(puts, start=1) if "/parts/step-1" in path)
    for number in random.Random(SEED).sample(range(first, len(puts)), KILLS):
        storage.delete(storage.sizes(""))
        stored_runs.kill_at(on(f"killed-{number}"), os.environ, proxy, number)
        assert stored_runs.run(on(f"another-{number}"), os.environ) == 0, f"PUT {number}"
        assert on(f"another-{number}").data_file.read_bytes() == expected, f"PUT {number}"


def test_a_later_stage_on_another_machine_fetches_the_data_set(
    on: Callable[[str], RunConfig], task: Path, expected: bytes
) -> None:
    assert stored_runs.run(on("first"), os.environ) == 0
    there = on("second")
    later = there.model_copy(update={"name": "later", "data": there.data.model_copy(update={"prompts": None})})
    later = later.model_copy(update={"data": later.data.model_copy(update={"dataset": str(there.data_file)})})
    fetch_inputs(later)
    assert there.data_file.read_bytes() == expected


def test_no_data_set_is_made_of_some_of_the_samples(task: Path, tmp_path: Path) -> None:
    settings = stored_runs.generating(task, tmp_path, None)
    cpu_run.run(settings)
    directory = settings.directory
    (directory / "exit.json").unlink()
    (directory / "parts" / "step-2.parquet").unlink()
    with pytest.raises(FilesLost, match="the samples of 1 of 6 steps are gone, the first of them step-2"):
        cpu_run.run(settings)
