"""Print which recipes Ray can place on a cluster of nodes whose GPUs exist only in its configuration.

    python tests/stack/fake_gpus.py NODES GPUS < [[recipe, [override, …]], …]  →  {"accelerators": […], "placed": […]}

A process keeps the token of its first cluster, so each cluster needs a process of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WAIT_FOR_ROOM_S = 20.0


def main(num_nodes: int, gpus_per_node: int, recipes: list[tuple[str, list[str]]]) -> dict[str, Any]:
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray.cluster_utils import Cluster

    from orchestrator.cluster.ray_cluster import RayCluster
    from orchestrator.config import ClusterConfig

    maybe_enable_token_auth_if_token_available()
    node = {
        "num_cpus": 32,
        "num_gpus": gpus_per_node,
        "resources": {"accelerator_type:H100": 1},
        "object_store_memory": 80 * 2**20,
    }
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(num_nodes - 1):
            nodes.add_node(**node)
        nodes.wait_for_nodes()
        config = ClusterConfig(address=nodes.address, device="cuda", wait_for_room_s=WAIT_FOR_ROOM_S)
        cluster = RayCluster(config)
        placed = [is_placed(cluster, recipe, overrides) for recipe, overrides in recipes]
        found = {"accelerators": cluster.accelerators(), "placed": placed}
        cluster.shutdown()
        return found
    finally:
        nodes.shutdown()


def is_placed(cluster: Any, recipe: str, overrides: list[str]) -> bool:
    """Return whether Ray finds a place for every actor of the recipe's last stage, without starting any."""
    from ray.util.placement_group import remove_placement_group

    from orchestrator.config import load
    from orchestrator.errors import PlacementError
    from orchestrator.pipeline.roles import gang_plans

    plans = gang_plans(load(ROOT / "configs" / recipe, overrides).stages[-1], cuda=True, max_steps=1)
    try:
        group = cluster._places.find(plans, lambda text: None)
    except PlacementError:
        return False
    remove_placement_group(group)
    return True


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        token = Path(directory) / "token"
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin))))
