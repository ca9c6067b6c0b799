"""Gangs as Ray actors in one placement group. The workers themselves know nothing of Ray.

A driver that ends takes its actors with it: all of them are owned, none is detached.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.cluster.base import GangPlan
from orchestrator.cluster.ray_host import Failure, Host, Slot
from orchestrator.cluster.ray_start import connect, start_local
from orchestrator.config import ClusterConfig
from orchestrator.errors import ClusterError, DeadlineExceeded, PlacementError, Problem, Shortfall, WorkerFailed

W = TypeVar("W")
R = TypeVar("R")
P = ParamSpec("P")

Members = dict[str, tuple[str, int]]
"""Role and rank of every actor, by Ray's id of it."""


class _Clock:
    """How long the driver has waited for answers."""

    waited_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.waited_s += time.monotonic() - started


class RayHandle(Generic[R]):
    """A call under way. While it is waited for, a failure of its siblings in the same fan-out counts as its own: a rank
    that died leaves the others waiting in a collective."""

    def __init__(
        self, ref: Any, role: str, rank: int, method: str, deadline_s: float, clock: _Clock, members: Members
    ) -> None:
        self.ref, self.role, self.rank, self.method = ref, role, rank, method
        self._deadline_s, self._clock, self._members = deadline_s, clock, members
        self.siblings: Sequence[RayHandle[Any]] = ()

    def result(self, timeout_s: float | None = None) -> R:
        with self._clock.running():
            self._await(self._deadline_s if timeout_s is None else timeout_s)
            return self._get()

    def wait(self) -> None:
        with self._clock.running():
            self._await(self._deadline_s)

    def _await(self, limit: float) -> None:
        until = time.monotonic() + limit
        pending = {h.ref: h for h in (self, *self.siblings)}
        while self.ref in pending:
            ready, _ = ray.wait(list(pending), timeout=max(0.0, until - time.monotonic()), fetch_local=False)
            if not ready:
                raise DeadlineExceeded(self.role, self.method, limit, rank=self.rank)
            for ref in ready:
                handle = pending.pop(ref)
                if handle is not self:
                    handle._get()

    def _get(self) -> R:
        try:
            return ray.get(self.ref, timeout=60)  # type: ignore[no-any-return]
        except (RayTaskError, RayActorError) as error:
            raise self._failed(error) from None
        except GetTimeoutError:
            raise DeadlineExceeded(self.role, self.method, 60, rank=self.rank) from None

    def _failed(self, error: Exception) -> WorkerFailed:
        """Of the actor where it began: a call fails too when one whose answer it waits for has failed."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, Failure):
            return WorkerFailed(cause.role, cause.rank, cause.traceback)
        if isinstance(cause, RayActorError):
            role, rank = self._members.get(cause.actor_id or "", (self.role, self.rank))
            return WorkerFailed(role, rank, _death(str(cause)))
        return WorkerFailed(self.role, self.rank, str(error))


def _death(report: str) -> str:
    """What Ray knows of an actor's death, in one line; its own report is a paragraph of guesses."""
    text = " ".join(report.split())
    pid = re.search(r"pid: (\d+)", text)
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes| If the process|$)", text)
    cause = detail.group(1).rstrip(". )") if detail else text
    return f"its process{f' (pid {pid.group(1)})' if pid else ''} died: {cause}"


class RayGang(Generic[W]):
    """The actors of one role."""

    def __init__(self, role: str, actors: Sequence[Any], deadline_s: float, clock: _Clock, members: Members) -> None:
        self.role = role
        self.actors = list(actors)
        self._deadline_s, self._clock, self._members = deadline_s, clock, members
        members.update({actor._actor_id.hex(): (role, rank) for rank, actor in enumerate(actors)})

    def __len__(self) -> int:
        return len(self.actors)

    def meeting_point(self) -> tuple[str, int]:
        handle: RayHandle[tuple[str, int]] = self._handle(self.actors[0].meeting_point.remote(), 0, "meeting_point")
        return handle.result()

    def start(self, plan: GangPlan) -> list[RayHandle[None]]:
        address, port = self.meeting_point() if plan.meet else ("", 0)
        meeting = {"address": address, "port": port} if plan.meet else {}
        started = [
            a.start.remote(plan.start, {**kw, **meeting}) for a, kw in zip(self.actors, plan.arguments, strict=True)
        ]
        return self._siblings([self._handle(ref, i, "start") for i, ref in enumerate(started)])

    def one(self, method: Callable[Concatenate[W, P], R], *args: Any, **kwargs: Any) -> RayHandle[R]:
        return self._call(0, method, args, kwargs)

    def all(self, method: Callable[Concatenate[W, P], R], *args: Any, **kwargs: Any) -> list[RayHandle[R]]:
        return self._siblings([self._call(i, method, args, kwargs) for i in range(len(self.actors))])

    def each(self, method: Callable[Concatenate[W, P], R], arguments: Sequence[tuple[Any, ...]]) -> list[RayHandle[R]]:
        if len(arguments) != len(self.actors):
            raise ValueError(f"{len(arguments)} sets of arguments for the {len(self.actors)} members of {self.role}")
        return self._siblings([self._call(i, method, args, {}) for i, args in enumerate(arguments)])

    def _call(
        self, index: int, method: Callable[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> RayHandle[R]:
        refs: list[Any] = []
        spec_args = [_slots(a, refs) for a in args]
        spec_kwargs = {k: _slots(v, refs) for k, v in kwargs.items()}
        ref = self.actors[index].call.remote(method.__name__, spec_args, spec_kwargs, *refs)
        return self._handle(ref, index, method.__name__)

    def _handle(self, ref: Any, index: int, method: str) -> RayHandle[Any]:
        return RayHandle(ref, self.role, index, method, self._deadline_s, self._clock, self._members)

    def _siblings(self, handles: list[RayHandle[R]]) -> list[RayHandle[R]]:
        for handle in handles:
            handle.siblings = [h for h in handles if h is not handle]
        return handles


def _slots(argument: Any, refs: list[Any]) -> Any:
    """The argument with every handle in it replaced by a slot, its reference appended to `refs`."""
    if isinstance(argument, RayHandle):
        refs.append(argument.ref)
        return Slot(len(refs) - 1)
    if isinstance(argument, list | tuple):
        return type(argument)(_slots(a, refs) for a in argument)
    return argument


class RayCluster:
    """One Ray cluster: the one at `config.address`, or a new one on this machine that ends with the run."""

    def __init__(self, config: ClusterConfig, *, log_directory: Path | None = None) -> None:
        self._config, self._logs = config, log_directory
        self._clock = _Clock()
        self._group: PlacementGroup | None = None
        self._gangs: list[RayGang[Any]] = []
        self._members: Members = {}
        self._local = config.address is None and "RAY_ADDRESS" not in os.environ
        start_local(config) if self._local else connect(config)
        gpus = ray.cluster_resources().get("GPU", 0)
        if config.device == "cuda" and not gpus:
            raise ClusterError(
                Problem(
                    what="cluster.device is cuda, but the cluster has no GPU", fix="use device: cpu, or another cluster"
                )
            )
        self.cuda = bool(gpus) if config.device == "auto" else config.device == "cuda"

    def spawn(self, plans: Sequence[GangPlan]) -> dict[str, RayGang[Any]]:
        bundles = [
            {"CPU": plan.resources.cpus, **({"GPU": plan.resources.gpus} if plan.resources.gpus else {})}
            for plan in plans
            for _ in plan.arguments
        ]
        self._group = self._place(plans, bundles)
        gangs: dict[str, RayGang[Any]] = {}
        first = 0
        for plan in plans:
            actors = [self._actor(plan, self._group, first + i, i) for i in range(len(plan.arguments))]
            gangs[plan.role] = RayGang(plan.role, actors, self._config.call_timeout_s, self._clock, self._members)
            first += len(actors)
        self._gangs = list(gangs.values())
        handles = [h for plan in plans for h in gangs[plan.role].start(plan)]
        for handle in handles:
            handle.result(self._config.start_timeout_s)
        return gangs

    def accelerators(self) -> list[str]:
        names = (key.partition(":") for key in ray.cluster_resources())
        return sorted(name for kind, _, name in names if kind == "accelerator_type")

    def waited_s(self) -> float:
        return self._clock.waited_s

    def shutdown(self) -> None:
        """End every actor; a cluster that was started for the run ends too."""
        if not ray.is_initialized():
            return
        for gang in self._gangs:
            for actor in gang.actors:
                ray.kill(actor)
        if self._group is not None:
            with suppress(Exception):  # the cluster may be gone already
                remove_placement_group(self._group)
        ray.shutdown()

    def _place(self, plans: Sequence[GangPlan], bundles: list[dict[str, float]]) -> PlacementGroup:
        self._refuse_shortfall(plans)
        group = placement_group(bundles, strategy="PACK")
        if not group.wait(self._config.start_timeout_s):
            free = ray.available_resources()
            raise PlacementError(
                [
                    Shortfall(
                        role=p.role,
                        resource="GPU" if p.resources.gpus else "CPU",
                        asked=len(p.arguments) * (p.resources.gpus or p.resources.cpus),
                        available=free.get("GPU" if p.resources.gpus else "CPU", 0),
                    )
                    for p in plans
                ],
                fix=f"others hold the rest, for {self._config.start_timeout_s:g} s now: wait for them, or ask for less",
            )
        return group

    def _refuse_shortfall(self, plans: Sequence[GangPlan]) -> None:
        """What each role lacks once the roles before it have been served from everything the cluster has."""
        left = dict(ray.cluster_resources())
        short = []
        for plan in plans:
            for resource, each in (("CPU", plan.resources.cpus), ("GPU", plan.resources.gpus)):
                asked, available = each * len(plan.arguments), left.get(resource, 0.0)
                if asked > available:
                    short.append(Shortfall(role=plan.role, resource=resource, asked=asked, available=available))
                left[resource] = max(0.0, available - asked)
        if short:
            raise PlacementError(short)

    def _actor(self, plan: GangPlan, group: PlacementGroup, bundle: int, index: int) -> Any:
        log_file = None if self._logs is None else str(self._logs / f"{plan.role}-{index}.log")
        return (
            ray.remote(Host)
            .options(
                num_cpus=plan.resources.cpus,
                num_gpus=plan.resources.gpus,
                max_restarts=0,
                max_concurrency=1,  # methods run on the process's main thread
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
                runtime_env={"env_vars": dict(plan.resources.environment)},
            )
            .remote(plan.role, index, log_file)
        )
