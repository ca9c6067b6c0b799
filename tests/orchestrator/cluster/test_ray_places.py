"""Places of workers: what can never fit, and the words for what a run waits for."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from orchestrator.cluster.base import GangPlan, Resources
from orchestrator.cluster.ray_places import needs, refuse_misfits, room_text
from orchestrator.errors import ClusterError, PlacementError


def plan(role: str, members: int, *, cpus: float = 1.0, gpus: float = 1.0) -> GangPlan:
    return GangPlan(role=role, start=object, arguments=[{}] * members, resources=Resources(cpus=cpus, gpus=gpus))


EIGHT = {"CPU": 32.0, "GPU": 8.0, "memory": 1e9}


def test_a_member_without_a_gpu_asks_for_none() -> None:
    assert needs(plan("reward", 2, gpus=0.0)) == {"CPU": 1.0}
    assert needs(plan("policy", 2, cpus=4.0)) == {"CPU": 4.0, "GPU": 1.0}


def test_what_the_empty_cluster_has_no_room_for_is_refused_by_role() -> None:
    with pytest.raises(PlacementError) as refused:
        refuse_misfits([plan("policy", 8), plan("rollout", 10)], [EIGHT, EIGHT])
    shortfalls = [(s.role, s.resource, s.asked, s.available) for s in refused.value.shortfalls]
    assert shortfalls == [("rollout", "GPU", 10, 8)]
    refuse_misfits([plan("policy", 8), plan("rollout", 8)], [EIGHT, EIGHT])


def test_a_worker_that_is_larger_than_every_machine_is_refused() -> None:
    with pytest.raises(ClusterError, match="no machine has room for one policy worker: 1 GPU and 40 CPUs"):
        refuse_misfits([plan("policy", 1, cpus=40.0)], [EIGHT, EIGHT])
    head_without_gpus = {"CPU": 64.0}
    with pytest.raises(ClusterError, match="a machine has 64 CPUs"):
        refuse_misfits([plan("policy", 1, cpus=40.0)], [head_without_gpus, EIGHT])


@pytest.mark.parametrize(
    ("free", "text"),
    [
        ({"GPU": 3.0, "CPU": 60.0}, "waits for 8 GPUs: 3 free"),
        ({"CPU": 5.0}, "waits for 8 GPUs: 0 free; 16 CPUs: 5 free"),
        ({"GPU": 8.0, "CPU": 60.0}, "waits for 8 GPUs: enough free, but on machines without room for a worker"),
    ],
)
def test_a_run_says_what_it_waits_for(free: Mapping[str, float], text: str) -> None:
    assert room_text([plan("policy", 4, cpus=2.0), plan("rollout", 4, cpus=2.0)], free) == text
