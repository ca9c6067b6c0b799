"""Number of GPUs of a running cluster, to decide how many runs it holds at a time."""

from __future__ import annotations

import ray

from orchestrator.cluster.ray_start import connect
from orchestrator.config import ClusterConfig


def num_gpus(config: ClusterConfig) -> float:
    """Return the number of GPUs of the cluster that runs with this config use.

    Raises:
        ClusterError: if the cluster cannot be reached or is not safe to use.
    """
    was_connected = ray.is_initialized()
    if not was_connected:
        connect(config)
    try:
        return float(ray.cluster_resources().get("GPU", 0.0))
    finally:
        if not was_connected:
            ray.shutdown()
