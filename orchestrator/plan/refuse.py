"""What cannot fit is refused before a model is loaded, in the planner's words."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config import RunConfig
from orchestrator.errors import BadInput, Problem, Problems
from orchestrator.plan.gangs import Demand, Shapes, demands
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.plan import shapes_of, shortage_of
from orchestrator.plan.words import gigabytes, of_memory, way_out
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
        try:
            shapes = shapes_of(config, stages[:i])
        except BadInput:
            continue
        for demand in demands(config, shapes, gpu, work_of(config, Lengths()), typical=True):
            if not demand.fits:
                problems.append(_refusal(config, shapes, gpu, demand))
    problems.raise_if_any()


def _refusal(config: RunConfig, shapes: Shapes, gpu: Gpu, demand: Demand) -> Problem:
    needed, there = gigabytes(demand.memory.total), gigabytes(demand.limit_bytes)
    return Problem(
        what=f"{demand.role} does not fit: it needs about {needed} per GPU, and an {gpu.name} has {there} for it",
        where=config.name,
        why=f"by plan, not measured: {of_memory(demand.memory)}",
        fix=way_out(shortage_of(config, shapes, gpu, Lengths(), demand)),
    )
