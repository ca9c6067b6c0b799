"""A cluster inside this process: the same workers, called directly. For tests of everything but Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from orchestrator.cluster.base import Gang, GangPlan, Handle

W = TypeVar("W")
R = TypeVar("R")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """Handle of a call that has ended."""

    value: R

    def result(self, timeout_s: float | None = None) -> R:
        return self.value

    def wait(self) -> None:
        pass

    def has_ended(self) -> bool:
        return True


class LocalGang(Generic[W]):
    """Gang of plain objects. A call runs to its end before it returns."""

    def __init__(self, role: str, members: Sequence[W]) -> None:
        self.role = role
        self._members = list(members)

    def __len__(self) -> int:
        return len(self._members)

    def when_restarted(self, restore_state: Callable[[Gang[W]], None]) -> None:
        pass  # members share this process, so none is restarted

    def meeting_point(self) -> tuple[str, int]:
        return "127.0.0.1", 0

    def one(self, method: Callable[Concatenate[W, P], R], *args: Any, **kwargs: Any) -> Done[R]:
        return self._call(self._members[0], method, args, kwargs)

    def all(self, method: Callable[Concatenate[W, P], R], *args: Any, **kwargs: Any) -> list[Done[R]]:
        return [self._call(member, method, args, kwargs) for member in self._members]

    def each(self, method: Callable[Concatenate[W, P], R], arguments: Sequence[tuple[Any, ...]]) -> list[Done[R]]:
        pairs = zip(self._members, arguments, strict=True)
        return [self._call(member, method, args, {}) for member, args in pairs]

    def _call(self, member: W, method: Callable[..., R], args: Sequence[Any], kwargs: dict[str, Any]) -> Done[R]:
        # By name, as an actor would: a fake may stand in for the class of the method.
        bound = getattr(member, method.__name__)
        return Done(bound(*(_value(a) for a in args), **{k: _value(v) for k, v in kwargs.items()}))


def _value(argument: Any) -> Any:
    if isinstance(argument, Done):
        return argument.value
    if isinstance(argument, list | tuple):
        return type(argument)(_value(a) for a in argument)
    return argument


class LocalCluster:
    """Cluster that runs every gang in this process. `stand_ins` replaces the workers of a role by fakes."""

    cuda = False

    def __init__(self, stand_ins: dict[str, Callable[..., Any]] | None = None) -> None:
        self._stand_ins = stand_ins or {}

    def spawn(
        self, plans: Sequence[GangPlan], on_wait: Callable[[str], None] | None = None
    ) -> dict[str, LocalGang[Any]]:
        if on_wait is not None:
            on_wait("")
        return {p.role: LocalGang(p.role, [self._start(p, arguments) for arguments in p.arguments]) for p in plans}

    def _start(self, plan: GangPlan, arguments: Mapping[str, Any]) -> Any:
        meeting = {"address": "127.0.0.1", "port": 0} if plan.meet else {}
        return self._stand_ins.get(plan.role, plan.start)(**arguments, **meeting)

    def release(self) -> None:
        pass

    def accelerators(self) -> list[str]:
        return []

    def wait_first(self, handles: Sequence[Handle[Any]]) -> None:
        pass

    def when_idle(self, work: Callable[[], object]) -> None:
        pass

    def waited_s(self) -> float:
        return 0.0

    def restarts(self) -> dict[str, int]:
        return {}

    def shutdown(self) -> None:
        pass
