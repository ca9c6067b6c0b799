"""Targets: the clusters that jobs are submitted to, by name, from `targets.yaml`.

    h100:                                   # rlhf submit recipe.yaml --on h100
      engine: ray                           # local | ray | kuberay | slurm
      address: http://head:8265
      output_dir: /shared/runs
    prod:
      engine: kuberay
      context: prod
      namespace: rlhf
      image: ghcr.io/team/rlhf@sha256:…
      queue: team-a

The file is `$RLHF_TARGETS`, else `~/.config/rlhf/targets.yaml`. It names secrets and never holds one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from orchestrator.errors import BadInput, Problem

Absolute: TypeAlias = Annotated[str, Field(pattern=r"^(/|file:///)")]
Url: TypeAlias = Annotated[str, Field(pattern=r"^(s3|gs|az|file)://[^\s@?#]+$")]
Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]


class _Target(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    output_dir: Absolute | None = None  # of every stage, in place of the recipe's; None: as the recipe says
    storage: Url | None = None  # of every stage, in place of the recipe's; None: as the recipe says
    secrets: Mapping[
        str, str
    ] = {}  # variable of a job -> where the target keeps it: a file, or SECRET/KEY on Kubernetes


class LocalTarget(_Target):
    """Machine of the command: a job is a process in the background."""

    engine: Literal["local"]


class RayTarget(_Target):
    """Ray cluster that runs already, reached by its dashboard."""

    engine: Literal["ray"]
    address: str
    token_file: Path | None = None  # None: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token
    allow_open: bool = False  # accept a cluster without token authentication


class KubeRayTarget(_Target):
    """Kubernetes cluster with the KubeRay operator: each job is a RayJob with a Ray cluster of its own."""

    engine: Literal["kuberay"]
    output_dir: Absolute | None = "/runs"  # on the volume, which is mounted there
    image: str  # NAME@sha256:DIGEST
    context: str | None = None  # of kubectl; None: the current one
    namespace: Name = "default"
    queue: Name | None = None  # of Kueue; None: no Kueue
    priority_class: Name | None = None
    volume_claim: Name | None = None  # mounted at output_dir in all pods
    node_selector: Mapping[str, str] = {}  # of pods with GPUs
    tolerations: tuple[Mapping[str, str], ...] = ()  # of pods with GPUs
    gpus_per_node: Annotated[int, Field(ge=1)] = 8
    gpu: str = "H100"  # CPU: nodes without GPUs
    gpu_resource: str | None = None  # name in Kubernetes; None: nvidia.com/gpu, or amd.com/gpu for an MI300X
    cpus_per_node: Annotated[int, Field(ge=1)] = 96  # that a pod may take
    memory_gib_per_node: Annotated[int, Field(ge=1)] = 1000
    resources: Mapping[str, str] = {}  # more of each pod with GPUs, e.g. rdma/hca: "1"
    image_pull_secret: Name | None = None
    backoff_limit: Annotated[int, Field(ge=1)] = 3  # new clusters after a head or a node is lost
    operator_namespace: Name = "kuberay-system"
    egress: tuple[str, ...] = ()  # networks (CIDR) that pods reach by https; empty: none, hub and W&B are offline
    ray_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")] = "2.60.0"  # of the image


class SlurmTarget(_Target):
    """Slurm cluster: each job is an sbatch job that starts a Ray cluster on its nodes."""

    engine: Literal["slurm"]
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit: str | None = None  # Slurm's format, e.g. 2-00:00:00
    gpus_per_node: Annotated[int, Field(ge=0)] = 8  # 0: nodes without GPUs
    gpu: str = "H100"
    cpus_per_node: Annotated[int, Field(ge=1)] | None = None  # None: all cores of a node (--exclusive)
    activate: str = ""  # shell line before the job, e.g. source /shared/rlhf/.venv/bin/activate
    work_dir: Absolute | None = None  # shared directory for packages and job logs; None: `jobs` beside output_dir
    options: Mapping[Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")], Annotated[str, Field(pattern=r"^\S*$")]] = {}
    """Further options of sbatch, without dashes, e.g. constraint: h100; an option without a value has an empty one."""


Target: TypeAlias = LocalTarget | RayTarget | KubeRayTarget | SlurmTarget

_TARGETS: TypeAdapter[dict[Name, Target]] = TypeAdapter(dict[Name, Annotated[Target, Field(discriminator="engine")]])


def targets_file() -> Path:
    return Path(os.environ.get("RLHF_TARGETS") or "~/.config/rlhf/targets.yaml").expanduser()


def load_targets(path: Path | None = None) -> Mapping[str, Target]:
    """Return the targets of a file by name, and `local`, which is always there.

    Raises:
        BadInput: the file cannot be read, is not YAML, or has an unknown key or a wrong value.
    """
    path = path or targets_file()
    try:
        document = yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
        targets = _TARGETS.validate_python(document or {})
    except ValidationError as error:
        raise BadInput(
            [
                Problem(what=".".join(map(str, e["loc"])), where=str(path), why=e["msg"], fix="see docs/cluster")
                for e in error.errors()
            ]
        ) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise BadInput(Problem(what="the targets cannot be read", where=str(path), why=why, fix="mend it")) from None
    return {"local": LocalTarget(engine="local"), **targets}


def find_target(name: str | None) -> Target:
    """Return the target of a name; without one, that of `RLHF_TARGET`. Raise BadInput if there is none."""
    targets, name = load_targets(), name or os.environ.get("RLHF_TARGET")
    known = ", ".join(targets)
    if name is None:
        fix = f"give --on TARGET (known: {known}), or set RLHF_TARGET"
        raise BadInput(Problem(what="no target is given", where=str(targets_file()), fix=fix))
    if name not in targets:
        near = difflib.get_close_matches(name, targets, n=1)
        fix = f"did you mean {near[0]}?" if near else f"use one of {known}, or add it"
        raise BadInput(Problem(what=f"unknown target {name}", where=str(targets_file()), fix=fix))
    return targets[name]


def chosen_target(on: str | None = None, cluster: str | None = None) -> Target | None:
    """Return the target of `--on` or `--cluster`, else that of RLHF_TARGET or RAY_API_SERVER_ADDRESS, else None.

    Raises:
        BadInput: both options are given, or no target has this name.
    """
    if on and cluster:
        why, fix = "each names a target", "keep one of them"
        raise BadInput(Problem(what="--on and --cluster are given", where="command line", why=why, fix=fix))
    if not on and not cluster and not os.environ.get("RLHF_TARGET"):
        cluster = os.environ.get("RAY_API_SERVER_ADDRESS")
    if cluster:
        return RayTarget(engine="ray", address=cluster)
    return find_target(on) if on or os.environ.get("RLHF_TARGET") else None
