"""Restarts in place: a process that dies or hangs during a call is replaced, and its unfinished calls run again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import eventually
from scripted_workers import IMPORTS, Teller

from orchestrator.cluster.base import Gang, GangPlan, Resources, Restart, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config.run import ClusterConfig
from orchestrator.errors import FleetExhausted, NoHeartbeat, WorkerFailed

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("head")]

HEARTBEAT_S = 6.0
TOLD = 7  # the value that a restarted member learns, as an engine receives the latest weights


class Stage:
    """Cluster with four gangs.

    `pure` members are restarted up to 20 times, `frail` members twice, `learner` members never, and `met` members up
    to 20 times but only together.
    """

    def __init__(self, directory: Path) -> None:
        self.told: list[tuple[Restart, float]] = []
        self._directory = directory
        settings = ClusterConfig(heartbeat_timeout_s=HEARTBEAT_S)
        self.cluster = RayCluster(settings, on_restart=lambda r: self.told.append((r, time.monotonic())))
        plans = [self._plan("pure", 20), self._plan("frail", 2), self._plan("learner", 0), self._plan("met", 20)]
        try:
            self._gangs = self.cluster.spawn(plans)
            for role in ("pure", "met"):
                self.gang(role).when_restarted(tell_them)
                tell_them(self.gang(role))
        except BaseException:
            self.cluster.shutdown()
            raise

    def gang(self, role: str) -> Gang[Teller]:
        return self._gangs[role]

    def _plan(self, role: str, restarts: int) -> GangPlan:
        arguments = [{"number": i, "directory": str(self._directory)} for i in range(2)]
        resources, meet = Resources(cpus=0.1, environment=IMPORTS), role == "met"
        return GangPlan(role=role, start=Teller, arguments=arguments, resources=resources, meet=meet, restarts=restarts)

    def strike(self, name: str, with_signal: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the process that sleeps under this name, once it sleeps, and return its pid."""
        sleeper = self._directory / name
        assert eventually(lambda: sleeper.exists() and bool(sleeper.read_text()), within_s=60)
        pid = int(sleeper.read_text())
        os.kill(pid, with_signal)
        return pid


def tell_them(members: Gang[Teller]) -> None:
    wait(members.all(Teller.learn, TOLD))


@pytest.fixture(scope="module")
def stage(head: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("stage"))
    yield made
    made.cluster.shutdown()


@pytest.fixture
def told(stage: Stage) -> Callable[[], list[tuple[str, str]]]:
    """Return a function that lists the role and method of each restart since the test began."""
    before = len(stage.told)
    return lambda: [(restart.role, restart.method) for restart, _ in stage.told[before:]]


Told = Callable[[], list[tuple[str, str]]]
RIGHT = [(0, 1, TOLD), (1, 1, TOLD)]


def test_a_member_that_is_killed_owes_nothing_in_the_end_and_the_others_go_on(stage: Stage, told: Told) -> None:
    pure, met = stage.gang("pure"), stage.gang("met")
    before = wait(pure.all(Teller.pid))
    answers = pure.all(Teller.tell, 1, "killed")
    totals = met.all(Teller.total, answers)  # runs in other processes and depends on the lost answer
    pid = stage.strike("killed")
    assert wait(totals) == [17, 17]
    assert wait(answers) == RIGHT
    assert told() == [("pure", "tell")]
    assert stage.told[-1][0].pid == pid
    after = wait(pure.all(Teller.pid))
    assert [a == b for a, b in zip(before, after, strict=True)] == [b != pid for b in before]


def test_a_stopped_process_counts_as_dead(stage: Stage, told: Told) -> None:
    answers = stage.gang("pure").all(Teller.tell, 1, "stopped")
    totals = stage.gang("met").all(Teller.total, answers)
    pid = stage.strike("stopped", signal.SIGSTOP)
    stopped = time.monotonic()
    assert wait(totals) == [17, 17]  # waiting for a result also checks the workers of its inputs
    assert told() == [("pure", "tell")]
    assert stage.told[-1][1] - stopped < HEARTBEAT_S + 10
    assert "sent no heartbeat" in stage.told[-1][0].why
    assert eventually(lambda: not Path(f"/proc/{pid}").exists(), within_s=30), "it is still there, stopped"


def test_a_call_that_does_not_end_in_time_is_made_again_elsewhere(stage: Stage, told: Told) -> None:
    answer = stage.gang("pure").one(Teller.tell, 1, "hangs")
    total = stage.gang("met").one(Teller.total, [answer])
    assert total.result(timeout_s=8) == 8
    assert told() == [("pure", "tell")], "not the one that waited for it"


def test_a_member_that_died_between_calls_is_noticed_at_the_next(stage: Stage, told: Told) -> None:
    pure = stage.gang("pure")
    os.kill(pure.one(Teller.pid).result(), signal.SIGKILL)
    assert wait(pure.all(Teller.tell, 1)) == RIGHT
    assert told() == [("pure", "tell")]


def test_owed_calls_are_made_again_in_their_order(stage: Stage) -> None:
    pure = stage.gang("pure")
    first = pure.one(Teller.tell, 1, "in order")
    learned = pure.one(Teller.learn, 8)
    second = pure.one(Teller.tell, 1)
    stage.strike("in order")
    assert (first.result(), second.result()) == ((0, 1, TOLD), (0, 1, 8))
    learned.result()
    tell_them(pure)


def test_a_gang_that_meets_is_started_again_whole(stage: Stage, told: Told) -> None:
    met = stage.gang("met")
    before, meeting = wait(met.all(Teller.pid)), met.one(Teller.meeting).result()
    totals = met.all(Teller.total, RIGHT, "met")
    stage.strike("met")
    assert wait(totals) == [17, 17]
    assert told() == [("met", "total")]
    assert wait(met.all(Teller.num_totals)) == [1, 1], "one had answered before, but they work together"
    assert not set(before) & set(wait(met.all(Teller.pid)))
    first, second = wait(met.all(Teller.meeting))
    assert first == second
    assert set(first) == {"address", "port"} == set(meeting)


@pytest.mark.timeout(120)
def test_ranks_of_a_collective_are_all_asked_again_when_what_they_wait_for_was_lost(stage: Stage, told: Told) -> None:
    answers = stage.gang("pure").all(Teller.tell, 1, "collective")
    totals = stage.gang("met").all(Teller.total_together, answers, "together")
    stage.strike("collective")
    assert wait(totals) == [17, 17]
    assert told() == [("pure", "tell")]


def test_a_member_that_holds_the_wrong_version_is_replaced_by_one_that_does_not(stage: Stage, told: Told) -> None:
    pure = stage.gang("pure")
    wait(pure.each(Teller.learn, [(TOLD,), (TOLD - 1,)]))  # an incomplete publication
    assert wait(pure.all(Teller.tell_if_told, TOLD)) == [TOLD, TOLD]
    assert told() == [("pure", "tell_if_told")]
    assert stage.told[-1][0].rank == 1


def test_what_a_worker_raises_is_raised_and_nobody_is_started_again(stage: Stage, told: Told) -> None:
    with pytest.raises(WorkerFailed, match="pure rank 0 failed: KeyError: 'something'"):
        stage.gang("pure").one(Teller.raise_something).result()
    assert told() == []


def test_a_learner_that_waits_for_what_was_lost_is_asked_once(stage: Stage, told: Told) -> None:
    answers = stage.gang("pure").all(Teller.tell, 1, "upstream")
    stage.strike("upstream")
    assert wait(stage.gang("learner").all(Teller.total, answers)) == [17, 17]
    assert told() == [("pure", "tell")]


def test_a_learner_is_not_started_again(stage: Stage, told: Told) -> None:
    learner = stage.gang("learner")
    first, second = wait(learner.all(Teller.pid))
    answers = learner.all(Teller.tell, 1, "learner stopped")
    pid = stage.strike("learner stopped", signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(NoHeartbeat, match=rf"learner rank {[first, second].index(pid)} \(pid {pid}\)") as silent:
        wait(answers)
    assert time.monotonic() - started < HEARTBEAT_S + 10
    assert silent.value.pid == pid
    os.kill(pid, signal.SIGKILL)
    other = first if pid == second else second
    os.kill(other, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match=r"learner rank [01] failed: its process \(pid \d+\) died"):
        wait(learner.all(Teller.tell, 2))
    assert told() == []


def test_a_call_that_kills_whoever_is_asked_ends_the_attempt(stage: Stage) -> None:
    before = len(stage.told)
    with pytest.raises(FleetExhausted) as exhausted:
        stage.gang("frail").one(Teller.die).result()
    assert (exhausted.value.role, exhausted.value.rank, exhausted.value.method) == ("frail", 0, "die")
    assert "the same call of `die` failed 3 times" in str(exhausted.value)
    assert [(restart.role, restart.number) for restart, _ in stage.told[before:]] == [("frail", 1), ("frail", 2)]
