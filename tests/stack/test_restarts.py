"""Restarts in place: a process that dies or hangs during a call is replaced, and its unfinished calls run again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import eventually
from scripted_workers import IMPORTS, ScriptedWorker

from orchestrator.cluster.base import Gang, GangPlan, Resources, Restart, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config.run import ClusterConfig
from orchestrator.errors import FleetExhausted, NoHeartbeat, WorkerFailed

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("head")]

HEARTBEAT_S = 6.0
VALUE = 7  # set in every restarted member, as an engine receives the latest weights


class Stage:
    """Cluster with four gangs.

    `pure` members are restarted up to 20 times, `frail` members twice, `learner` members never, and `met` members up
    to 20 times but only together.
    """

    def __init__(self, directory: Path) -> None:
        self.restarts: list[tuple[Restart, float]] = []
        self._directory = directory
        settings = ClusterConfig(heartbeat_timeout_s=HEARTBEAT_S)
        self.cluster = RayCluster(settings, on_restart=lambda r: self.restarts.append((r, time.monotonic())))
        plans = [self._plan("pure", 20), self._plan("frail", 2), self._plan("learner", 0), self._plan("met", 20)]
        try:
            self._gangs = self.cluster.spawn(plans)
            for role in ("pure", "met"):
                self.gang(role).when_restarted(set_values)
                set_values(self.gang(role))
        except BaseException:
            self.cluster.shutdown()
            raise

    def gang(self, role: str) -> Gang[ScriptedWorker]:
        return self._gangs[role]

    def _plan(self, role: str, restarts: int) -> GangPlan:
        arguments = [{"number": i, "directory": str(self._directory)} for i in range(2)]
        resources, meet = Resources(cpus=0.1, environment=IMPORTS), role == "met"
        return GangPlan(
            role=role, start=ScriptedWorker, arguments=arguments, resources=resources, meet=meet, restarts=restarts
        )

    def send_signal(self, name: str, with_signal: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the process that sleeps under this name, once it sleeps, and return its pid."""
        sleeper = self._directory / name
        assert eventually(lambda: sleeper.exists() and bool(sleeper.read_text()), within_s=60)
        pid = int(sleeper.read_text())
        os.kill(pid, with_signal)
        return pid


def set_values(members: Gang[ScriptedWorker]) -> None:
    wait(members.all(ScriptedWorker.set_value, VALUE))


@pytest.fixture(scope="module")
def stage(head: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.cluster.shutdown()


@pytest.fixture
def restarts(stage: Stage) -> Callable[[], list[tuple[str, str]]]:
    """Return a function that lists the role and method of each restart since the test began."""
    before = len(stage.restarts)
    return lambda: [(restart.role, restart.method) for restart, _ in stage.restarts[before:]]


Restarts = Callable[[], list[tuple[str, str]]]
ANSWERS = [(0, 1, VALUE), (1, 1, VALUE)]


def test_calls_of_a_killed_member_are_completed_and_the_other_members_continue(
    stage: Stage, restarts: Restarts
) -> None:
    pure, met = stage.gang("pure"), stage.gang("met")
    before = wait(pure.all(ScriptedWorker.pid))
    answers = pure.all(ScriptedWorker.answer, 1, "killed")
    totals = met.all(ScriptedWorker.total, answers)  # runs in other processes and depends on the lost answer
    pid = stage.send_signal("killed")
    assert wait(totals) == [17, 17]
    assert wait(answers) == ANSWERS
    assert restarts() == [("pure", "answer")]
    assert stage.restarts[-1][0].pid == pid
    after = wait(pure.all(ScriptedWorker.pid))
    assert [a == b for a, b in zip(before, after, strict=True)] == [b != pid for b in before]


@pytest.mark.long
def test_a_stopped_process_counts_as_dead(stage: Stage, restarts: Restarts) -> None:
    answers = stage.gang("pure").all(ScriptedWorker.answer, 1, "stopped")
    totals = stage.gang("met").all(ScriptedWorker.total, answers)
    pid = stage.send_signal("stopped", signal.SIGSTOP)
    stopped = time.monotonic()
    assert wait(totals) == [17, 17]  # waiting for a result also checks the workers of its inputs
    assert restarts() == [("pure", "answer")]
    assert stage.restarts[-1][1] - stopped < HEARTBEAT_S + 10
    assert "sent no heartbeat" in stage.restarts[-1][0].why
    assert eventually(lambda: not Path(f"/proc/{pid}").exists(), within_s=30), "the stopped process still exists"


def test_a_call_that_times_out_is_resubmitted_to_a_new_member(stage: Stage, restarts: Restarts) -> None:
    answer = stage.gang("pure").one(ScriptedWorker.answer, 1, "hangs")
    total = stage.gang("met").one(ScriptedWorker.total, [answer])
    assert total.result(timeout_s=8) == 8
    assert restarts() == [("pure", "answer")], "only the member that hangs is restarted"


def test_a_member_that_died_between_calls_is_noticed_at_the_next(stage: Stage, restarts: Restarts) -> None:
    pure = stage.gang("pure")
    os.kill(pure.one(ScriptedWorker.pid).result(), signal.SIGKILL)
    assert wait(pure.all(ScriptedWorker.answer, 1)) == ANSWERS
    assert restarts() == [("pure", "answer")]


def test_unfinished_calls_are_resubmitted_in_order(stage: Stage) -> None:
    pure = stage.gang("pure")
    first = pure.one(ScriptedWorker.answer, 1, "in order")
    updated = pure.one(ScriptedWorker.set_value, 8)
    second = pure.one(ScriptedWorker.answer, 1)
    stage.send_signal("in order")
    assert (first.result(), second.result()) == ((0, 1, VALUE), (0, 1, 8))
    updated.result()
    set_values(pure)


def test_a_gang_with_a_rendezvous_is_restarted_as_a_whole(stage: Stage, restarts: Restarts) -> None:
    met = stage.gang("met")
    before, rendezvous = wait(met.all(ScriptedWorker.pid)), met.one(ScriptedWorker.rendezvous).result()
    totals = met.all(ScriptedWorker.total, ANSWERS, "met")
    stage.send_signal("met")
    assert wait(totals) == [17, 17]
    assert restarts() == [("met", "total")]
    assert wait(met.all(ScriptedWorker.num_totals)) == [1, 1], "the member that had answered runs again, too"
    assert not set(before) & set(wait(met.all(ScriptedWorker.pid)))
    first, second = wait(met.all(ScriptedWorker.rendezvous))
    assert first == second
    assert set(first) == {"address", "port"} == set(rendezvous)


@pytest.mark.timeout(120)
def test_calls_of_all_ranks_of_a_collective_are_resubmitted_when_their_input_was_lost(
    stage: Stage, restarts: Restarts
) -> None:
    answers = stage.gang("pure").all(ScriptedWorker.answer, 1, "collective")
    totals = stage.gang("met").all(ScriptedWorker.total_together, answers, "together")
    stage.send_signal("collective")
    assert wait(totals) == [17, 17]
    assert restarts() == [("pure", "answer")]


def test_a_member_that_holds_the_wrong_version_is_replaced_by_one_that_does_not(
    stage: Stage, restarts: Restarts
) -> None:
    pure = stage.gang("pure")
    wait(pure.each(ScriptedWorker.set_value, [(VALUE,), (VALUE - 1,)]))  # an incomplete publication
    assert wait(pure.all(ScriptedWorker.answer_if_current, VALUE)) == [VALUE, VALUE]
    assert restarts() == [("pure", "answer_if_current")]
    assert stage.restarts[-1][0].rank == 1


def test_an_exception_of_a_worker_is_raised_without_a_restart(stage: Stage, restarts: Restarts) -> None:
    with pytest.raises(WorkerFailed, match="pure rank 0 failed: KeyError: 'something'"):
        stage.gang("pure").one(ScriptedWorker.raise_something).result()
    assert restarts() == []


def test_a_learner_that_waits_for_a_lost_input_is_called_once(stage: Stage, restarts: Restarts) -> None:
    answers = stage.gang("pure").all(ScriptedWorker.answer, 1, "upstream")
    stage.send_signal("upstream")
    assert wait(stage.gang("learner").all(ScriptedWorker.total, answers)) == [17, 17]
    assert restarts() == [("pure", "answer")]


def test_a_learner_is_not_restarted(stage: Stage, restarts: Restarts) -> None:
    learner = stage.gang("learner")
    first, second = wait(learner.all(ScriptedWorker.pid))
    answers = learner.all(ScriptedWorker.answer, 1, "learner stopped")
    pid = stage.send_signal("learner stopped", signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(NoHeartbeat, match=rf"learner rank {[first, second].index(pid)} \(pid {pid}\)") as silent:
        wait(answers)
    assert time.monotonic() - started < HEARTBEAT_S + 10
    assert silent.value.pid == pid
    os.kill(pid, signal.SIGKILL)
    other = first if pid == second else second
    os.kill(other, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match=r"learner rank [01] failed: its process \(pid \d+\) died"):
        wait(learner.all(ScriptedWorker.answer, 2))
    assert restarts() == []


def test_a_call_that_kills_every_member_ends_the_attempt(stage: Stage) -> None:
    before = len(stage.restarts)
    with pytest.raises(FleetExhausted) as exhausted:
        stage.gang("frail").one(ScriptedWorker.die).result()
    assert (exhausted.value.role, exhausted.value.rank, exhausted.value.method) == ("frail", 0, "die")
    assert "the same call of `die` failed 3 times" in str(exhausted.value)
    assert [(restart.role, restart.number) for restart, _ in stage.restarts[before:]] == [("frail", 1), ("frail", 2)]
