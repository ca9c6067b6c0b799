"""The actors of one role, and what it takes to fill the place of one that is lost."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray

from orchestrator.cluster.base import Gang, GangPlan, Restart
from orchestrator.cluster.heartbeat import HeartbeatMonitor
from orchestrator.cluster.ray_calls import Clock, LostWorker, Members, RayHandle, handles_in, with_slots
from orchestrator.config import ClusterConfig
from orchestrator.errors import FleetExhausted, WorkerFailed

W = TypeVar("W")
R = TypeVar("R")
P = ParamSpec("P")


class RayGang(Generic[W]):
    """Members by rank. `make(rank)` makes the actor that fills a place, in its bundle; `wait_for_places` returns when
    every bundle has a machine, and raises PlacementError when there is none for it."""

    def __init__(
        self,
        plan: GangPlan,
        make: Callable[[int], Any],
        config: ClusterConfig,
        *,
        clock: Clock,
        heartbeats: HeartbeatMonitor,
        members: Members,
        on_restart: Callable[[Restart], None],
        wait_for_places: Callable[[], None],
    ) -> None:
        self.role, self._plan, self._make, self._on_restart = plan.role, plan, make, on_restart
        self._wait_for_places = wait_for_places
        self._config, self.clock, self.heartbeats, self.members = config, clock, heartbeats, members
        self.deadline_s, self.heartbeat_timeout_s = config.call_timeout_s, config.heartbeat_timeout_s
        self.actors = [make(rank) for rank in range(len(plan.arguments))]
        members.update({actor._actor_id.hex(): (self, rank) for rank, actor in enumerate(self.actors)})
        self._restore_state: Callable[[Gang[Any]], None] | None = None
        self._calls: list[weakref.ref[RayHandle[Any]]] = []  # that may have to be made again, in their order
        self._restarting = False
        self.num_restarts = 0

    def __len__(self) -> int:
        return len(self.actors)

    def meeting_point(self) -> tuple[str, int]:
        """Address of member 0's machine and a port that is free there."""
        handle: RayHandle[tuple[str, int]] = RayHandle(
            self, 0, "meeting_point", lambda actor: _alone(actor.meeting_point.remote())
        )
        return handle.result()

    def start(self, ranks: Sequence[int] | None = None) -> list[RayHandle[None]]:
        """Start the workers of these places, all by default."""
        address, port = self.meeting_point() if self._plan.meet else ("", 0)
        meeting = {"address": address, "port": port} if self._plan.meet else {}
        return self._fan_out(
            [self._start(rank, meeting) for rank in (range(len(self.actors)) if ranks is None else ranks)]
        )

    def _start(self, rank: int, meeting: Mapping[str, Any]) -> RayHandle[None]:
        plan, arguments = self._plan, {**self._plan.arguments[rank], **meeting}
        return RayHandle(self, rank, "start", lambda actor: _alone(actor.start.remote(plan.start, arguments)))

    # ---------------------------------------------------------------------------------------- calls

    def one(self, method: Callable[Concatenate[W, P], R], *args: Any, **kwargs: Any) -> RayHandle[R]:
        return self._call(0, method, args, kwargs)

    def all(self, method: Callable[Concatenate[W, P], R], *args: Any, **kwargs: Any) -> list[RayHandle[R]]:
        return self._fan_out([self._call(i, method, args, kwargs) for i in range(len(self.actors))])

    def each(self, method: Callable[Concatenate[W, P], R], arguments: Sequence[tuple[Any, ...]]) -> list[RayHandle[R]]:
        if len(arguments) != len(self.actors):
            raise ValueError(f"{len(arguments)} sets of arguments for the {len(self.actors)} members of {self.role}")
        return self._fan_out([self._call(i, method, args, {}) for i, args in enumerate(arguments)])

    def _call(
        self, rank: int, method: Callable[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> RayHandle[R]:
        inputs, retryable = list(handles_in(args, kwargs)), self.restarts_members
        if not retryable:  # what it is given must be good before; it could not begin earlier
            for given in inputs:
                if given.gang.restarts_members:
                    given.wait()

        def submit(actor: Any) -> tuple[Any, Any]:
            refs: list[Any] = []
            spec_args = [with_slots(a, refs) for a in args]
            spec_kwargs = {k: with_slots(v, refs) for k, v in kwargs.items()}
            value, receipt = actor.call.remote(method.__name__, spec_args, spec_kwargs, *refs)
            return value, receipt

        handle: RayHandle[R] = RayHandle(self, rank, method.__name__, submit, inputs, retryable=retryable)
        if retryable:
            self._calls = [c for c in self._calls if (h := c()) is not None and not h.is_done()]
            self._calls.append(weakref.ref(handle))
        return handle

    def _fan_out(self, handles: list[RayHandle[R]]) -> list[RayHandle[R]]:
        together = tuple(weakref.ref(h) for h in handles)
        for handle in handles:
            handle.fan_out = together
        return handles

    # ---------------------------------------------------------------------------------------- restarts

    def when_restarted(self, restore_state: Callable[[Gang[Any]], None]) -> None:
        self._restore_state = restore_state

    @property
    def restarts_members(self) -> bool:
        return self._plan.restarts > 0 and not self._restarting

    def restart(self, loss: LostWorker) -> None:
        """Fill the place of a member that is lost, or the places of all where they meet in a process group, and ask
        again what they owed.

        Raises:
            FleetExhausted: when the role has used up its restarts.
            PlacementError: when the machine that it was on is gone, and no other has room for it.
            WorkerFailed: when the new member could not be brought to the state of the others.
        """
        if self.actors[loss.rank]._actor_id.hex() != loss.actor:
            return  # another call that it owed has told of it before
        ranks = range(len(self.actors)) if self._plan.meet else [loss.rank]
        while True:
            if self.num_restarts >= self._plan.restarts:
                tries = loss.call.tries if loss.call is not None else 0
                raise FleetExhausted(loss.error, loss.method, restarts=self.num_restarts, of_this_call=tries)
            self.num_restarts += 1
            self._tell(loss)
            try:
                self._refill(ranks)
                break
            except WorkerFailed as error:
                loss = LostWorker(self, loss.rank, loss.actor, error, "start", loss.call)
        self._ask_again(ranks)

    def _tell(self, loss: LostWorker) -> None:
        error = loss.error
        self._on_restart(
            Restart(
                role=self.role,
                rank=loss.rank,
                pid=error.pid,
                why=error.problems[0].what,
                method=loss.method,
                number=self.num_restarts,
                limit=self._plan.restarts,
            )
        )

    def _refill(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            old = self.actors[rank]
            ray.kill(old)  # a stopped process is ended by its node a few seconds later, before the next one begins
            self.heartbeats.forget(old._actor_id.hex())
        self._wait_for_places()
        for rank in ranks:
            self.actors[rank] = actor = self._make(rank)
            self.members[actor._actor_id.hex()] = (self, rank)
        self._restarting = True  # what fails now fails the restart
        try:
            for handle in self.start(ranks):
                handle.result(self._config.start_timeout_s)
            if self._restore_state is not None:
                self._restore_state(self._some(ranks))
        finally:
            self._restarting = False

    def _some(self, ranks: Sequence[int]) -> RayGang[W]:
        some = copy.copy(self)
        some.actors = [self.actors[rank] for rank in ranks]
        return some

    def _ask_again(self, ranks: Sequence[int]) -> None:
        calls = [h for c in self._calls if (h := c()) is not None and h.rank in ranks]
        # Who meets works together: where one of them has to answer again, all of them have to.
        torn = {id(h.fan_out) for h in calls if self._plan.meet and h.is_lost()}
        for handle in calls:
            handle.resubmit(together=id(handle.fan_out) in torn)


def _alone(ref: Any) -> tuple[Any, Any]:
    """A small answer is its own receipt."""
    return ref, ref
