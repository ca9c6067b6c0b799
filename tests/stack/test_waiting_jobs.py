"""Jobs that wait for their turn on a real Ray cluster with room for one: none fails, and none passes another one."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from families import read_jsonl
from job_cluster import finished, job_cluster

from orchestrator.cluster.job_server import Server
from orchestrator.cluster.ray_jobs import JobRequest, Jobs
from orchestrator.cluster.turn import DIRECTORIES, PRIORITY, RUN, ahead, read_jobs

pytestmark = [
    pytest.mark.stack,
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),  # Ray 2.60 with aiohttp 3.14
]

JOB = Path(__file__).with_name("waiting_job.py")
MAX_MIB = 100


class Queue:
    """Jobs of one cluster, which append what they do to a file."""

    def __init__(self, address: str, token: Path, directory: Path) -> None:
        self.server = Server.at(address, token_file=token)
        self.jobs, self.directory = Jobs.connect(self.server), directory

    def submit(self, name: str, seconds: float, num_stages: int = 1, priority: int = 0) -> str:
        entrypoint = shlex.join([sys.executable, str(JOB), str(self.directory), str(seconds), str(num_stages)])
        return self.submit_command(name, entrypoint, priority=priority)

    def submit_command(self, name: str, entrypoint: str, priority: int = 0) -> str:
        metadata = {RUN: name, PRIORITY: str(priority), DIRECTORIES: f'["/runs/{name}"]'}
        return self.jobs.submit(JobRequest(id=f"rlhf-{name}", entrypoint=entrypoint, metadata=metadata)).job.id

    def events(self, *events: str) -> list[dict[str, Any]]:
        file = self.directory / "events.jsonl"
        rows = read_jsonl(file) if file.exists() else []
        return [row for row in rows if not events or row["event"] in events]

    def wait_for(self, event: str, id: str) -> None:
        deadline = time.monotonic() + 60
        while not any(row["id"] == id for row in self.events(event)):
            assert time.monotonic() < deadline, (self.events(), self.jobs.logs(id))
            time.sleep(0.1)

    def all_succeed(self, *ids: str, within_s: float) -> None:
        for id in ids:
            job = finished(self.jobs, id, within_s)
            assert job.status == "SUCCEEDED", self.jobs.logs(id)

    def turns(self) -> list[str]:
        """Return the names of the jobs in the order of their placements, of which no two overlap."""
        moments = self.events("placed", "done")
        assert [row["event"] for row in moments] == ["placed", "done"] * (len(moments) // 2), moments
        placed, done = moments[::2], moments[1::2]
        assert [row["id"] for row in placed] == [row["id"] for row in done]
        return [row["id"].removeprefix("rlhf-") for row in placed]

    def check_doors(self) -> None:
        for row in self.events("at the door"):
            assert row["heavy"] == []
            assert row["peak_mib"] < MAX_MIB


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with job_cluster(tmp_path_factory.mktemp("home"), num_cpus=4) as found:
        yield found


@pytest.fixture
def queue(cluster: tuple[str, Path], tmp_path: Path) -> Queue:
    return Queue(*cluster, tmp_path)


def test_jobs_take_turns_by_priority_and_age_and_keep_their_turn_between_two_stages(queue: Queue) -> None:
    first = queue.submit("first", 0.5, num_stages=2)
    queue.wait_for("placed", first)
    second, third = queue.submit("second", 0.5), queue.submit("third", 0.5)
    queue.wait_for("waits for 4 CPUs: 0 free", second)
    urgent = queue.submit("urgent", 0.5, priority=10)
    unfinished = read_jobs(queue.server)
    assert [job.id for job in unfinished if job.has_places] == [first]
    assert [ahead(unfinished, id) for id in (urgent, second, third)] == [[], [urgent], [urgent, second]]
    (queue.directory / "go").touch()
    queue.all_succeed(first, second, third, urgent, within_s=120)
    assert queue.turns() == ["first", "urgent", "first", "second", "third"]
    queue.check_doors()
    assert f"waits for its turn; ahead of it: {second}\n" in queue.jobs.logs(third)


@pytest.mark.long
def test_a_run_at_the_door_is_small_and_can_be_stopped(queue: Queue, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: a\nmodel: {path: m}\ndata: {dataset: rows.jsonl}\nalgorithm: {type: sft}\n")
    holder = queue.submit("holder", 0.0, num_stages=2)
    queue.wait_for("placed", holder)
    waiting = queue.submit("between", 0.0)
    queue.wait_for("waits for 4 CPUs: 0 free", waiting)
    rlhf = Path(sys.executable).with_name("rlhf")
    run = queue.submit_command("run", shlex.join([str(rlhf), "run", str(recipe), f"output_dir={tmp_path}"]))
    deadline = time.monotonic() + 60
    while f"ahead of it: {waiting}" not in queue.jobs.logs(run):
        assert time.monotonic() < deadline, queue.jobs.logs(run)
        time.sleep(0.2)
    command = [str(rlhf), "run", str(recipe)]
    (driver,) = (p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[1:4] == command)
    assert driver.memory_info().rss < MAX_MIB * 2**20
    assert not [file.path for file in driver.memory_maps() if "/ray/" in file.path or "/torch/" in file.path]
    assert driver.children() == []
    queue.jobs.stop(run)
    assert finished(queue.jobs, run).status == "STOPPED"
    (queue.directory / "go").touch()
    queue.all_succeed(holder, waiting, within_s=60)
    assert queue.turns() == ["holder", "holder", "between"]


RECIPE = """\
stages:
  - name: base
    model: {{path: {model}, dtype: float32}}
    data: {{dataset: {data}, max_length: 48}}
    algorithm: {{type: sft, learning_rate: 3.0e-3, batch_size: 16, max_steps: 2}}
  - name: {name}
    model: {{from_stage: base, dtype: float32}}
    data: {{dataset: {data}, max_length: 48}}
    algorithm: {{type: sft, learning_rate: 1.0e-3, batch_size: 16, max_steps: 1}}
"""


@pytest.mark.long
def test_two_jobs_that_share_a_stage_run_it_once(queue: Queue, qwen2: Path, tmp_path: Path) -> None:
    ids = []
    for name in ("left", "right"):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(RECIPE.format(name=name, model=qwen2 / "model", data=qwen2 / "demonstrations.jsonl"))
        outputs = [f"stages.{stage}.output_dir={tmp_path}" for stage in ("base", name)]
        rlhf = Path(sys.executable).with_name("rlhf")
        ids.append(queue.submit_command(name, shlex.join([str(rlhf), "run", str(recipe), *outputs])))
    queue.all_succeed(*ids, within_s=180)
    assert [row["attempt"] for row in read_jsonl(tmp_path / "base" / "ledger.jsonl") if row["fact"] == "ATTEMPT"] == [1]
    logs = [queue.jobs.logs(id) for id in ids]
    assert sum("base: complete, reused" in log for log in logs) == 1
    assert sum("stage base: another job (process " in log for log in logs) == 1


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_jobs_with_room_for_one_run_in_the_order_of_their_submission(queue: Queue) -> None:
    names = [f"job-{number}" for number in range(10)]
    ids = [queue.submit(name, 30.0) for name in names]
    queue.all_succeed(*ids, within_s=1200)
    assert queue.turns() == names
    queue.check_doors()
