"""Gangs as Ray actors in one placement group. The workers themselves do not import Ray.

The actors end with their driver: it owns all of them, none is detached.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.cluster.base import GangPlan, Handle, Restart
from orchestrator.cluster.heartbeat import HeartbeatMonitor
from orchestrator.cluster.preload import fork_command
from orchestrator.cluster.ray_calls import Call, Clock, Members
from orchestrator.cluster.ray_gang import RayGang
from orchestrator.cluster.ray_handle import RayHandle
from orchestrator.cluster.ray_host import Host
from orchestrator.cluster.ray_places import Places
from orchestrator.cluster.ray_start import connect, start_local, stop_local, store
from orchestrator.cluster.ray_waiting import wait_first
from orchestrator.cluster.turn import Changes, Turn
from orchestrator.config import ClusterConfig
from orchestrator.errors import ClusterError, Problem


def _is_alone() -> bool:
    """Return whether this machine is the whole cluster."""
    if ray.util.client.ray.is_connected():
        return False
    here = ray.get_runtime_context().get_node_id()
    return all(node["NodeID"] == here for node in ray.nodes() if node["Alive"])


def _lanes(*, forked: bool) -> float:
    """Return how many members may start at once.

    One per core if this machine is the whole cluster and a member imports its modules itself, else any number.
    """
    return len(os.sched_getaffinity(0)) if _is_alone() and not forked else math.inf


def _ignore(restart: Restart) -> None:
    pass


class RayCluster:
    """One Ray cluster: the one at `config.address`, or a new one on this machine that ends with the run."""

    def __init__(
        self,
        config: ClusterConfig,
        *,
        log_directory: Path | None = None,
        on_restart: Callable[[Restart], None] = _ignore,
        holding: Path | None = None,
    ) -> None:
        """Connect to the cluster, or start it.

        Args:
            log_directory: directory of one log file per actor; None: Ray's own log files.
            on_restart: called at every restart of a member.
            holding: run directory that the driver holds the lock of; None: none.

        Raises:
            ClusterError: the cluster cannot be reached, is not safe, or has no GPU although the config asks for one.
        """
        self._config, self._logs, self._on_restart = config, log_directory, on_restart
        self._clock = Clock()
        self._group: PlacementGroup | None = None
        self._gangs: dict[str, RayGang[Any]] = {}
        self._members: Members = {}
        self._local = config.address is None and "RAY_ADDRESS" not in os.environ
        start_local(config) if self._local else connect(config)
        self._heartbeats = HeartbeatMonitor(store(), timeout_s=config.heartbeat_timeout_s, address=config.address)
        self._places = Places(
            config=config,
            turn=None if self._local else Turn.of_this_job(),
            holding=str(holding or ""),
            check=lambda: self._heartbeats.pid(""),
        )
        gpus = ray.cluster_resources().get("GPU", 0)
        if config.device == "cuda" and not gpus and not config.grows:
            raise ClusterError(
                Problem(
                    what="cluster.device is cuda, but the cluster has no GPU", fix="use device: cpu, or another cluster"
                )
            )
        self.cuda = bool(gpus) if config.device == "auto" else config.device == "cuda"

    def spawn(self, plans: Sequence[GangPlan], on_wait: Callable[[str], None] | None = None) -> dict[str, RayGang[Any]]:
        self._group = group = self._places.find(plans, on_wait or Changes(lambda text: print(text, file=sys.stderr)))
        first = 0
        for plan in plans:
            self._gangs[plan.role] = self._gang(plan, lambda: self._places.wait_again(group, plans), group, first)
            first += len(plan.arguments)
        self._start(plans)
        return self._gangs

    def _start(self, plans: Sequence[GangPlan]) -> None:
        """Start the workers: as many at a time as there are cores, the slowest first.

        A worker that is no fork imports for seconds. If more start than there are cores, they share them, and the
        slowest is still importing when all others are done.
        """
        lanes, starting = _lanes(forked=all(map(self._fork_command, plans))), list[RayHandle[None]]()
        for plan in sorted(plans, key=lambda plan: not plan.slow):
            while starting and len(starting) + len(plan.arguments) > lanes:
                with self._clock.running():
                    starting.remove(wait_first(starting, self._config.start_timeout_s))
            starting += self._gangs[plan.role].start()
        for handle in starting:
            handle.result(self._config.start_timeout_s)

    def _gang(
        self, plan: GangPlan, wait_for_places: Callable[[], None], group: PlacementGroup, first: int
    ) -> RayGang[Any]:
        return RayGang(
            plan,
            lambda rank: self._actor(plan, group, first + rank, rank),
            self._config,
            clock=self._clock,
            heartbeats=self._heartbeats,
            members=self._members,
            on_restart=self._on_restart,
            wait_for_places=wait_for_places,
        )

    def accelerators(self) -> list[str]:
        names = (key.partition(":") for key in ray.cluster_resources())
        return sorted(name for kind, _, name in names if kind == "accelerator_type")

    def wait_first(self, handles: Sequence[Handle[Any]]) -> None:
        with self._clock.running():
            wait_first(cast("Sequence[Call]", handles))

    def when_idle(self, work: Callable[[], object]) -> None:
        self._clock.on_idle = work

    def waited_s(self) -> float:
        return self._clock.waited_s

    def restarts(self) -> dict[str, int]:
        return {role: gang.num_restarts for role, gang in self._gangs.items() if gang.num_restarts}

    def release(self) -> None:
        for gang in self._gangs.values():
            for actor in gang.actors:
                ray.kill(actor)
                self._heartbeats.forget(actor._actor_id.hex())
        if self._group is not None:
            with suppress(Exception):  # the cluster may be gone already
                remove_placement_group(self._group)
        self._gangs, self._group = {}, None

    def shutdown(self) -> None:
        """Kill every actor, and the cluster if it was started for the run."""
        if not ray.is_initialized():
            return
        if self._heartbeats.cluster_answers():  # else every Ray call would wait, until Ray ends this process
            self.release()
        stop_local() if self._local else ray.shutdown()

    def _fork_command(self, plan: GangPlan) -> str | None:
        """Return the command that starts a member in a fork; None if it imports its modules itself."""
        return fork_command(plan.preload) if plan.preload and not self.cuda and _is_alone() else None

    def _actor(self, plan: GangPlan, group: PlacementGroup, bundle: int, index: int) -> Any:
        log_file = None if self._logs is None else str(self._logs / f"{plan.role}-{index}.log")
        environment: dict[str, Any] = {"env_vars": dict(plan.resources.environment)}
        if command := self._fork_command(plan):
            environment["py_executable"] = command
        return (
            ray.remote(Host)
            .options(
                num_cpus=plan.resources.cpus,
                num_gpus=plan.resources.gpus,
                max_restarts=0,
                max_concurrency=1,  # methods run on the process's main thread
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
                runtime_env=environment,
            )
            .remote(plan.role, index, log_file, self._heartbeats.tick_s)
        )
