"""A call on Ray may take as long as it makes progress; one that makes none is named, or restarted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import eventually
from scripted_workers import IMPORTS, ScriptedWorker

from orchestrator.cluster.base import Gang, GangPlan, Resources, Restart, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config.run import ClusterConfig
from orchestrator.errors import DeadlineExceeded

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("head")]

LIMIT_S = 4.0
LONG_S = 2 * LIMIT_S  # more than an idle worker has, too


class Stage:
    """Cluster with two gangs of two: `pure` members are restarted, `learner` members are not."""

    def __init__(self, directory: Path) -> None:
        self.restarts: list[Restart] = []
        settings = ClusterConfig(heartbeat_timeout_s=1.25 * LIMIT_S, progress_timeout_s=LIMIT_S)
        self.cluster = RayCluster(settings, on_restart=self.restarts.append)
        try:
            self._gangs = self.cluster.spawn([self._plan("pure", 20, directory), self._plan("learner", 0, directory)])
        except BaseException:
            self.cluster.shutdown()
            raise

    def _plan(self, role: str, restarts: int, directory: Path) -> GangPlan:
        arguments = [{"number": i, "directory": str(directory)} for i in range(2)]
        resources = Resources(cpus=0.1, environment=IMPORTS)
        return GangPlan(role=role, start=ScriptedWorker, arguments=arguments, resources=resources, restarts=restarts)

    def gang(self, role: str) -> Gang[ScriptedWorker]:
        return self._gangs[role]


@pytest.fixture(scope="module")
def stage(head: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("progress"))
    yield stage
    stage.cluster.shutdown()


def test_calls_that_make_progress_outlast_the_limit_and_so_do_workers_that_wait_for_them(stage: Stage) -> None:
    """One member is done at once and idles; two workers of another gang idle until both have answered."""
    pure, learner = stage.gang("pure"), stage.gang("learner")
    pieces = pure.each(ScriptedWorker.work, [(LONG_S,), (0.0,)])
    waiting = learner.all(ScriptedWorker.work, 0.0, pieces)
    assert wait(waiting) == [0, 1]
    assert stage.restarts == []


@pytest.mark.long
def test_the_first_of_several_calls_is_waited_for_while_their_siblings_idle(stage: Stage) -> None:
    pure = stage.gang("pure")
    first = pure.each(ScriptedWorker.work, [(LONG_S,), (0.0,)])
    second = pure.each(ScriptedWorker.work, [(0.0,), (0.0,)])
    stage.cluster.wait_first([first[0], second[0]])
    assert first[0].has_ended()
    assert wait([*first, *second]) == [0, 1, 0, 1]
    assert stage.restarts == []


@pytest.mark.long
def test_the_worker_of_an_input_that_has_ended_may_idle_although_nobody_read_it(stage: Stage) -> None:
    pure = stage.gang("pure")
    given = pure.each(ScriptedWorker.work, [(0.0,), (0.0,)])[0]
    assert eventually(given.has_ended, within_s=60)
    assert pure.each(ScriptedWorker.work, [(0.0, None), (LONG_S, given)])[1].result() == 1
    assert stage.restarts == []


def test_a_call_without_progress_is_named(stage: Stage) -> None:
    learner = stage.gang("learner")
    pids = wait(learner.all(ScriptedWorker.pid))
    hanging, working = learner.each(ScriptedWorker.answer, [(1, "hangs"), (1,)])
    with pytest.raises(DeadlineExceeded, match=r"learner rank 0 made no progress with `answer` for 4 s") as failed:
        hanging.wait()
    assert failed.value.pid == pids[0]
    assert working.result() == (1, 1, 0)


def test_a_member_without_progress_is_restarted_and_its_call_runs_again(stage: Stage) -> None:
    pure = stage.gang("pure")
    answer = pure.one(ScriptedWorker.answer, 1, "hangs in place")
    total = stage.gang("pure").all(ScriptedWorker.total, [answer])
    assert wait(total) == [1, 1]
    (restart,) = stage.restarts
    assert (restart.role, restart.rank, restart.method) == ("pure", 0, "answer")
    assert "made no progress with `answer` for 4 s" in restart.why
