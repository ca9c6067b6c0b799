"""What the planner says fits is what Ray places: real placement groups on nodes whose GPUs are only numbers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.base import GangPlan
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import ClusterConfig, RunConfig, load
from orchestrator.errors import PlacementError
from orchestrator.plan.advice import as_overrides
from orchestrator.plan.gpus import GPUS, GPUS_PER_NODE
from orchestrator.plan.plan import make_plan
from orchestrator.run.roles import gang_plans

pytestmark = pytest.mark.stack

CONFIGS = Path(__file__).parents[2] / "configs"
NODES = 2
H100 = GPUS["H100"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Two nodes of eight GPUs that are not there."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray.cluster_utils import Cluster

    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        maybe_enable_token_auth_if_token_available()
        node = {
            "num_cpus": 32,
            "num_gpus": GPUS_PER_NODE,
            "resources": {"accelerator_type:H100": 1},
            "object_store_memory": 80 * 2**20,
        }
        nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        for _ in range(NODES - 1):
            nodes.add_node(**node)
        nodes.wait_for_nodes()
        connected = RayCluster(ClusterConfig(address=nodes.address, device="cuda", start_timeout_s=20))
        yield connected
        connected.shutdown()
        nodes.shutdown()


def placed(cluster: RayCluster, config: RunConfig) -> bool:
    """Whether Ray finds a place for every actor of the run; none is started."""
    from ray.util.placement_group import remove_placement_group

    plans: list[GangPlan] = gang_plans(config, cuda=True, max_steps=1)
    bundles = [
        {"CPU": plan.resources.cpus, **({"GPU": plan.resources.gpus} if plan.resources.gpus else {})}
        for plan in plans
        for _ in plan.arguments
    ]
    try:
        group = cluster._place(plans, bundles)
    except PlacementError:
        return False
    remove_placement_group(group)
    return True


def test_it_knows_its_gpus(cluster: RayCluster) -> None:
    assert cluster.cuda
    assert cluster.accelerators() == ["H100"]


@pytest.mark.parametrize("recipe", ["8b/grpo.yaml", "8b/dpo.yaml", "8b/ppo_reward_model.yaml", "8b/distill.yaml"])
def test_placements_that_fit_are_placed(cluster: RayCluster, recipe: str) -> None:
    gpus = NODES * GPUS_PER_NODE
    loaded = load(CONFIGS / recipe)
    stage = loaded.stages[-1]
    plan = make_plan(stage, H100, before=loaded.before(stage), given=gpus)
    assert plan.placements
    for placement in plan.placements[:3]:
        config = load(CONFIGS / recipe, as_overrides(placement.changes)).stages[-1]
        assert placed(cluster, config), placement.changes


def test_engines_of_whole_nodes_are_placed(cluster: RayCluster) -> None:
    """An engine on eight GPUs takes a node, and the learner the other."""
    overrides = ["rollout.tensor_parallel_size=8", "rollout.num_engines=1", "policy.num_ranks=8"]
    assert placed(cluster, load(CONFIGS / "8b/grpo.yaml", overrides).stages[-1])


@pytest.mark.parametrize(
    "overrides",
    [
        ["policy.num_ranks=13", "rollout.num_engines=4"],  # 17 of 16
        ["policy.num_ranks=8", "rollout.num_engines=1", "rollout.tensor_parallel_size=16"],  # no node has 16
    ],
)
def test_what_the_plan_refuses_is_not_placed(cluster: RayCluster, overrides: list[str]) -> None:
    config = load(CONFIGS / "8b/grpo.yaml", overrides).stages[-1]
    assert not make_plan(config, H100, given=NODES * GPUS_PER_NODE).fits
    assert not placed(cluster, config)
