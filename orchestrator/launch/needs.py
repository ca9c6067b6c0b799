"""Machines that a job needs on a cluster whose nodes are alike: pods with GPUs, CPUs, memory and /dev/shm.

    recipe ──► gangs of each stage ──► GPUs and CPUs ──┐
           └─► plan of each stage ──► host memory, ────┼──► head pod, worker pods, grace
                                      batches, update, ┘
                                      checkpoint

Gangs come from orchestrator/pipeline/roles.py, by which the driver starts them. Stages run one after another, so the
largest decides. A model that the planner does not know leaves the node's share of memory and the shortest grace, and so
does an evaluation, whose gangs come from orchestrator/evaluation/gangs.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.cluster.base import GangPlan
from orchestrator.config import ClusterConfig, Recipe, RunConfig
from orchestrator.config.rounds import largest
from orchestrator.errors import BadInput, Problem
from orchestrator.evaluation.gangs import answering_gangs, scoring_gang
from orchestrator.evaluation.suite import Suite
from orchestrator.launch.base import JobRequest, Pods
from orchestrator.launch.request import Content
from orchestrator.launch.targets import KubeRayTarget, SlurmTarget
from orchestrator.pipeline.roles import gang_plans
from orchestrator.plan.gpus import CPU_RANK, GPUS, Gpu, parse_gpus
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
EVALUATION_GIB = 32.0  # of a GPU's process that holds a model which the planner has not seen
MODEL = "model"  # any: the machines for an evaluation do not depend on it
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
    host_gib: float = 0.0  # of one GPU's processes
    batch_gib: float = 0.0
    grace_s: float = MIN_GRACE_S


def node_of(target: KubeRayTarget | SlurmTarget) -> Node:
    """Return the size of a target's nodes. Raise BadInput if the planner does not know their GPU."""
    gpu = parse_gpus(target.gpu)[1] if target.gpus_per_node else CPU_RANK
    memory_gib = target.memory_gib_per_node if isinstance(target, KubeRayTarget) else None
    return Node(gpu=gpu, gpus=target.gpus_per_node, cpus=target.cpus_per_node, memory_gib=memory_gib)


def with_needs(
    request: JobRequest, content: Content, node: Node, *, given: int | None = None
) -> tuple[JobRequest, Needs]:
    """Return a request with the pods and the grace that its content needs, and these needs. See `needs_of`."""
    if isinstance(content.loaded, Suite):
        needs = needs_of_evaluation(content.loaded, node, given=given)
    else:
        needs = needs_of(content.recipes, node, given=given)
    return replace(request, pods=needs.pods, grace_s=needs.grace_s), needs


def longest_grace_s(recipes: Sequence[Recipe]) -> float:
    """Return the seconds to stop with a checkpoint on a cluster whose GPUs are not known: on the slowest of all."""
    plans = [_plan(recipe, config, gpu) for recipe in recipes for config in recipe.stages for gpu in GPUS.values()]
    return max([MIN_GRACE_S, *(_grace_s(plan) for plan in plans if plan is not None)])


def needs_of(recipes: Sequence[Recipe], node: Node, *, given: int | None = None) -> Needs:
    """Return what a recipe needs, or a comparison of several.

    Args:
        given: number of GPUs that there are; None: as many as are needed. A comparison takes all of them.

    Raises:
        BadInput: a process needs more than a node has, all together need more than `given`, or a recipe asks for
            GPUs that the nodes do not have.
    """
    stages = [_stage(recipe, config, node) for recipe in recipes for config in recipe.stages]
    least = given // node.gpus if given is not None and len(recipes) > 1 else 1
    return _needs(stages, node, recipes[0].source, given=given, least=least)


def needs_of_evaluation(suite: Suite, node: Node, *, given: int | None = None) -> Needs:
    """Return what an evaluation needs: its models answer one after another, then others score the answers.

    Raises:
        BadInput: as `needs_of`.
    """
    config, cuda = suite.config, _is_cuda(suite.config.cluster, node, "the suite", suite.source)
    sets = [name for name in ("prompts", "harmful", "benign") if getattr(config, name) is not None]
    answering = answering_gangs(config, MODEL, sets, cuda=cuda)
    phases = (answering, [scoring_gang(config, MODEL, cuda=cuda)])
    stages = [replace(_stage_of(gangs), host_gib=EVALUATION_GIB if cuda else 0.0) for gangs in phases]
    return _needs(stages, node, suite.source, given=given)


def _needs(stages: Sequence[_Stage], node: Node, source: Path, *, given: int | None, least: int = 1) -> Needs:
    """Return the needs of the largest of several stages. `least`: number of nodes that are taken in any case."""
    if not any(stage.members for stage in stages):
        return _on_cpus(stages, node)
    asked = max(sum(stage.members) for stage in stages)
    nodes = max(least, *(_nodes(stage.members, node, source) for stage in stages))
    gpus = node.gpus if nodes > 1 else asked
    if given is not None and nodes * gpus > given:
        _refuse_too_few(source, nodes * gpus, asked, given, node)
    shm_gib = _shm_gib(stages, gpus)
    share = gpus / node.gpus
    memory_gib = max(
        math.floor((node.memory_gib or 0) * share),
        math.ceil(max(stage.host_gib for stage in stages) * gpus) + shm_gib + HOST_GIB,
    )
    cpus = max(math.floor((node.cpus or 0) * share), math.ceil(max(stage.cpus for stage in stages) / nodes))
    _refuse_too_large(source, cpus, memory_gib, node)
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


def _is_cuda(cluster: ClusterConfig, node: Node, name: str, source: Path) -> bool:
    """Return whether workers compute on GPUs. Raise BadInput if they are to, and the nodes have none."""
    has_gpus = node.gpu is not CPU_RANK
    if cluster.device == "cuda" and not has_gpus:
        what, fix = f"{name} computes on GPUs", "choose a target with GPUs, or --gpus 8xH100"
        raise BadInput(Problem(what=what, where=str(source), why="the nodes have none", fix=fix))
    return has_gpus and cluster.device != "cpu"


def _stage(recipe: Recipe, written: RunConfig, node: Node) -> _Stage:
    config = largest(written)
    cuda = _is_cuda(config.cluster, node, config.name, recipe.source)
    gangs = gang_plans(config, cuda=cuda, max_steps=1)
    plan = _plan(recipe, written, node.gpu) if cuda else None
    if plan is None:
        return _stage_of(gangs)
    return replace(
        _stage_of(gangs),
        host_gib=max(d.memory.host_bytes for d in plan.demands) / GIB,
        batch_gib=BATCHES * TOKEN_BYTES * plan.work.sequences * plan.work.longest / GIB,
        grace_s=_grace_s(plan),
    )


def _stage_of(gangs: Sequence[GangPlan]) -> _Stage:
    """Return the needs of gangs that run at the same time, as far as they are known without a plan."""
    return _Stage(
        members=tuple(int(g.resources.gpus) for g in gangs for _ in g.arguments if g.resources.gpus),
        processes=sum(len(g.arguments) for g in gangs),
        cpus=sum(g.resources.cpus * len(g.arguments) for g in gangs),
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


def _nodes(members: Sequence[int], node: Node, source: Path) -> int:
    """Return the number of nodes on which all processes find room, the largest first."""
    if max(members, default=0) > node.gpus:
        what = f"one process asks for {max(members)} GPUs"
        why, fix = f"a node has {node.gpus}", "lower rollout.tensor_parallel_size"
        raise BadInput(Problem(what=what, where=str(source), why=why, fix=fix))
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


def _refuse_too_few(source: Path, needed: int, asked: int, given: int, node: Node) -> None:
    why = "" if needed == asked else f"its processes take {asked}, on whole nodes of {node.gpus}"
    fix = f"see rlhf plan {source} --gpus {given}x{node.gpu.name} for overrides that fit"
    raise BadInput(Problem(what=f"{needed} GPUs are needed, {given} given", where=str(source), why=why, fix=fix))


def _refuse_too_large(source: Path, cpus: int, memory_gib: int, node: Node) -> None:
    for needed, has, unit, key in (
        (cpus, node.cpus, "CPUs", "cpus_per_node"),
        (memory_gib, node.memory_gib, "GiB", "memory_gib_per_node"),
    ):
        if has is not None and needed > has:
            what, why = f"a worker needs {needed} {unit}", f"a node has {has}"
            fix = f"use fewer processes per node, no offload_optimizer, or set {key} of the target"
            raise BadInput(Problem(what=what, where=str(source), why=why, fix=fix))
