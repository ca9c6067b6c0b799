"""Start order of workers: as many at a time as there are cores, the slow ones first."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_workers import IMPORTS, SlowStarter

from orchestrator.cluster import ray_cluster
from orchestrator.cluster.base import GangPlan, Resources
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config.run import ClusterConfig
from orchestrator.errors import WorkerFailed

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("head")]

Start = Callable[[list[GangPlan]], None]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(ray_cluster, "_lanes", lambda forked: 2)
    cluster = RayCluster(ClusterConfig())
    yield cluster.spawn
    cluster.shutdown()


def plan(
    role: str, directory: Path, seconds: float, *, members: int = 1, slow: bool = False, dies: int = 0
) -> GangPlan:
    arguments = [
        {"name": f"{role}-{i}", "seconds": seconds, "directory": str(directory), "dies": i < dies}
        for i in range(members)
    ]
    return GangPlan(
        role=role, start=SlowStarter, arguments=arguments, resources=Resources(cpus=0.1, environment=IMPORTS), slow=slow
    )


def test_two_at_a_time_and_the_slow_one_from_the_beginning(start: Start, tmp_path: Path) -> None:
    start([plan("policy", tmp_path, 0.3), plan("pair", tmp_path, 0.3, members=2), plan("reward", tmp_path, 0.3),
           plan("rollout", tmp_path, 3.0, slow=True)])  # fmt: skip
    times = {path.name: tuple(map(float, path.read_text().split())) for path in tmp_path.iterdir()}
    began = sorted(times, key=lambda name: times[name][0])
    assert {*began[:2]} == {"rollout-0", "policy-0"}
    assert times["pair-0"][0] >= times["rollout-0"][1], "two more beside it would have been three"
    assert abs(times["pair-0"][0] - times["pair-1"][0]) < 2.0, (
        "members of a gang start together, because they may wait for each other"
    )
    assert times["reward-0"][0] >= min(times["pair-0"][1], times["pair-1"][1])


def test_the_first_worker_that_is_ready_makes_room(start: Start, tmp_path: Path) -> None:
    start([plan("a", tmp_path, 0.2), plan("b", tmp_path, 0.2), plan("c", tmp_path, 0.2),
           plan("rollout", tmp_path, 4.0, slow=True)])  # fmt: skip
    times = {path.name: tuple(map(float, path.read_text().split())) for path in tmp_path.iterdir()}
    assert max(times[name][1] for name in ("a-0", "b-0", "c-0")) < times["rollout-0"][1]
    assert times["a-0"][1] <= times["b-0"][0]
    assert times["b-0"][1] <= times["c-0"][0]


def test_a_worker_that_dies_is_reported_before_the_others_are_ready(start: Start, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerFailed) as failed:
        start([plan("policy", tmp_path, 0.1, dies=True), plan("reward", tmp_path, 0.1),
               plan("rollout", tmp_path, 60.0, slow=True)])  # fmt: skip
    assert (failed.value.role, failed.value.rank) == ("policy", 0)
    assert time.monotonic() - began < 50


def test_a_machine_that_is_the_whole_cluster_has_as_many_lanes_as_cores(head: None, tmp_path: Path) -> None:
    cluster, importing = RayCluster(ClusterConfig()), plan("policy", tmp_path, 0.1)
    forked = replace(importing, preload="torch")  # the session serves forks of this kind
    assert cluster._fork_command(importing) is None
    assert ray_cluster._lanes(forked=False) == len(os.sched_getaffinity(0))
    assert cluster._fork_command(forked) is not None
    assert ray_cluster._lanes(forked=True) == math.inf
    cluster.shutdown()
