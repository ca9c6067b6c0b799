"""A process that dies or hangs in the middle of a call is started again in its place, and what it owed is done again."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import eventually

from orchestrator.cluster.base import Gang, GangPlan, Resources, Restart, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config.run import ClusterConfig
from orchestrator.errors import DeadlineExceeded, FleetExhausted, NoHeartbeat, VersionMismatch, WorkerFailed

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("head")]

HEARTBEAT_S = 4.0


class Teller:
    """A worker whose answers depend on the call and on what it was last told, and which says where it lives."""

    def __init__(self, number: int, directory: str, **meeting: Any) -> None:
        self._number, self._directory, self._told, self._meeting = number, Path(directory), 0, meeting

    def learn(self, what: int) -> None:
        self._told = what

    def pid(self) -> int:
        return os.getpid()

    def meeting(self) -> Any:
        return self._meeting

    def tell(self, question: int, slow_once: str = "") -> tuple[int, int, int]:
        """(number, question, what it was told). With `slow_once` the first call that bears that name never ends."""
        if slow_once and self._first(slow_once):
            time.sleep(600)
        return self._number, question, self._told

    def total(self, answers: list[tuple[int, int, int]], slow_once: str = "") -> int:
        if slow_once and self._first(slow_once):
            time.sleep(600)
        return sum(sum(answer) for answer in answers)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _first(self, name: str) -> bool:
        """Whether nobody has asked for `name` before; it is then written down who was."""
        try:
            (self._directory / name).open("x").write(str(os.getpid()))
        except FileExistsError:
            return False
        return True


class VersionMismatchError(Exception):
    pass


@pytest.fixture(scope="module")
def cluster(head: None) -> Iterator[Callable[..., Any]]:
    """Gangs on one cluster that looks for heartbeats every second; all of them in one placement group."""
    yield None  # type: ignore[misc]


class Stage:
    """A cluster of tellers: `pure` members are started again, `learner` ones are not, `met` ones only together."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.told: list[Restart] = []
        self.directory = directory
        settings = ClusterConfig(heartbeat_timeout_s=HEARTBEAT_S, cpus_per_worker=0.1, **config)
        self.cluster = RayCluster(settings, told=self.told.append)
        gangs = self.cluster.spawn([self._plan("pure", 2, 3), self._plan("learner", 2, 0), self._plan("met", 2, 2)])
        self.pure: Gang[Teller] = gangs["pure"]
        self.learner: Gang[Teller] = gangs["learner"]
        self.met: Gang[Teller] = gangs["met"]
        for gang in (self.pure, self.met):
            gang.when_restarted(lambda members: wait(members.all(Teller.learn, 7)) and None)
            wait(gang.all(Teller.learn, 7))

    def _plan(self, role: str, size: int, restarts: int) -> GangPlan:
        arguments = [{"number": i, "directory": str(self.directory)} for i in range(size)]
        resources = Resources(cpus=0.1)
        return GangPlan(
            role=role, start=Teller, arguments=arguments, resources=resources, meet=role == "met", restarts=restarts
        )

    def kill_whoever_is_at(self, name: str, sent: signal.Signals = signal.SIGKILL) -> int:
        """The process that was the first to be asked for `name`, as soon as it is at it."""
        assert eventually(lambda: bool(self._who(name)), within_s=30)
        pid = int(self._who(name))
        os.kill(pid, sent)
        return pid

    def _who(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""


@pytest.fixture
def stage(head: None, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.cluster.shutdown()
