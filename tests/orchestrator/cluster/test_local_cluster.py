"""Gangs of plain objects in this process."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.base import GangPlan, Resources, wait
from orchestrator.cluster.local import LocalCluster, LocalGang


class Adder:
    """Worker that adds an argument to its own number."""

    def __init__(self, number: int, **rendezvous: Any) -> None:
        self.number, self.rendezvous = number, rendezvous

    def add(self, other: int = 0, *, times: int = 1) -> int:
        return (self.number + other) * times

    def where(self) -> dict[str, Any]:
        return self.rendezvous

    def total(self, parts: list[int]) -> int:
        return sum(parts)


class FakeAdder:
    def __init__(self, number: int) -> None:
        self.number = number

    def add(self, other: int = 0) -> str:
        return f"{self.number} + {other}?"


GANG = LocalGang("adder", [Adder(10), Adder(20)])


def plan(role: str, *, meet: bool = False) -> GangPlan:
    return GangPlan(role=role, start=Adder, arguments=[{"number": 1}, {"number": 2}], resources=Resources(), meet=meet)


def test_one_all_and_each() -> None:
    assert len(GANG) == 2
    assert GANG.one(Adder.add, 1).result() == 11
    assert wait(GANG.all(Adder.add, 1, times=2)) == [22, 42]
    assert wait(GANG.each(Adder.add, [(1,), (2,)])) == [11, 22]


def test_each_needs_arguments_for_every_member() -> None:
    with pytest.raises(ValueError, match="shorter than argument 1"):
        GANG.each(Adder.add, [(1,)])


def test_handles_are_replaced_by_their_results() -> None:
    handles = GANG.all(Adder.add)
    assert GANG.one(Adder.add, handles[1]).result() == 30
    assert GANG.one(Adder.total, handles).result() == 30
    assert GANG.one(Adder.total, (handles[0], 5)).result() == 15
    assert GANG.one(Adder.add, times=handles[0]).result() == 100


def test_a_cluster_starts_every_member_of_every_plan() -> None:
    gangs = LocalCluster().spawn([plan("alone"), plan("together", meet=True)])
    assert list(gangs) == ["alone", "together"]
    assert wait(gangs["alone"].all(Adder.add)) == [1, 2]
    assert gangs["alone"].meeting_point() == ("127.0.0.1", 0)
    assert wait(gangs["alone"].all(Adder.where)) == [{}, {}]
    assert wait(gangs["together"].all(Adder.where)) == [{"address": "127.0.0.1", "port": 0}] * 2


def test_stand_ins_are_called_by_the_name_of_the_method() -> None:
    gangs = LocalCluster({"adder": FakeAdder}).spawn([plan("adder"), plan("other")])
    assert wait(gangs["adder"].all(Adder.add, 3)) == ["1 + 3?", "2 + 3?"]
    assert wait(gangs["other"].all(Adder.add, 3)) == [4, 5]
