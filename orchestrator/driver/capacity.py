"""What an attempt runs on: written down for whoever reads its timings, and asked whether the run has room on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator import disk
from orchestrator.cluster.base import Cluster, GangPlan
from orchestrator.config import RunConfig
from orchestrator.plan.gpus import of_ray
from orchestrator.plan.refuse import refuse_what_cannot_fit


def check_capacity(config: RunConfig, cluster: Cluster, logs: Path) -> None:
    """Writes `devices.json` into the attempt's log directory `logs`. GPUs that the planner does not know are let
    through: then it has no opinion.

    Raises:
        BadInput: when a role does not fit on the cluster's largest GPU.
    """
    accelerators = cluster.accelerators()
    body = {"cuda": cluster.cuda, "accelerators": accelerators}
    disk.write_atomic(logs / "devices.json", json.dumps(body) + "\n")
    gpus = [of_ray(name) for name in accelerators]
    known = [gpu for gpu in gpus if gpu is not None]
    if cluster.cuda and known and len(known) == len(gpus):
        refuse_what_cannot_fit([config], max(known, key=lambda gpu: gpu.memory_bytes))


def devices_of(plans: Sequence[GangPlan], cuda: bool) -> dict[str, float]:
    """What each role reserves: GPUs where there are any, else its workers."""
    return {p.role: float(len(p.arguments) * (p.resources.gpus if cuda else 1)) for p in plans}
