"""Machines that a recipe needs on a cluster whose nodes are alike: pods with GPUs, CPUs, memory and /dev/shm.

    recipe ──► gangs of each stage ──► GPUs and CPUs ──┐
           └─► plan of each stage ──► host memory, ────┼──► head pod, worker pods, grace
                                      batches, update, ┘
                                      checkpoint

Gangs come from orchestrator/pipeline/roles.py, by which the driver starts them. Stages run one after another, so the
largest decides. A model that the planner does not know leaves the node's share of memory and the shortest grace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.config import Recipe, RunConfig
from orchestrator.config.rounds import largest
from orchestrator.errors import BadInput, Problem
from orchestrator.launch.base import JobRequest, Pods
from orchestrator.launch.targets import KubeRayTarget, SlurmTarget
from orchestrator.pipeline.roles import gang_plans
from orchestrator.plan.gpus import CPU_RANK, Gpu, parse_gpus
from orchestrator.plan.grace import stop_seconds
from orchestrator.plan.plan import Plan, make_plan

GIB = 2**30
TOKEN_BYTES = 32  # of one token in a batch: id, mask, log-probabilities of policy and reference, advantage
BATCHES = 2  # held at a time: the one that is learned, and the one that is sampled
MEMBER_SHM_GIB = 1  # of NCCL or gloo between the ranks of a node
MIN_SHM_GIB = 8
HEAD_CPUS, HEAD_GIB = 8, 16  # the driver, Ray's own processes
CPU_MEMBER_GIB, CPU_SHM_GIB = 4, 2  # of a tiny model: other models are not trained on CPUs
HOST_GIB = 32  # of a node's processes beside the states that the plan counts
WHOLE_NODE_CPUS, CPU_GIB = 512, 8  # of a Slurm node that a job has alone, and memory of each CPU of one that it shares
MIN_GRACE_S, GRACE_STEP_S = 600.0, 60.0
MAX_GRACE_S = 3600.0  # a run that needs longer goes on from an earlier checkpoint: few clusters wait for hours


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """Size of the cluster's nodes. Example: `Node(gpu=GPUS["H100"], gpus=8, cpus=96, memory_gib=1000)`."""

    gpu: Gpu  # CPU_RANK: nodes without GPUs
    gpus: int
    cpus: int | None = None  # None: unknown; as many as a job asks for
    memory_gib: int | None = None  # None: unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Needs of a job: the head first, then the workers."""

    pods: tuple[Pods, ...]
    grace_s: float  # to stop with a checkpoint
    idle_gpus: int  # of the pods, that no role of the largest stage takes

    @property
    def gpus(self) -> int:
        return sum(pods.count * pods.gpus for pods in self.pods)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    """Needs of one stage. `members`: GPUs of each process that takes any."""

    members: tuple[int, ...]
    processes: int
    cpus: float
    host_gib: float  # of one GPU's processes
    batch_gib: float
    grace_s: float


def node_of(target: KubeRayTarget | SlurmTarget) -> Node:
    """Return the size of a target's nodes. Raise BadInput if the planner does not know their GPU."""
    gpu = parse_gpus(target.gpu)[1] if target.gpus_per_node else CPU_RANK
    memory_gib = target.memory_gib_per_node if isinstance(target, KubeRayTarget) else None
    return Node(gpu=gpu, gpus=target.gpus_per_node, cpus=target.cpus_per_node, memory_gib=memory_gib)


def with_needs(
    request: JobRequest, recipes: Sequence[Recipe], node: Node, *, given: int | None = None
) -> tuple[JobRequest, Needs]:
    """Return a request with the pods and the grace that its recipes need, and these needs. See `needs_of`.

    An evaluation has no recipes: it names no pods.
    """
    if not recipes:
        return request, Needs(pods=(), grace_s=request.grace_s, idle_gpus=0)
    needs = needs_of(recipes, node, given=given)
    return replace(request, pods=needs.pods, grace_s=needs.grace_s), needs


def needs_of(recipes: Sequence[Recipe], node: Node, *, given: int | None = None) -> Needs:
    """Return what a recipe needs, or a comparison of several.

    Args:
        given: number of GPUs that there are; None: as many as are needed. A comparison takes all of them.

    Raises:
        BadInput: a process needs more than a node has, all together need more than `given`, or a recipe asks for
            GPUs that the nodes do not have.
    """
    stages = [_stage(recipe, config, node) for recipe in recipes for config in recipe.stages]
    if not any(stage.members for stage in stages):
        return _on_cpus(stages, node)
    asked = max(sum(stage.members) for stage in stages)
    nodes = max(_nodes(stage.members, node, recipes[0]) for stage in stages)
    if given is not None and len(recipes) > 1:
        nodes = max(nodes, given // node.gpus)
    gpus = node.gpus if nodes > 1 else asked
    if given is not None and nodes * gpus > given:
        _refuse_too_few(recipes[0], nodes * gpus, asked, given, node)
    shm_gib = _shm_gib(stages, gpus)
    share = gpus / node.gpus
    memory_gib = max(
        math.floor((node.memory_gib or 0) * share),
        math.ceil(max(stage.host_gib for stage in stages) * gpus) + shm_gib + HOST_GIB,
    )
    cpus = max(math.floor((node.cpus or 0) * share), math.ceil(max(stage.cpus for stage in stages) / nodes))
    _refuse_too_large(recipes[0], cpus, memory_gib, node)
    head = Pods(role="head", count=1, gpus=0, cpus=HEAD_CPUS, memory_gib=HEAD_GIB + shm_gib, shm_gib=shm_gib)
    worker = Pods(role="worker", count=nodes, gpus=gpus, cpus=cpus, memory_gib=memory_gib, shm_gib=shm_gib)
    grace_s = max(stage.grace_s for stage in stages)
    return Needs(pods=(head, worker), grace_s=grace_s, idle_gpus=nodes * gpus - asked)


def _on_cpus(stages: Sequence[_Stage], node: Node) -> Needs:
    """Return the needs of recipes without GPUs: one worker, unless the nodes are too small for all processes."""
    cpus = max(math.ceil(stage.cpus) for stage in stages)
    count = 1 if node.cpus is None else math.ceil(cpus / node.cpus)
    processes = math.ceil(max(stage.processes for stage in stages) / count)
    head_gib, worker_gib = CPU_SHM_GIB + CPU_MEMBER_GIB, CPU_SHM_GIB + CPU_MEMBER_GIB * processes
    head = Pods(role="head", count=1, gpus=0, cpus=2, memory_gib=head_gib, shm_gib=CPU_SHM_GIB)
    worker = Pods(
        role="worker", count=count, gpus=0, cpus=math.ceil(cpus / count), memory_gib=worker_gib, shm_gib=CPU_SHM_GIB
    )
    return Needs(pods=(head, worker), grace_s=max(stage.grace_s for stage in stages), idle_gpus=0)


def _stage(recipe: Recipe, written: RunConfig, node: Node) -> _Stage:
    config = largest(written)
    has_gpus = node.gpu is not CPU_RANK
    if config.cluster.device == "cuda" and not has_gpus:
        what, fix = f"{config.name} computes on GPUs", "choose a target with GPUs, or --gpus 8xH100"
        raise BadInput(Problem(what=what, where=str(recipe.source), why="the nodes have none", fix=fix))
    cuda = has_gpus and config.cluster.device != "cpu"
    gangs = gang_plans(config, cuda=cuda, max_steps=1)
    plan = _plan(recipe, written, node.gpu) if cuda else None
    return _Stage(
        members=tuple(int(g.resources.gpus) for g in gangs for _ in g.arguments if g.resources.gpus),
        processes=sum(len(g.arguments) for g in gangs),
        cpus=sum(g.resources.cpus * len(g.arguments) for g in gangs),
        host_gib=0.0 if plan is None else max(d.memory.host_bytes for d in plan.demands) / GIB,
        batch_gib=0.0 if plan is None else BATCHES * TOKEN_BYTES * plan.work.sequences * plan.work.longest / GIB,
        grace_s=MIN_GRACE_S if plan is None else _grace_s(plan),
    )


def _plan(recipe: Recipe, config: RunConfig, gpu: Gpu) -> Plan | None:
    """Return the plan of a stage; None if the planner does not know one of its models."""
    try:
        return make_plan(config, gpu, before=recipe.before(config), alternatives=False)
    except BadInput:
        return None


def _grace_s(plan: Plan) -> float:
    """Return the seconds that a run of `plan` needs to stop, and one step more, rounded up to a minute."""
    needed = min(stop_seconds(plan) + GRACE_STEP_S, MAX_GRACE_S)
    return max(MIN_GRACE_S, math.ceil(needed / GRACE_STEP_S) * GRACE_STEP_S)


def _nodes(members: Sequence[int], node: Node, recipe: Recipe) -> int:
    """Return the number of nodes on which all processes find room, the largest first."""
    if max(members, default=0) > node.gpus:
        what = f"one process asks for {max(members)} GPUs"
        why, fix = f"a node has {node.gpus}", "lower rollout.tensor_parallel_size"
        raise BadInput(Problem(what=what, where=str(recipe.source), why=why, fix=fix))
    free: list[int] = []
    for gpus in sorted(members, reverse=True):
        place = next((i for i, left in enumerate(free) if left >= gpus), None)
        if place is None:
            free.append(node.gpus - gpus)
        else:
            free[place] -= gpus
    return len(free)


def _shm_gib(stages: Sequence[_Stage], gpus: int) -> int:
    batches = math.ceil(max(stage.batch_gib for stage in stages))
    return max(MIN_SHM_GIB, batches + MEMBER_SHM_GIB * gpus)


def _refuse_too_few(recipe: Recipe, needed: int, asked: int, given: int, node: Node) -> None:
    why = "" if needed == asked else f"its processes take {asked}, on whole nodes of {node.gpus}"
    fix = f"see rlhf plan {recipe.source} --gpus {given}x{node.gpu.name} for overrides that fit"
    raise BadInput(Problem(what=f"{needed} GPUs are needed, {given} given", where=str(recipe.source), why=why, fix=fix))


def _refuse_too_large(recipe: Recipe, cpus: int, memory_gib: int, node: Node) -> None:
    for needed, has, unit, key in (
        (cpus, node.cpus, "CPUs", "cpus_per_node"),
        (memory_gib, node.memory_gib, "GiB", "memory_gib_per_node"),
    ):
        if has is not None and needed > has:
            what, why = f"a worker needs {needed} {unit}", f"a node has {has}"
            fix = f"use fewer processes per node, no offload_optimizer, or set {key} of the target"
            raise BadInput(Problem(what=what, where=str(recipe.source), why=why, fix=fix))
