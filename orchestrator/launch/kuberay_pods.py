"""Pods of a job on Kubernetes: all alike, as little privileged as can be, with a hook that lets a run save first.

/package        files of the job, copied from a ConfigMap: each pod sees that in a directory with another name
/secrets        files of Secrets, named by the target
output_dir      the shared volume: run directories, the hub's cache
/tmp, HOME      scratch of the pod: Ray's sessions, caches of compilers
/dev/shm        Ray's object store, NCCL
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from orchestrator.launch.base import JobRequest, Pods
from orchestrator.launch.targets import KubeRayTarget
from orchestrator.rundir.directory import JOB

Manifest: TypeAlias = dict[str, Any]

PACKAGE, SOURCE, SECRETS, HOME = "/package", "/package-source", "/secrets", "/home/rlhf"
FILES = "files"  # directory of the ConfigMap's files below SOURCE
OUTPUT_DIR = "/runs"  # where the volume is mounted, unless the target says
USER = 1000
HOOK_MARGIN_S = 60.0  # between the end of the hook and SIGKILL
MIN_HOOK_S = 60.0


def output_root(target: KubeRayTarget) -> str:
    """Return the directory in which the pods see the volume."""
    return target.output_dir or OUTPUT_DIR


def pod_spec(
    pods: Pods,
    request: JobRequest,
    target: KubeRayTarget,
    *,
    job: str = "",
    config_map: str = "",
    sources: Mapping[str, str] | None = None,
    command: Sequence[str] = (),
) -> Manifest:
    """Return the specification of a pod of a job.

    Args:
        job: id of the job, with the number of its repetition; empty: that of the request.
        config_map: ConfigMap with the package.
        sources: path of each file of the package -> its key in the ConfigMap; empty: there is no package.
        command: what the pod runs; empty: KubeRay starts Ray in it.
    """
    has_package = bool(sources) and not command
    resources = _resources(pods, target)
    container = {
        "name": "rlhf" if command else "ray",
        "image": target.image,
        **({"command": list(command)} if command else {}),
        "workingDir": HOME,
        "env": _environment(job or request.id, request, target),
        "resources": {"requests": resources, "limits": resources},
        "securityContext": _locked_down(),
        **({} if command else _hook(request)),
        "volumeMounts": [
            {"name": "runs", "mountPath": output_root(target)},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "home", "mountPath": HOME},
            {"name": "shm", "mountPath": "/dev/shm"},
            *([{"name": "package", "mountPath": PACKAGE, "readOnly": True}] if has_package else []),
            *([{"name": "secrets", "mountPath": SECRETS, "readOnly": True}] if request.secrets else []),
        ],
    }
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(request.grace_s),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **_placement(pods, target),
        **({"initContainers": [_copying(target)]} if has_package else {}),
        "containers": [container],
        "volumes": _volumes(pods, request, target, config_map, sources if has_package else None),
    }


def _hook(request: JobRequest) -> Manifest:
    if not request.directories:
        return {}
    wait_s = max(MIN_HOOK_S, math.ceil(request.grace_s) - HOOK_MARGIN_S)
    command = ["rlhf", "entry", "preempt", *request.directories, "--wait", f"{wait_s:.0f}"]
    return {"lifecycle": {"preStop": {"exec": {"command": command}}}}


def _placement(pods: Pods, target: KubeRayTarget) -> Manifest:
    found: Manifest = {}
    if pods.gpus and target.node_selector:
        found["nodeSelector"] = dict(target.node_selector)
    if pods.gpus and target.tolerations:
        found["tolerations"] = [dict(toleration) for toleration in target.tolerations]
    if target.priority_class and not target.queue:
        found["priorityClassName"] = target.priority_class
    if target.image_pull_secret:
        found["imagePullSecrets"] = [{"name": target.image_pull_secret}]
    return found


def _copying(target: KubeRayTarget) -> Manifest:
    resources = {"cpu": "100m", "memory": "64Mi"}
    return {
        "name": "package",
        "image": target.image,
        "command": ["cp", "-RL", f"{SOURCE}/{FILES}/.", PACKAGE],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": _locked_down(),
        "volumeMounts": [
            {"name": "package-source", "mountPath": SOURCE, "readOnly": True},
            {"name": "package", "mountPath": PACKAGE},
        ],
    }


def _locked_down() -> Manifest:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _resources(pods: Pods, target: KubeRayTarget) -> dict[str, str]:
    """Return what a pod requests, which is its limit as well: pods whose limits are higher are evicted first."""
    found = {"cpu": str(pods.cpus), "memory": f"{pods.memory_gib}Gi"}
    if pods.gpus:
        default = "amd.com/gpu" if target.gpu.upper().startswith("MI") else "nvidia.com/gpu"
        found[target.gpu_resource or default] = str(pods.gpus)
        found |= target.resources
    return found


def _environment(job: str, request: JobRequest, target: KubeRayTarget) -> list[Manifest]:
    """Return the environment of all pods. It holds names of files, never a secret."""
    values = {
        "HOME": HOME,
        "HF_HOME": f"{output_root(target)}/.cache/huggingface",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": f"{math.ceil(request.grace_s)}",  # 3 by default, then SIGKILL
        JOB: job,
    }
    if not target.egress:
        # Or each look at the hub, and the tracker, would wait for a connection that nobody lets through.
        values |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    if "HF_TOKEN" in request.secrets:
        values["HF_TOKEN_PATH"] = f"{SECRETS}/HF_TOKEN"
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def _volumes(
    pods: Pods, request: JobRequest, target: KubeRayTarget, config_map: str, sources: Mapping[str, str] | None
) -> list[Manifest]:
    volumes: list[Manifest] = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": target.volume_claim}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{pods.shm_gib or 1}Gi"}},
    ]
    if sources is not None:
        items = [{"key": key, "path": f"{FILES}/{path}"} for path, key in sorted(sources.items())]
        volumes.append({"name": "package-source", "configMap": {"name": config_map, "items": items}})
        volumes.append({"name": "package", "emptyDir": {}})
    if request.secrets:
        named = [(variable, *place.split("/", 1)) for variable, place in sorted(request.secrets.items())]
        files = [
            {"secret": {"name": secret, "items": [{"key": key, "path": variable}]}} for variable, secret, key in named
        ]
        volumes.append({"name": "secrets", "projected": {"defaultMode": 0o400, "sources": files}})
    return volumes
