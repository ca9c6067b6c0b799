"""Handles: what the driver holds of a call, to wait for its result or to pass it on to other calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from orchestrator.cluster.ray_calls import FETCH_S, Call
from orchestrator.cluster.ray_host import Slot
from orchestrator.cluster.ray_recovery import unfetched
from orchestrator.cluster.ray_waiting import wait_for

R = TypeVar("R")


class RayHandle(Call, Generic[R]):
    """A call whose result can be waited for. Implements `base.Handle`."""

    def result(self, timeout_s: float | None = None) -> R:
        with self.gang.clock.running():
            wait_for(self, timeout_s)
            try:
                return ray.get(self.ref, timeout=FETCH_S)  # type: ignore[no-any-return]
            except RayError as error:
                raise unfetched(self, error) from None

    def wait(self) -> None:
        with self.gang.clock.running():
            wait_for(self)


def with_slots(argument: Any, refs: list[Any]) -> Any:
    """Return the argument with every handle in it replaced by a slot, and append the handle's reference to `refs`."""
    if isinstance(argument, RayHandle):
        refs.append(argument.ref)
        return Slot(len(refs) - 1)
    if isinstance(argument, list | tuple):
        return type(argument)(with_slots(a, refs) for a in argument)
    return argument


def handles_in(*arguments: Any) -> Iterator[RayHandle[Any]]:
    for argument in arguments:
        if isinstance(argument, RayHandle):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from handles_in(*argument)
        elif isinstance(argument, Mapping):
            yield from handles_in(*argument.values())
