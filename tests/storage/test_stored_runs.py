"""Runs with storage: killed at any request, taken over, cut off, slowed down, refused."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cpu_run
import pytest
import stored_runs
from fault_proxy import FaultProxy
from seaweed import Seaweed

from orchestrator.config import RunConfig
from orchestrator.rundir.ledger import account, parse, read_ledger
from workers.storage import Storage, StorageRefused

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(task: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """Return the outcome of the run without storage."""
    output = tmp_path_factory.mktemp("expected")
    process = stored_runs.server().Process(target=cpu_run.run, args=(cpu_run.config(task, output, "grpo"),))
    process.start()
    process.join()
    return cpu_run.outcome(output / "run")


class Bench:
    """Storage behind a proxy, and runs on it. Each has a machine of its own: a directory."""

    def __init__(self, seaweed: Seaweed, proxy: FaultProxy, prefix: str, task: Path, root: Path) -> None:
        self.seaweed, self.proxy, self.prefix, self._task, self._root = seaweed, proxy, prefix, task, root
        self.environment = seaweed.environment | {"AWS_ENDPOINT_URL": proxy.endpoint}

    @property
    def storage(self) -> Storage:
        """The store, past the proxy."""
        os.environ.update(self.seaweed.environment)
        return Storage(f"{self.seaweed.url}/{self.prefix}")

    def config(self, machine: str, *, max_steps: int = 3, every: int = 1) -> RunConfig:
        storage = f"{self.seaweed.url}/{self.prefix}"
        return stored_runs.config(self._task, self._root / machine, storage, max_steps=max_steps, every=every)

    def directory(self, machine: str) -> Path:
        return self._root / machine / "run"


@pytest.fixture
def bench(
    seaweed: Seaweed, proxy: FaultProxy, bucket_prefix: str, task: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Bench:  # fmt: skip
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return Bench(seaweed, proxy, bucket_prefix, task, tmp_path)


def outcome(directory: Path) -> tuple[str, list[dict[str, Any]]]:
    weights, rows = cpu_run.outcome(directory)
    return weights, [{name: value for name, value in row.items() if name != "storage/behind_s"} for row in rows]


# ------------------------------------------------------------------------------------------------ C2


def puts_of_a_commit(bench: Bench) -> range:
    """Run to the end, and return the numbers of the PUTs of the second checkpoint, and of a few after it."""
    assert stored_runs.run(bench.config("whole"), bench.environment) == 0
    puts = [request.path for request in bench.proxy.requests if request.method == "PUT"]
    of_step = [n for n, path in enumerate(puts, start=1) if "/checkpoints/step-2/" in path]
    bench.storage.delete(bench.storage.sizes(""))
    bench.proxy.heal()
    return range(of_step[0], of_step[-1] + 3)


def assert_survives(bench: Bench, number: int, after: bool, expected: Any) -> None:
    stored_runs.kill_at(bench.config("killed"), bench.environment, bench.proxy, number, after=after)
    where = f"PUT {number}, {'after' if after else 'before'}"
    assert stored_runs.missing(bench.storage) == [], where
    assert stored_runs.run(bench.config("another"), bench.environment) == 0, where
    assert outcome(bench.directory("another")) == expected, where
    records = read_ledger(bench.directory("another") / "ledger.jsonl")[0]
    steps = account(records)
    assert (steps.trained, steps.lost, steps.repeated) == (3, (), ()), where
    for machine in ("killed", "another"):
        stored_runs.remove(bench.directory(machine))
    bench.storage.delete(bench.storage.sizes(""))


def test_c2_a_run_that_is_killed_at_some_puts_of_a_commit_resumes_on_another_machine(
    bench: Bench, expected: Any
) -> None:
    numbers = puts_of_a_commit(bench)
    for number, after in ((numbers[0], False), (numbers[len(numbers) // 2], True), (numbers[-4], True)):
        assert_survives(bench, number, after, expected)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_c2_a_run_that_is_killed_at_any_put_of_a_commit_resumes_on_another_machine(bench: Bench, expected: Any) -> None:
    for number in puts_of_a_commit(bench):
        for after in (False, True):
            assert_survives(bench, number, after, expected)


# ------------------------------------------------------------------------------------------------ C3


def test_c3_of_two_drivers_of_one_run_one_writes_each_record_and_the_other_ends(bench: Bench) -> None:
    commits, codes, seed = 200, list[int](), 0
    running: dict[str, Any] = {}
    while 0 not in codes:
        for machine in ("first", "second"):
            process = running.get(machine)
            if process is not None and process.exitcode is not None:
                codes.append(process.exitcode)
                del running[machine]
            if machine not in running and 0 not in codes:
                seed += 1
                running[machine] = stored_runs.drive(bench.config(machine), bench.environment, commits, seed)
        time.sleep(0.3)
        assert seed < 100, codes
    for process in running.values():
        process.join(60)
        codes.append(process.exitcode)
    assert set(codes) <= {0, 6}, codes
    assert codes.count(6) >= 1, "the two met"
    numbers = sorted(int(Path(name).stem) for name in written_once(bench.proxy))
    assert numbers == list(range(len(numbers))), "no number is missing"
    records = [parse(bench.storage.get(f"run/ledger/{n:08d}.json") or b"", n) for n in numbers]
    assert None not in records
    assert max(record.step for record in records if record is not None) == commits


def written_once(proxy: FaultProxy) -> dict[str, int]:
    """Return how often each record of the ledger was written with success, and check that it was once."""
    written: dict[str, int] = {}
    for request in proxy.requests:
        if request.method == "PUT" and "/ledger/" in request.path and request.status == 200:
            name = request.path.partition("?")[0]
            written[name] = written.get(name, 0) + 1
    assert set(written.values()) == {1}, written
    return written


# ------------------------------------------------------------------------------------------------ C5


@pytest.mark.parametrize(("seconds", "max_steps"), [(3, 60), pytest.param(60, 600, marks=pytest.mark.long)])
def test_c5_a_run_goes_on_while_storage_is_down_and_uploads_catch_up(
    bench: Bench, seconds: int, max_steps: int
) -> None:
    # Sampled ahead: a checkpoint needs rollouts of steps after it, which newer checkpoints here do not need any more.
    config = bench.config("here", max_steps=max_steps).model_copy(update={"max_staleness": 1})
    process = stored_runs.start(config, bench.environment)
    metrics = bench.directory("here") / "metrics.jsonl"

    def steps() -> int:
        return len(cpu_run.rows(bench.directory("here"))) if metrics.exists() else 0

    assert stored_runs.eventually(lambda: steps() >= 3)
    bench.proxy.down = True
    before, since = steps(), time.monotonic()
    assert stored_runs.eventually(lambda: steps() >= before + 20), "it trains on"
    assert stored_runs.eventually(lambda: time.monotonic() - since > seconds, seconds + 10)
    bench.proxy.down = False
    process.join(300)
    assert process.exitcode == 0
    assert max(row.get("storage/behind_s", 0.0) for row in cpu_run.rows(bench.directory("here"))) > seconds / 6
    assert stored_runs.missing(bench.storage) == []
    here = {record.seq for record in read_ledger(bench.directory("here") / "ledger.jsonl")[0]}
    stored = {int(Path(name).stem) for name in bench.storage.sizes("run/ledger/")}
    assert here == stored
    assert bench.storage.size("run/model/model.safetensors")
    assert bench.storage.size("run/exit.json")


def test_c5_a_slow_store_changes_no_result(bench: Bench, expected: Any) -> None:
    bench.proxy.bytes_per_second = 2**20
    bench.proxy.slow_s = 0.05
    assert stored_runs.run(bench.config("here"), bench.environment) == 0
    assert outcome(bench.directory("here")) == expected


def test_c5_a_wrong_key_is_refused_at_the_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": "x"}
    assert stored_runs.run(bench.config("here"), bench.environment | wrong) == 2
    said = stored_runs.said(bench.directory("here"))
    assert f"{bench.seaweed.url}/{bench.prefix}" in said
    assert "access is denied to the key AKIAWRONG" in said
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageRefused, match="AKIAWRONG"):
        Storage(bench.seaweed.url).size("run")


def test_c5_a_bucket_that_is_not_there_is_refused_at_the_start(bench: Bench) -> None:
    config = bench.config("here").model_copy(update={"storage": "s3://nowhere/x"})
    assert stored_runs.run(config, bench.environment) == 2
    assert "s3://nowhere/x/run/holder.json: no such bucket" in stored_runs.said(bench.directory("here"))


# ------------------------------------------------------------------------------------------------ take-over


def test_a_run_whose_driver_lives_is_not_taken_over(bench: Bench) -> None:
    process = stored_runs.start(bench.config("here", max_steps=400), bench.environment)
    try:
        assert stored_runs.eventually(lambda: bench.storage.size("run/holder.json") is not None)
        assert stored_runs.run(bench.config("there", max_steps=400), bench.environment) == 2
        assert "is in use" in stored_runs.said(bench.directory("there"))
        assert process.exitcode is None
    finally:
        process.kill()
        process.join()


def test_a_stop_in_storage_ends_the_run_with_a_checkpoint(bench: Bench) -> None:
    process = stored_runs.start(bench.config("here", max_steps=400, every=400), bench.environment)
    assert stored_runs.eventually(lambda: (bench.directory("here") / "samples" / "step-2.parquet").exists())
    bench.storage.put("run/stop", b"alice")
    process.join(60)
    assert process.exitcode == 143
    assert bench.storage.size("run/stop") is None
    assert [name for name in bench.storage.sizes("run/checkpoints/") if name.endswith("manifest.json")]
    assert stored_runs.missing(bench.storage) == []
    assert b'"by": "alice"' in (bench.storage.get("run/exit.json") or b"")
