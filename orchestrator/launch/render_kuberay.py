"""Manifests of a job for KubeRay 1.7: ConfigMap with the package, NetworkPolicy, RayJob. Pure: nothing is asked or set.

    JobRequest ──┐                  ConfigMap       files of the package
    KubeRayTarget┴──► render ──►    NetworkPolicy   the job's pods among themselves, the operator, DNS, `egress`
                                    RayJob          head (driver, no actors) and workers, all pods alike but for size

Equal requests give equal bytes on every machine. Two facts of KubeRay 1.7 shape the RayJob. It deletes pods without
stopping the job first, so each pod has a hook that asks the run to save and waits for it. It starts every failed job
again, so `rlhf entry guard` keeps a job that an alarm has ended from running on.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import yaml

from orchestrator.errors import Problems
from orchestrator.launch.base import JobRequest, Package, Pods
from orchestrator.launch.entry import with_secrets
from orchestrator.launch.kuberay_pods import PACKAGE, SECRETS, output_root, pod_spec
from orchestrator.launch.targets import KubeRayTarget
from orchestrator.rundir.directory import JOB

Manifest: TypeAlias = dict[str, Any]

MAX_NAME = 47 - len("-99")  # KubeRay's limit, without the number of a repetition
MAX_PACKAGE_BYTES = 900 * 1024  # Kubernetes: 1 MiB in a ConfigMap
LINGER_S = 60  # of a cluster after the end of its job, for the last lines of the log; it holds its GPUs
PENDING_S = 3600  # for pods that were admitted; ends two jobs that hold a half each, without Kueue
STORE_SHARE = 0.6  # of /dev/shm for Ray's object store; NCCL and data loaders have the rest
APP, JOB_LABEL, RUN_LABEL = "app.kubernetes.io/name", "rlhf.dev/job", "rlhf.dev/run"
ID, DIRECTORIES, COMMAND = "rlhf.dev/id", "rlhf.dev/directories", "rlhf.dev/command"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def render(request: JobRequest, target: KubeRayTarget, *, repetition: int = 1) -> list[Manifest]:
    """Return the manifests of a job, in the order in which they are created.

    Args:
        repetition: 2 for a job that is started again after its end, and so on. ConfigMap and NetworkPolicy are shared.

    Raises:
        BadInput: the target cannot take the request; all reasons are listed.
    """
    _refuse(request, target)
    package = [_config_map(request, request.package, target)] if request.package is not None else []
    return [*package, _network_policy(request, target), _ray_job(request, target, repetition)]


def to_yaml(manifests: Sequence[Manifest]) -> str:
    """Return manifests as YAML, with texts of several lines as blocks."""
    text: str = yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return text


def job_name(id: str, repetition: int = 1) -> str:
    """Return the name of a job in Kubernetes: lower case, at most 47 characters, different for different ids.

    >>> job_name("rlhf-arith-1a2b3c4d"), job_name("rlhf-arith-1a2b3c4d", 2)
    ('rlhf-arith-1a2b3c4d', 'rlhf-arith-1a2b3c4d-2')
    """
    name = re.sub(r"[^a-z0-9]+", "-", id.lower()).strip("-")
    if name != id or len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 9].rstrip('-')}-{hashlib.sha256(id.encode()).hexdigest()[:8]}"
    return name if repetition == 1 else f"{name}-{repetition}"


# ------------------------------------------------------------------------------------------------ refusals


def _refuse(request: JobRequest, target: KubeRayTarget) -> None:
    problems, root = Problems(), output_root(target)
    if "@sha256:" not in target.image:
        why, fix = "a tag may name another image tomorrow", "give NAME@sha256:DIGEST"
        problems.add(f"image {target.image} has no digest", where="image of the target", why=why, fix=fix)
    if target.volume_claim is None or not root.startswith("/"):
        why = "pods of this version share run directories on a volume"
        problems.add("there is no shared volume", where="volume_claim of the target", why=why, fix="name its claim")
    for directory in request.directories:
        if not PurePosixPath(directory).is_relative_to(root):
            fix = f"give output_dir={root}"
            problems.add(f"{directory} is not on the volume", where="output_dir", why=f"it is at {root}", fix=fix)
    if not any(pods.role == "worker" for pods in request.pods):
        problems.add("the job names no pods", where=request.id, fix="name them: see orchestrator/launch/needs.py")
    if request.priority and target.priority_class is None:
        why, fix = "Kubernetes orders jobs by priority classes", "set priority_class of the target"
        problems.add(f"priority {request.priority}", where=request.id, why=why, fix=fix)
    if request.package is not None and request.package.bytes > MAX_PACKAGE_BYTES:
        size, most = math.ceil(request.package.bytes / 1024), MAX_PACKAGE_BYTES // 1024
        why = f"a ConfigMap holds {most} KiB"
        fix = f"put large files on the volume and name them by their path there, such as {root}/data/prompts.jsonl"
        problems.add(f"the recipe's files have {size} KiB", where=str(request.package.root), why=why, fix=fix)
    for variable, place in request.secrets.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*/[-._a-zA-Z0-9]+", place):
            problems.add(f"secret {variable} = {place}", where="secrets of the target", fix="give SECRET/KEY")
    problems.raise_if_any()


# ------------------------------------------------------------------------------------------------ package


def _config_map(request: JobRequest, package: Package, target: KubeRayTarget) -> Manifest:
    text, binary = {}, {}
    for path, key in _keys(package).items():
        content = (package.root / path).read_bytes()
        if (readable := _readable(content)) is not None:
            text[key] = readable
        else:
            binary[key] = base64.b64encode(content).decode("ascii")
    data = {name: values for name, values in (("data", text), ("binaryData", binary)) if values}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**_metadata(request, target), "name": _config_map_name(request, package)},
        "immutable": True,
        **data,
    }


def _config_map_name(request: JobRequest, package: Package) -> str:
    """Return a name by content: comments in a recipe change the file, and not the id of the job."""
    return f"{job_name(request.id)}-{package.digest[:8]}"


def _keys(package: Package) -> dict[str, str]:
    """Return a key of the ConfigMap for each file: its path with `_` for what a key may not have, or a digest of it."""
    keys: dict[str, str] = {}
    for path in sorted(package.files):
        plain = re.sub(r"[^-._a-zA-Z0-9]", "_", path)
        keys[path] = hashlib.sha256(path.encode()).hexdigest() if plain in keys.values() or len(plain) > 200 else plain
    return keys


def _readable(content: bytes) -> str | None:
    """Return a text that people can read in the manifest; None for anything else."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if all(c == "\n" or c.isprintable() for c in text) else None


# ------------------------------------------------------------------------------------------------ network


def _network_policy(request: JobRequest, target: KubeRayTarget) -> Manifest:
    own = {"podSelector": {"matchLabels": {JOB_LABEL: job_name(request.id)}}}
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": target.operator_namespace}}}
    dns = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    outside = [
        {"to": [{"ipBlock": {"cidr": cidr}} for cidr in target.egress], "ports": [{"port": 443, "protocol": "TCP"}]}
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(request, target),
        "spec": {
            **own,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [own]}, {"from": [operator], "ports": [{"port": 8265, "protocol": "TCP"}]}],
            "egress": [
                {"to": [own]},
                {"to": [dns], "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
                *(outside if target.egress else []),
            ],
        },
    }


# ------------------------------------------------------------------------------------------------ job


def _ray_job(request: JobRequest, target: KubeRayTarget, repetition: int) -> Manifest:
    job = request.id if repetition == 1 else f"{request.id}-{repetition}"
    head = next(
        (pods for pods in request.pods if pods.role == "head"),
        Pods(role="head", count=1, gpus=0, cpus=8, memory_gib=32, shm_gib=8),
    )
    annotations = {
        ID: job,
        RUN_LABEL: request.run,
        DIRECTORIES: json.dumps(list(request.directories)),
        COMMAND: shlex.join(request.command),
    }
    queued = {QUEUE: target.queue} if target.queue else {}
    if target.queue and target.priority_class:
        queued[PRIORITY] = target.priority_class
    metadata = _metadata(request, target, annotations=annotations, labels=queued, repetition=repetition)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": entrypoint(request),
            "submissionMode": "SidecarMode",  # no second pod that must reach the head; works with suspend and Kueue
            "backoffLimit": target.backoff_limit,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": LINGER_S,
            "preRunningDeadlineSeconds": PENDING_S,
            **({"suspend": True} if target.queue else {}),
            "rayClusterSpec": {
                "rayVersion": target.ray_version,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "num-gpus": "0", **_store(head)},
                    "template": _template(head, job, request, target),
                },
                "workerGroupSpecs": [
                    _worker_group(pods, job, request, target) for pods in request.pods if pods.role != "head"
                ],
            },
        },
    }


def entrypoint(request: JobRequest) -> str:
    """Return the command of the driver: in the package's root, with secrets, after a guard.

    The guard waits for a driver of the cluster before, which may still be saving, and does not start a job again that
    an alarm has ended.
    KubeRay puts the text into a shell command in the arguments of a container, where Kubernetes replaces `$(NAME)`.
    """
    files = {variable: f"{SECRETS}/{variable}" for variable in request.secrets if variable != "HF_TOKEN"}
    command = with_secrets(request.command, files)
    wait_s = f"{math.ceil(request.grace_s)}"
    guard = ("rlhf", "entry", "guard", "--wait", wait_s, *request.directories, "--") if request.directories else ()
    place = ("env", f"--chdir={PACKAGE}") if request.package is not None else ()
    return _escaped(shlex.join([*place, *guard, *command]))


def with_command(ray_job: Manifest, job: str, command: Sequence[str], *, backoff_limit: int) -> Manifest:
    """Return a RayJob that runs another command as another job, in the same place and with the same secrets."""
    again = copy.deepcopy(ray_job)
    annotations, spec = again["metadata"]["annotations"], again["spec"]
    before = spec["entrypoint"].removesuffix(_escaped(annotations[COMMAND]))
    spec["entrypoint"] = before + _escaped(shlex.join(command))
    spec["backoffLimit"], spec["suspend"] = backoff_limit, QUEUE in again["metadata"].get("labels", {})
    annotations |= {ID: job, COMMAND: shlex.join(command)}
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])):
        for container in group["template"]["spec"]["containers"]:
            for variable in container.get("env", []):
                if variable["name"] == JOB:
                    variable["value"] = job
    return again


def _escaped(text: str) -> str:
    return text.replace("$(", "$$(")


def _worker_group(pods: Pods, job: str, request: JobRequest, target: KubeRayTarget) -> Manifest:
    devices = {"num-gpus": str(pods.gpus)} if pods.gpus else {}
    return {
        "groupName": pods.role,
        "replicas": pods.count,
        "minReplicas": pods.count,
        "maxReplicas": pods.count,
        "rayStartParams": {"num-cpus": str(pods.cpus), **devices, **_store(pods)},
        "template": _template(pods, job, request, target),
    }


def _store(pods: Pods) -> dict[str, str]:
    size = int(pods.shm_gib * STORE_SHARE * 2**30)
    return {"object-store-memory": str(size)} if size else {}


def _template(pods: Pods, job: str, request: JobRequest, target: KubeRayTarget) -> Manifest:
    package = request.package
    place = ("", {}) if package is None else (_config_map_name(request, package), _keys(package))
    return {
        "metadata": {"labels": {APP: "rlhf", JOB_LABEL: job_name(request.id)}},
        "spec": pod_spec(pods, request, target, job=job, config_map=place[0], sources=place[1]),
    }


def _metadata(
    request: JobRequest,
    target: KubeRayTarget,
    *,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    repetition: int = 1,
) -> Manifest:
    own = {APP: "rlhf", JOB_LABEL: job_name(request.id), **(labels or {})}
    return {
        "name": job_name(request.id, repetition),
        "namespace": target.namespace,
        "labels": own,
        **({"annotations": dict(annotations)} if annotations else {}),
    }


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
    """Writer of YAML without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
