"""Check manifests of jobs: KubeRay's schema, where its CRDs are at hand, and a policy of 30 points.

    rlhf render kuberay RECIPE --on prod > job.yaml && python deploy/kuberay/check.py job.yaml
    kubectl kustomize deploy/kuberay/overlays/70b | python deploy/kuberay/check.py --crds CRDS -

CRDS is a directory with KubeRay's CustomResourceDefinitions as JSON (`kubectl get crd rayjobs.ray.io -o json`). The
policy has what KubeRay and Kueue refuse, and what a pod of a job may not be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Manifest: TypeAlias = Mapping[str, Any]

SECRET = re.compile(r"token|secret|password|api[_-]?key", re.IGNORECASE)
NAMES_A_FILE = ("_PATH", "_FILE")
MIN_RAY = (2, 56)  # earlier versions have CVE-2026-57516 and others
QUEUE = "kueue.x-k8s.io/queue-name"
MAX_NAME, MAX_GROUPS, MIN_GRACE_S = 47, 17, 120
OWN_SUBMITTER = ("submitterPodTemplate", "submitterConfig", "clusterSelector")


def cluster_of(job: Manifest) -> Manifest:
    cluster: Manifest = job["spec"]["rayClusterSpec"]
    return cluster


def groups_of(job: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yield the head group and the worker groups, by name."""
    cluster = cluster_of(job)
    yield "head", cluster["headGroupSpec"]
    for group in cluster.get("workerGroupSpecs", []):
        yield group["groupName"], group


def pods_of(job: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yield the specification of every kind of pod, by the name of its group."""
    for name, group in groups_of(job):
        yield name, group["template"]["spec"]


def containers_of(job: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yield every container, initial ones too, with the name of its group."""
    for name, pod in pods_of(job):
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            yield f"{name}/{container['name']}", container


def ray_version_of(job: Manifest) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", cluster_of(job).get("rayVersion", ""))[:2])


def is_guaranteed(container: Manifest) -> bool:
    resources = container.get("resources", {})
    limits = resources.get("limits", {})
    return resources.get("requests") == limits and {"cpu", "memory"} <= set(limits)


def is_pinned(image: str) -> bool:
    return re.search(r"@sha256:[0-9a-f]{64}$", image) is not None


def has_shared_memory(pod: Manifest) -> bool:
    memory = {v["name"] for v in pod.get("volumes", []) if v.get("emptyDir", {}).get("medium") == "Memory"}
    mounts = [mount for container in pod["containers"] for mount in container.get("volumeMounts", [])]
    return any(mount["mountPath"] == "/dev/shm" and mount["name"] in memory for mount in mounts)


def has_secret_value(container: Manifest) -> bool:
    return any(
        SECRET.search(variable["name"]) and "value" in variable and not variable["name"].endswith(NAMES_A_FILE)
        for variable in container.get("env", [])
    )


def is_gang(group: Manifest) -> bool:
    return group.get("minReplicas") == group.get("maxReplicas") == group.get("replicas") is not None


Rule: TypeAlias = Callable[[Manifest], bool]

OF_A_JOB: Mapping[str, Rule] = {
    "Ray asks for a token": lambda job: cluster_of(job).get("authOptions", {}).get("mode") == "token",
    "the version of Ray is named: KubeRay wants it for a token": lambda job: bool(ray_version_of(job)),
    "Ray is at least 2.56": lambda job: not ray_version_of(job) or ray_version_of(job) >= MIN_RAY,
    "no token of Kubernetes for Ray: KubeRay refuses it in a RayJob": lambda job: (
        not (cluster_of(job).get("authOptions", {}).get("enableK8sTokenAuth"))
    ),
    "a name has at most 47 characters": lambda job: len(job["metadata"].get("name", "")) <= MAX_NAME,
    "the cluster ends with the job: Kueue wants it": lambda job: bool(job["spec"].get("shutdownAfterJobFinishes")),
    "a job of a queue starts suspended": lambda job: (
        QUEUE not in job["metadata"].get("labels", {}) or bool(job["spec"].get("suspend"))
    ),
    "no submitter of its own beside SidecarMode": lambda job: (
        job["spec"].get("submissionMode") != "SidecarMode" or not any(key in job["spec"] for key in OWN_SUBMITTER)
    ),
    "the head is never restarted in place": lambda job: (
        cluster_of(job)["headGroupSpec"]["template"]["spec"].get("restartPolicy", "Never") == "Never"
    ),
    "a lost head does not end the run": lambda job: job["spec"].get("backoffLimit", 0) >= 1,
    "a failed worker does not end the run": lambda job: any(
        # An evaluation keeps nothing to go on from: it is done again, by the next cluster.
        word in job["spec"].get("entrypoint", "")
        for word in ("--attempts", "attempts=", "rlhf evaluate ")
    ),
    "pods that never start end the job": lambda job: bool(job["spec"].get("preRunningDeadlineSeconds")),
    "no secret in runtimeEnvYAML, which Ray shows": lambda job: (
        not SECRET.search(job["spec"].get("runtimeEnvYAML", ""))
    ),
    "at most 17 groups of workers: Kueue's limit": lambda job: (
        len(cluster_of(job).get("workerGroupSpecs", [])) <= MAX_GROUPS
    ),
    "no actors on the head": lambda job: (
        str(cluster_of(job)["headGroupSpec"].get("rayStartParams", {}).get("num-cpus", "")) == "0"
    ),
}
"""Rules of a RayJob, by what they ask."""

OF_A_GROUP: Mapping[str, Rule] = {"all workers or none: replicas = min = max": is_gang}
"""Rules of a group of workers."""

OF_A_POD: Mapping[str, Rule] = {
    "no token of a service account": lambda pod: pod.get("automountServiceAccountToken") is False,
    "not as root": lambda pod: bool(pod.get("securityContext", {}).get("runAsNonRoot")),
    "the runtime's seccomp profile": lambda pod: (
        pod.get("securityContext", {}).get("seccompProfile", {}).get("type") == "RuntimeDefault"
    ),
    "time for a checkpoint before SIGKILL": lambda pod: pod.get("terminationGracePeriodSeconds", 30) >= MIN_GRACE_S,
    "no namespaces of the host": lambda pod: not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
    "no directory of the host": lambda pod: not any("hostPath" in volume for volume in pod.get("volumes", [])),
    "memory for /dev/shm, which has 64 MiB otherwise": has_shared_memory,
}
"""Rules of every kind of pod."""

OF_A_CONTAINER: Mapping[str, Rule] = {
    "no more privileges": lambda container: (
        container.get("securityContext", {}).get("allowPrivilegeEscalation") is False
    ),
    "a read-only root file system": lambda container: bool(
        container.get("securityContext", {}).get("readOnlyRootFilesystem")
    ),
    "no capabilities": lambda container: (
        "ALL" in container.get("securityContext", {}).get("capabilities", {}).get("drop", [])
    ),
    "an image by digest": lambda container: is_pinned(container.get("image", "")),
    "limits equal to requests: others are evicted first": is_guaranteed,
    "no secret by value": lambda container: not has_secret_value(container),
}
"""Rules of every container."""

BESIDE_IT = "a NetworkPolicy for its pods"

POINTS = (*OF_A_JOB, *OF_A_GROUP, *OF_A_POD, *OF_A_CONTAINER, BESIDE_IT)


def violations(manifests: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    """Yield each point of the policy that a job violates, and where."""
    for job in (each for each in manifests if each["kind"] == "RayJob"):
        name = job["metadata"].get("name", "")
        yield from ((rule, name) for rule, holds in OF_A_JOB.items() if not holds(job))
        workers = [(at, group) for at, group in groups_of(job) if at != "head"]
        for rules, things in (
            (OF_A_GROUP, workers),
            (OF_A_POD, pods_of(job)),
            (OF_A_CONTAINER, containers_of(job)),
        ):
            yield from (
                (rule, f"{name}/{at}") for at, thing in things for rule, holds in rules.items() if not holds(thing)
            )
        if not any(_is_for(policy, job) for policy in manifests if policy["kind"] == "NetworkPolicy"):
            yield BESIDE_IT, name


def _is_for(policy: Manifest, job: Manifest) -> bool:
    wanted = policy["spec"]["podSelector"].get("matchLabels", {}).items()
    labels = [group["template"].get("metadata", {}).get("labels", {}).items() for _, group in groups_of(job)]
    return bool(wanted) and all(wanted <= each for each in labels)


def load_schemas(folder: Path) -> Mapping[tuple[str, str], Any]:
    """Return a validator for each version and kind of the CRDs in a directory. Unknown keys are errors."""
    import jsonschema

    found = {}
    for file in sorted(folder.glob("*.json")):
        crd = json.loads(file.read_text("utf-8"))
        for version in crd["spec"]["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            key = f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]
            found[key] = jsonschema.Draft7Validator(schema)
    return found


def _strict(schema: Any) -> Any:
    """Return a structural schema of Kubernetes as a JSON schema that refuses unknown keys."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and not open_ended:
        strict["additionalProperties"] = False
    return strict


def schema_errors(manifests: Sequence[Manifest], schemas: Mapping[tuple[str, str], Any]) -> Iterator[str]:
    """Yield the errors of every manifest whose kind has a schema."""
    for manifest in manifests:
        validator = schemas.get((manifest["apiVersion"], manifest["kind"]))
        for error in validator.iter_errors(manifest) if validator is not None else ():
            yield f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check manifests of jobs.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="YAML file; - for standard input")
    parser.add_argument("--crds", type=Path, help="directory with KubeRay's CRDs as JSON")
    given = parser.parse_args(arguments)
    schemas = load_schemas(given.crds) if given.crds else {}
    failed = False
    for file in given.files:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
        manifests = [each for each in yaml.safe_load_all(text) if each]
        found = [*schema_errors(manifests, schemas), *(f"{at}: {rule}" for rule, at in violations(manifests))]
        checked = f"policy of {len(POINTS)} points" + (", schema" if schemas else "; no schema: --crds is not given")
        print(f"{file}: {'fails' if found else 'ok'} ({checked})")
        for line in found:
            print(f"  {line}")
        failed = failed or bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
