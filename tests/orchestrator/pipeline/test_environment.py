"""Environment of the workers: what they see of GPUs and network, and how many threads compute."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from shipped import CONFIGS

from orchestrator.config import load
from orchestrator.pipeline.environment import ALLOCATOR, NETWORK
from orchestrator.pipeline.roles import gang_plans

SEGMENTS, EXPANDABLE = "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n in ALLOCATOR or n.startswith(NETWORK)]:
        monkeypatch.delenv(name)


def environments(*overrides: str, cuda: bool = True, recipe: str = "ppo.yaml") -> dict[str, Mapping[str, str]]:
    config = load(CONFIGS / "quickstart" / recipe, overrides).stages[-1]
    return {plan.role: plan.resources.environment for plan in gang_plans(config, cuda=cuda, max_steps=1)}


def test_learners_and_reference_allocate_expandable_segments_and_engines_do_not() -> None:
    assert {role: e.get(SEGMENTS) for role, e in environments().items()} == {
        "policy": EXPANDABLE,
        "critic": EXPANDABLE,
        "reference": EXPANDABLE,
        "rollout": None,
        "reward": None,
    }
    assert not any(SEGMENTS in e for e in environments(cuda=False).values())


def test_a_teacher_and_a_reward_model_allocate_as_learners_do(tmp_path: Path) -> None:
    assert environments(recipe="distill.yaml")["teacher"][SEGMENTS] == EXPANDABLE
    assert environments(f"reward=[{{type: model, path: {tmp_path}}}]")["reward"][SEGMENTS] == EXPANDABLE


@pytest.mark.parametrize("name", ALLOCATOR)
def test_the_drivers_own_allocator_replaces_ours(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Test both names: torch reads PYTORCH_CUDA_ALLOC_CONF first, so ours beside the other one would win."""
    monkeypatch.setenv(name, "max_split_size_mb:512")
    policy = environments()["policy"]
    assert {n: policy[n] for n in ALLOCATOR if n in policy} == {name: "max_split_size_mb:512"}


def test_workers_without_a_gpu_see_none() -> None:
    assert {role: e.get("CUDA_VISIBLE_DEVICES") for role, e in environments().items()} == {
        "policy": None,  # Ray's choice
        "critic": None,
        "reference": None,
        "rollout": None,
        "reward": "",
    }
    assert {e.get("CUDA_VISIBLE_DEVICES") for e in environments(cuda=False).values()} == {""}


def test_an_offloaded_optimizer_computes_on_the_cores_of_its_worker() -> None:
    offloaded = ("policy.offload_optimizer=true", "critic.offload_optimizer=false", "policy.zero_stage=3")
    threads = {role: e["OMP_NUM_THREADS"] for role, e in environments(*offloaded, "cluster.cpus_per_worker=12").items()}
    assert threads == {"policy": "12", "critic": "1", "reference": "1", "rollout": "1", "reward": "1"}
    assert environments(*offloaded, "cluster.cpus_per_worker=0.5")["policy"]["OMP_NUM_THREADS"] == "1"
    # On a CPU the order of sums must not depend on the cores.
    on_cpu = environments(*offloaded, "cluster.cpus_per_worker=12", cuda=False)
    assert {e["OMP_NUM_THREADS"] for e in on_cpu.values()} == {"1"}


@pytest.mark.parametrize("cuda", [True, False])
def test_every_worker_gets_the_drivers_network(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    given = {
        "NCCL_SOCKET_IFNAME": "bond0",
        "NCCL_IB_HCA": "mlx5",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "GLOO_SOCKET_IFNAME": "bond0",
    }
    for name, value in {**given, "MY_NCCL_TOKEN": "a secret", "WANDB_API_KEY": "a secret"}.items():
        monkeypatch.setenv(name, value)
    for role, environment in environments(cuda=cuda).items():
        assert given.items() <= environment.items(), role
        assert "a secret" not in environment.values(), role


def test_an_engine_meets_on_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test that the driver's address is not passed: on another machine vLLM could not listen on it."""
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.1")
    for cuda in (True, False):
        for role, environment in environments(cuda=cuda).items():
            assert environment.get("VLLM_HOST_IP") == ("127.0.0.1" if role == "rollout" else None)
