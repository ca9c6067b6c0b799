"""Devices of an attempt: record them with its logs, and check that the run fits."""

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
    """Check that every role fits on the cluster's largest GPU. Write `devices.json` to the log directory `logs`.

    If the planner does not know all GPUs of the cluster, nothing is checked.

    Raises:
        BadInput: a role does not fit.
    """
    accelerators = cluster.accelerators()
    body = {"cuda": cluster.cuda, "accelerators": accelerators}
    disk.write_atomic(logs / "devices.json", json.dumps(body) + "\n")
    gpus = [of_ray(name) for name in accelerators]
    known = [gpu for gpu in gpus if gpu is not None]
    if cluster.cuda and known and len(known) == len(gpus):
        refuse_what_cannot_fit([config], max(known, key=lambda gpu: gpu.memory_bytes))


def devices_of(plans: Sequence[GangPlan], cuda: bool) -> dict[str, float]:
    """Return the number of devices that each role reserves: GPUs, or workers on a cluster without GPUs."""
    return {p.role: float(len(p.arguments) * (p.resources.gpus if cuda else 1)) for p in plans}
