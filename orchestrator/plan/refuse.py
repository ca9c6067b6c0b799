"""What cannot fit is refused before a model is loaded, in the planner's words."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config import RunConfig
from orchestrator.errors import BadInput, Problem, Problems
from orchestrator.plan.format import gigabytes, of_memory, shortage_text, suggestion_text
from orchestrator.plan.gangs import Demand, Shapes, demands, sampler_shape
from orchestrator.plan.gpus import GPUS_PER_NODE, LARGEST, Gpu
from orchestrator.plan.plan import shapes_of, shortage_of
from orchestrator.plan.work import Lengths, work_of


def refuse_what_cannot_fit(stages: Sequence[RunConfig], gpu: Gpu) -> None:
    """Checks each of `stages`, of which a later one may start from what an earlier one makes, with rows of mean
    lengths: a plan that fails only when every completion is as long as allowed is not refused. Models that the planner
    does not know pass: the run will find out.

    Raises:
        BadInput: naming every role that has no room on `gpu`.
    """
    problems = Problems()
    for i, config in enumerate(stages):
        problems += _of_stage(config, stages[:i], gpu)
    problems.raise_if_any()


def _of_stage(config: RunConfig, before: Sequence[RunConfig], gpu: Gpu) -> Problems:
    problems = Problems()
    try:
        shapes = shapes_of(config, before)
    except BadInput:
        return problems
    if config.data.answered:
        _check_heads(config, shapes, problems)
    for demand in demands(config, shapes, gpu, work_of(config, Lengths()), typical=True):
        if not demand.fits:
            problems.append(_refusal(config, shapes, gpu, demand))
    return problems


def _check_heads(config: RunConfig, shapes: Shapes, problems: Problems) -> None:
    """An engine gives each of its GPUs as many heads as the others."""
    heads, gpus = sampler_shape(config, shapes).heads, config.rollout.tensor_parallel_size
    if heads % gpus:
        possible = ", ".join(str(n) for n in range(1, GPUS_PER_NODE + 1) if heads % n == 0)
        problems.add(
            f"rollout.tensor_parallel_size = {gpus}",
            where=config.name,
            why=f"the model has {heads} attention heads, and {gpus} GPUs cannot have equally many of them",
            fix=f"give one of {possible}",
        )


def refuse_on_every_gpu(stages: Sequence[RunConfig]) -> None:
    """The same for the largest GPU of the table, and stages that ask for GPUs: what has no room there has none.

    Raises:
        BadInput: naming every role that has no room.
    """
    problems = Problems()
    for i, config in enumerate(stages):
        if config.cluster.device == "cuda":
            problems += _of_stage(config, stages[:i], LARGEST)
    problems.raise_if_any()


def _refusal(config: RunConfig, shapes: Shapes, gpu: Gpu, demand: Demand) -> Problem:
    shortage = shortage_of(config, shapes, gpu, Lengths(), demand)
    needed, there = gigabytes(demand.memory.total), gigabytes(demand.limit_bytes)
    return Problem(
        what=f"{demand.role} does not fit: {shortage_text(shortage)}",
        where=config.name,
        why=f"by plan, not measured, it needs {needed} ({of_memory(demand.memory)}), an {gpu.name} has {there} for it",
        fix=suggestion_text(shortage),
    )
