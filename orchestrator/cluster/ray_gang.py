"""The actors of one role: calls to them, and restarts of those that are lost."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray

from orchestrator.cluster.base import Gang, GangPlan, Restart
from orchestrator.cluster.heartbeat import HeartbeatMonitor
from orchestrator.cluster.ray_calls import Call, Clock, LostWorker, Members
from orchestrator.cluster.ray_handle import RayHandle, handles_in, with_slots
from orchestrator.cluster.ray_recovery import is_lost, resubmit
from orchestrator.cluster.ray_waiting import START
from orchestrator.config import ClusterConfig
from orchestrator.errors import FleetExhausted, WorkerFailed

W = TypeVar("W")
R = TypeVar("R")
P = ParamSpec("P")


class RayGang(Generic[W]):
    """Members of one role, by rank."""

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
        """Create the actors; `start` starts their workers.

        Args:
            make: creates the actor of a rank, in its bundle of the placement group.
            members: the cluster's table of actors; the gang adds its own.
            wait_for_places: returns when every bundle has a machine. Raises PlacementError if there is none.
        """
        self.role, self._plan, self._make, self._on_restart = plan.role, plan, make, on_restart
        self._wait_for_places = wait_for_places
        self._config, self.clock, self.heartbeats, self.members = config, clock, heartbeats, members
        self.progress_timeout_s, self.heartbeat_timeout_s = config.progress_timeout_s, config.heartbeat_timeout_s
        self.actors = [make(rank) for rank in range(len(plan.arguments))]
        members.update({actor._actor_id.hex(): (self, rank) for rank, actor in enumerate(self.actors)})
        self._restore_state: Callable[[Gang[Any]], None] | None = None
        self._calls: list[weakref.ref[RayHandle[Any]]] = []  # calls that a restart may have to resubmit, in order
        self._restarting = False
        self.num_restarts = 0

    def __len__(self) -> int:
        return len(self.actors)

    def meeting_point(self) -> tuple[str, int]:
        """Return the address of member 0's machine and a port that is free there."""
        handle: RayHandle[tuple[str, int]] = RayHandle(
            self, 0, "meeting_point", lambda actor: _own_receipt(actor.meeting_point.remote())
        )
        return handle.result(self._config.start_timeout_s)  # its process may not have started yet

    def start(self, ranks: Sequence[int] | None = None) -> list[RayHandle[None]]:
        """Start the workers of these ranks (default: all)."""
        address, port = self.meeting_point() if self._plan.meet else ("", 0)
        meeting = {"address": address, "port": port} if self._plan.meet else {}
        return self._fan_out(
            [self._start(rank, meeting) for rank in (range(len(self.actors)) if ranks is None else ranks)]
        )

    def _start(self, rank: int, meeting: Mapping[str, Any]) -> RayHandle[None]:
        plan, arguments = self._plan, {**self._plan.arguments[rank], **meeting}
        return RayHandle(self, rank, START, lambda actor: _own_receipt(actor.start.remote(plan.start, arguments)))

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
        if not retryable:  # it cannot be submitted again after its inputs were lost, so they must have succeeded before
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
            self._calls = [c for c in self._calls if (h := c()) is not None and not h.fan_out_is_done()]
            self._calls.append(weakref.ref(handle))
        return handle

    def _fan_out(self, handles: list[RayHandle[R]]) -> list[RayHandle[R]]:
        fan_out = tuple(weakref.ref[Call](h) for h in handles)
        for handle in handles:
            handle.fan_out = fan_out
        return handles

    # ---------------------------------------------------------------------------------------- restarts

    def when_restarted(self, restore_state: Callable[[Gang[Any]], None]) -> None:
        self._restore_state = restore_state

    @property
    def restarts_members(self) -> bool:
        return self._plan.restarts > 0 and not self._restarting

    def restart(self, loss: LostWorker) -> None:
        """Replace a lost member and resubmit its unfinished calls. Members that meet are all replaced.

        Raises:
            FleetExhausted: the role has used up its restarts.
            PlacementError: the member's machine is gone, and no other has room for it.
            WorkerFailed: the state of the new member could not be restored.
        """
        if self.actors[loss.rank]._actor_id.hex() != loss.actor:
            return  # it was replaced already, for another call
        ranks = range(len(self.actors)) if self._plan.meet else [loss.rank]
        while True:
            if self.num_restarts >= self._plan.restarts:
                num_losses = loss.call.num_losses if loss.call is not None else 0
                raise FleetExhausted(loss.error, loss.method, restarts=self.num_restarts, of_this_call=num_losses)
            self.num_restarts += 1
            self._report(loss)
            try:
                self._replace(ranks)
                break
            except WorkerFailed as error:
                loss = LostWorker(self, loss.rank, loss.actor, error, "start", loss.call)
        self._resubmit_unfinished(ranks)

    def _report(self, loss: LostWorker) -> None:
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

    def _replace(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            old = self.actors[rank]
            ray.kill(old)  # its node kills a stopped process a few seconds later, before the new actor starts
            self.heartbeats.forget(old._actor_id.hex())
        self._wait_for_places()
        for rank in ranks:
            self.actors[rank] = actor = self._make(rank)
            self.members[actor._actor_id.hex()] = (self, rank)
        self._restarting = True  # a failure from here on fails the restart
        try:
            for handle in self.start(ranks):
                handle.result(self._config.start_timeout_s)
            if self._restore_state is not None:
                self._restore_state(self._subset(ranks))
        finally:
            self._restarting = False

    def _subset(self, ranks: Sequence[int]) -> RayGang[W]:
        subset = copy.copy(self)
        subset.actors = [self.actors[rank] for rank in ranks]
        return subset

    def _resubmit_unfinished(self, ranks: Sequence[int]) -> None:
        calls = [h for c in self._calls if (h := c()) is not None and h.rank in ranks]
        # Members that meet run a fan-out together: if one of its calls is lost, all of them are resubmitted.
        broken = {id(h.fan_out) for h in calls if self._plan.meet and is_lost(h)}
        for call in calls:
            resubmit(call, together=id(call.fan_out) in broken)


def _own_receipt(ref: Any) -> tuple[Any, Any]:
    """Return a small result as its own receipt."""
    return ref, ref
