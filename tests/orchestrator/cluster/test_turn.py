"""Turns of jobs: their order, what counts as places, a job server that is silent, and the door of a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.job_server import Server
from orchestrator.cluster.turn import (
    DIRECTORIES,
    JOB_CONFIG,
    PATIENCE_S,
    PRIORITY,
    Changes,
    Turn,
    WaitingJob,
    ahead,
    describe,
    group_name,
    read_jobs,
    submission_id,
    wait_while,
)
from orchestrator.config import load
from orchestrator.driver.door import wait_at_the_door
from orchestrator.errors import BadInput, ClusterError, Interrupted, Problem
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.stop import StopFile

OLD = WaitingJob(id="rlhf-old", submitted=100.0)
NEW = WaitingJob(id="rlhf-new", submitted=200.0)
URGENT = WaitingJob(id="rlhf-urgent", submitted=300.0, priority=10)


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def job_server(answers: dict[str, Any]) -> Iterator[Server]:
    """Serve JSON by path, over real HTTP. A path that is missing gets status 500."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(self.path)
            self.send_response(200 if path in answers else 500)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(path)).encode())

    asked: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Server(url=f"http://127.0.0.1:{server.server_port}", headers={})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def listed(id: str, start_ms: int, status: str = "RUNNING", **metadata: str) -> dict[str, Any]:
    return {"submission_id": id, "status": status, "start_time": start_ms, "metadata": metadata}


def groups(*rows: tuple[str, str]) -> dict[str, Any]:
    return {"data": {"result": {"result": [{"name": name, "state": state} for name, state in rows]}}}


# ------------------------------------------------------------------------------------------------ order


def test_priority_goes_before_age_and_age_before_the_id() -> None:
    twin = WaitingJob(id="rlhf-older", submitted=100.0)  # in the same millisecond: the id decides, for everybody alike
    for jobs in permutations([NEW, URGENT, twin, OLD]):
        assert ahead(jobs, "rlhf-new") == ["rlhf-urgent", "rlhf-old", "rlhf-older"]
        assert ahead(jobs, "rlhf-old") == ["rlhf-urgent"]
        assert ahead(jobs, "rlhf-urgent") == []


def test_nobody_waits_for_a_job_with_places_or_for_another_program() -> None:
    placed = WaitingJob(id="rlhf-old", submitted=100.0, has_places=True)
    foreign = WaitingJob(id="raysubmit_1", submitted=50.0, counts=False)
    assert ahead([placed, foreign, NEW], "rlhf-new") == []
    assert ahead([OLD, foreign, NEW], "raysubmit_1") == []
    assert ahead([OLD, NEW], "rlhf-unknown") == []


def test_two_jobs_that_share_a_stage_do_not_wait_for_each_other() -> None:
    """Check the order where a job of low priority holds the lock of a stage that a job of high priority needs.

    The urgent job waits for the lock, so `old` must not wait for the urgent job, nor for `middle`, which does.
    """
    shared = frozenset({"/runs/base"})
    old = WaitingJob(id="rlhf-old", submitted=100.0, directories=shared)
    middle = WaitingJob(id="rlhf-middle", submitted=150.0, priority=5)
    urgent = WaitingJob(id="rlhf-urgent", submitted=300.0, priority=10, directories=shared)
    jobs = [old, middle, urgent]
    assert ahead(jobs, "rlhf-old", "/runs/base") == []
    assert ahead(jobs, "rlhf-old", "/runs/other") == ["rlhf-urgent", "rlhf-middle"]
    assert ahead(jobs, "rlhf-middle") == ["rlhf-urgent"]


def test_what_a_person_reads_names_the_first_four() -> None:
    assert describe([]) == ""
    assert describe(["a", "b"]) == "waits for its turn; ahead of it: a, b"
    assert describe(list("abcdef")) == "waits for its turn; ahead of it: a, b, c, d and 2 more"


# ------------------------------------------------------------------------------------------------ the cluster


def test_jobs_and_their_places_are_read_from_the_cluster() -> None:
    jobs = [
        listed("rlhf-a", 1_000, **{PRIORITY: "3", DIRECTORIES: '["/runs/base", "/runs//a/"]'}),
        listed("rlhf-b", 2_000),
        listed("rlhf-c", 3_000, "PENDING", **{PRIORITY: "high", DIRECTORIES: "/runs/c"}),  # not as we write it
        listed("rlhf-d", 4_000, "SUCCEEDED"),
        listed("look-1", 5_000),
        {"submission_id": None, "status": "RUNNING", "start_time": 1, "metadata": {}},  # connected by itself
    ]
    placed = groups(
        (group_name("rlhf-a"), "CREATED"),
        (group_name("rlhf-b"), "CREATED"),
        (group_name("rlhf-b"), "PENDING"),  # another run of the same comparison
        ("somebody's", "PENDING"),
        ("", "CREATED"),
    )
    with job_server({"/api/jobs/": jobs, "/api/v0/placement_groups": placed}) as server:
        found = {job.id: job for job in read_jobs(server)}
    assert found == {
        "rlhf-a": WaitingJob(
            id="rlhf-a", submitted=1.0, priority=3, directories=frozenset({"/runs/base", "/runs/a"}), has_places=True
        ),
        "rlhf-b": WaitingJob(id="rlhf-b", submitted=2.0),
        "rlhf-c": WaitingJob(id="rlhf-c", submitted=3.0),
        "look-1": WaitingJob(id="look-1", submitted=5.0, counts=False),
    }


@pytest.mark.parametrize("answers", [{}, {"/api/jobs/": []}, {"/api/jobs/": [], "/api/v0/placement_groups": {}}])
def test_an_answer_that_is_not_rays_is_an_error(answers: dict[str, Any]) -> None:
    with job_server(answers) as server, pytest.raises(ClusterError, match="cannot read the jobs"):
        read_jobs(server)


def test_a_job_asks_no_proxy_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with job_server({"/api/jobs/": [], "/api/v0/placement_groups": groups()}) as server:
        assert read_jobs(server, proxies=False) == []
        with pytest.raises(ClusterError, match="ProxyError"):
            read_jobs(server)


# ------------------------------------------------------------------------------------------------ this job


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Cluster:
    """Cluster whose answers follow a script; the last one is repeated. None: it does not answer."""

    def __init__(self, *answers: Collection[WaitingJob] | None) -> None:
        self._answers, self.looks = list(answers), 0

    def __call__(self) -> Collection[WaitingJob]:
        self.looks += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            raise ClusterError(Problem(what="silent"))
        return answer


def test_a_job_waits_until_those_ahead_have_their_places() -> None:
    placed = WaitingJob(id="rlhf-old", submitted=100.0, has_places=True)
    clock, lines = Clock(), list[str]()
    Turn("rlhf-new", Cluster([OLD, NEW], [OLD, NEW], [placed, NEW]), sleep=clock.sleep).wait(lines.append)
    assert lines == ["waits for its turn; ahead of it: rlhf-old"] * 2
    assert clock.now == 2.0


def test_a_silent_job_server_holds_up_nobody_for_long() -> None:
    clock, lines = Clock(), list[str]()
    Turn("rlhf-new", Cluster(None), clock=clock, sleep=clock.sleep).wait(Changes(lines.append))
    assert lines == ["waits for the cluster's job server"]
    assert PATIENCE_S <= clock.now <= PATIENCE_S + 10


def test_a_short_silence_changes_nothing() -> None:
    clock = Clock()
    turn = Turn("rlhf-new", Cluster([OLD, NEW], None, None, [OLD, NEW], None), clock=clock)
    assert {turn.waits_for() for _ in range(5)} == {"waits for its turn; ahead of it: rlhf-old"}
    clock.now += PATIENCE_S
    assert turn.waits_for() == ""


def test_the_cluster_is_looked_at_less_and_less_often_and_a_stop_ends_the_wait_within_a_second() -> None:
    clock, cluster = Clock(), Cluster([OLD, NEW])

    def on_wait(text: str) -> None:
        if clock.now >= 100:
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        Turn("rlhf-new", cluster, sleep=clock.sleep).wait(on_wait)
    assert clock.now == 100
    assert cluster.looks == 15  # after 0 1 2 4 6 11 16 26 36 46 56 66 76 86 96 s


def test_only_changes_are_told() -> None:
    lines: list[str] = []
    tell = Changes(lines.append)
    for text in ("a", "a", "", "a", "b"):
        tell(text)
    assert lines == ["a", "a", "b"]


def test_the_job_of_this_process_is_the_one_that_ray_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_CONFIG, raising=False)
    assert submission_id() is None
    assert Turn.of_this_job() is None
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "rlhf-a"}}))
    assert submission_id() == "rlhf-a"
    for damaged in ("no json", "[]", '{"metadata": null}'):
        monkeypatch.setenv(JOB_CONFIG, damaged)
        assert submission_id() is None


# ------------------------------------------------------------------------------------------------ the door

STAGES = """\
stages:
  - name: base
    model: {path: ./model}
    data: {dataset: ./rows.jsonl}
    algorithm: {type: sft}
  - name: policy
    model: {from_stage: base}
    data: {dataset: ./pairs.jsonl}
    algorithm: {type: dpo}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "recipe.yaml").write_text(STAGES)
    return lambda *overrides: load(
        tmp_path / "recipe.yaml",
        [f"stages.{name}.output_dir={tmp_path / 'runs'}" for name in ("base", "policy")] + [*overrides],
    )


def test_a_run_waits_at_the_door_while_another_driver_runs_its_first_stage(recipe: Callable[..., Any]) -> None:
    loaded = recipe()
    base = RunDirectory.create(loaded.stages[0], loaded.text)
    lines: list[str] = []
    holding = base.held()
    holding.__enter__()
    waits = 0

    def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            holding.__exit__(None, None, None)

    wait_at_the_door(loaded.stages, lines.append, sleep=sleep)
    assert waits == 4  # after 1, 1 and 2 s, once a second
    (line,) = lines
    assert line.startswith("stage base: another job (process ")
    assert line.endswith(") runs it; waiting")
    wait_at_the_door(loaded.stages, lines.append, sleep=sleep)  # it is free now: the stage is taken over
    assert waits == 4


def test_the_last_stage_and_another_config_are_no_reason_to_wait(recipe: Callable[..., Any]) -> None:
    loaded, other = recipe(), recipe("stages.base.seed=7")
    with RunDirectory.create(loaded.stages[1], "").held(), RunDirectory.create(other.stages[0], "").held():
        wait_at_the_door(loaded.stages, pytest.fail)
        with pytest.raises(BadInput, match="belongs to a run with another config"):
            RunDirectory.create(loaded.stages[0], "")


def test_a_stop_that_is_asked_for_at_the_door_ends_the_wait(recipe: Callable[..., Any]) -> None:
    loaded = recipe()
    policy = RunDirectory.create(loaded.stages[1], loaded.text)
    StopFile(policy.path).request(by="somebody, for an earlier command")
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now == 2:
            StopFile(policy.path).request(by="alice")

    with pytest.raises(Interrupted, match="alice"):
        wait_at_the_door(loaded.stages, list[str]().append, turn=Turn(NEW.id, Cluster([OLD, NEW])), sleep=sleep)
    assert clock.now == 2


def test_a_stop_of_the_driver_that_runs_the_shared_stage_is_not_for_the_one_that_waits(
    recipe: Callable[..., Any],
) -> None:
    loaded = recipe()
    base = RunDirectory.create(loaded.stages[0], loaded.text)
    holding, lines = base.held(), list[str]()
    holding.__enter__()
    StopFile(base.path).request(by="SIGTERM", cause="preempted")

    def sleep(seconds: float) -> None:
        StopFile(base.path).withdraw()  # as the driver does when it has ended as requested
        holding.__exit__(None, None, None)

    wait_at_the_door(loaded.stages, lines.append, sleep=sleep)
    assert len(lines) == 1


def test_a_limit_on_the_wait_names_the_jobs_ahead(recipe: Callable[..., Any]) -> None:
    loaded = recipe("cluster.wait_for_room_s=0")
    with pytest.raises(ClusterError, match="ahead of it: rlhf-old") as raised:
        wait_at_the_door(loaded.stages, list[str]().append, turn=Turn(NEW.id, Cluster([OLD, NEW])))
    assert raised.value.exit_code == 3


def test_a_lock_that_is_held_is_waited_for(recipe: Callable[..., Any]) -> None:
    loaded = recipe()
    directory = RunDirectory.create(loaded.stages[0], loaded.text)
    holding, names = directory.held(), list[str]()
    holding.__enter__()

    def on_wait(holder: str) -> None:
        names.append(holder)
        holding.__exit__(None, None, None)

    with directory.held(on_wait):
        assert len(names) == 1
        with pytest.raises(BadInput, match="is in use"), directory.held():
            pass


def test_waiting_ends_with_the_reason() -> None:
    reasons_left = ["a", "b"]
    lines: list[str] = []
    wait_while(lambda: reasons_left.pop(0) if reasons_left else "", lines.append, lambda _: None)
    assert lines == ["a", "b"]
