"""Places of a run's workers: one placement group for all gangs, so that all of them get their places, or none does.

refused: can never fit ◄── plans ──► waits for its turn ──► asks Ray ──► waits for room ──► looks again ──► placed
                                          ▲                                                      │
                                          └────── gives the places back ◄── a job ahead has none ┘
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from orchestrator.cluster.base import GangPlan
from orchestrator.cluster.turn import TICK_S, Turn, group_name
from orchestrator.config import ClusterConfig
from orchestrator.errors import ClusterError, PlacementError, Problem, Shortfall

MACHINE_LOST = "a machine of the cluster was lost, and the others have no room: bring it back, or ask for less"
FULL = "other jobs hold the rest: wait for them, or ask for less"
RESOURCES = ("GPU", "CPU")


@dataclass(kw_only=True, slots=True)
class Places:
    """Finder of places on one cluster.

    `turn` None: this process is no job of the cluster. `holding`: run directory that this process holds the lock of;
    empty: none. `check` raises if the cluster is lost.
    """

    config: ClusterConfig
    turn: Turn | None
    holding: str
    check: Callable[[], object]
    clock: Callable[[], float] = time.monotonic

    def find(self, plans: Sequence[GangPlan], on_wait: Callable[[str], None]) -> PlacementGroup:
        """Return a group with a bundle for each member, in the order of the plans, when all of them have their places.

        `on_wait`: see `Cluster.spawn`.

        Raises:
            PlacementError: the cluster is too small, or had no room for `cluster.wait_for_room_s`.
            ClusterError: a member is larger than every machine.
        """
        if not self.config.grows:
            refuse_misfits(plans, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        tell = self._with_limit(on_wait, plans)
        while True:
            if self.turn is not None:
                self.turn.wait(tell, self.holding)
            group = placement_group(
                [needs(plan) for plan in plans for _ in plan.arguments],
                strategy="PACK",
                name=group_name(self.turn.id) if self.turn else "",
            )
            try:
                while not group.wait(TICK_S):
                    tell(room_text(plans, ray.available_resources()))
                if self.turn is None or not self.turn.waits_for(self.holding):
                    on_wait("")
                    return group
            except BaseException:
                _remove(group)
                raise
            _remove(group)  # for a job ahead, which is between two stages

    def wait_again(self, group: PlacementGroup, plans: Sequence[GangPlan]) -> None:
        """Wait until members of a lost machine have other places.

        Raises:
            PlacementError: there is no room for `cluster.start_timeout_s`.
        """
        if not group.wait(self.config.start_timeout_s):
            raise too_long(plans, self.config.start_timeout_s, MACHINE_LOST)

    def _with_limit(self, on_wait: Callable[[str], None], plans: Sequence[GangPlan]) -> Callable[[str], None]:
        """Return `on_wait`, which then also raises after `cluster.wait_for_room_s`, or if the cluster is lost."""
        limit_s, began = self.config.wait_for_room_s, self.clock()

        def tell(text: str) -> None:
            on_wait(text)
            self.check()
            if limit_s is not None and self.clock() - began >= limit_s:
                raise too_long(plans, limit_s, FULL)

        return tell


def needs(plan: GangPlan) -> dict[str, float]:
    """Return the bundle of one member. Example: `{"CPU": 1.0, "GPU": 1.0}`."""
    return {"CPU": plan.resources.cpus, **({"GPU": plan.resources.gpus} if plan.resources.gpus else {})}


def room_text(plans: Sequence[GangPlan], free: Mapping[str, float]) -> str:
    """Return a line about what a run waits for. Example: `waits for 8 GPUs: 3 free`."""
    asked = dict.fromkeys(RESOURCES, 0.0)
    for plan in plans:
        for resource, amount in needs(plan).items():
            asked[resource] += amount * len(plan.arguments)
    short = [resource for resource, amount in asked.items() if amount > free.get(resource, 0.0)]
    if not short:
        scarce = "GPU" if asked["GPU"] else "CPU"
        return f"waits for {_count(asked[scarce], scarce)}: enough free, but on machines without room for a worker"
    return "waits for " + "; ".join(f"{_count(asked[r], r)}: {free.get(r, 0.0):g} free" for r in short)


def refuse_misfits(plans: Sequence[GangPlan], machines: Sequence[Mapping[str, float]]) -> None:
    """Refuse what the cluster has no room for even when it is empty. Roles are served in order, from what is left.

    `machines`: resources of each one.

    Raises:
        PlacementError: all machines together are too small.
        ClusterError: a member is larger than every machine.
    """
    left = {resource: sum(machine.get(resource, 0.0) for machine in machines) for resource in RESOURCES}
    short = list[Shortfall]()
    for plan in plans:
        for resource, each in (("CPU", plan.resources.cpus), ("GPU", plan.resources.gpus)):
            asked, available = each * len(plan.arguments), left[resource]
            if asked > available:
                short.append(Shortfall(role=plan.role, resource=resource, asked=asked, available=available))
            left[resource] = max(0.0, available - asked)
    if short:
        raise PlacementError(short)
    problems = [
        Problem(
            what=f"no machine has room for one {plan.role} worker: {_amounts(needs(plan))}",
            why="; ".join(sorted({f"a machine has {_amounts(machine)}" for machine in machines})),
            fix="ask for less per worker (cluster.cpus_per_worker), or use larger machines",
        )
        for plan in plans
        if not any(all(machine.get(r, 0.0) >= amount for r, amount in needs(plan).items()) for machine in machines)
    ]
    if problems:
        raise ClusterError(problems)


def too_long(plans: Sequence[GangPlan], waited_s: float, fix: str) -> PlacementError:
    free = ray.available_resources()
    return PlacementError(
        [
            Shortfall(
                role=plan.role,
                resource="GPU" if plan.resources.gpus else "CPU",
                asked=len(plan.arguments) * (plan.resources.gpus or plan.resources.cpus),
                available=free.get("GPU" if plan.resources.gpus else "CPU", 0),
            )
            for plan in plans
        ],
        fix=f"{fix} (waited {waited_s:g} s)",
    )


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(_count(resources[r], r) for r in RESOURCES if r in resources)


def _count(amount: float, resource: str) -> str:
    return f"{amount:g} {resource}{'' if amount == 1 else 's'}"


def _remove(group: PlacementGroup) -> None:
    with suppress(Exception):  # the cluster may be gone already
        remove_placement_group(group)
