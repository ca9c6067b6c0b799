"""Refuse recipes that cannot fit before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config import RunConfig
from orchestrator.config.rounds import largest
from orchestrator.errors import BadInput, Problem, Problems
from orchestrator.plan.advice import shortage_of
from orchestrator.plan.calls import calls_of, changes_to_end
from orchestrator.plan.constants import DEFAULT
from orchestrator.plan.format import ending_text, gigabytes, memory_text, shortage_text, suggestion_text
from orchestrator.plan.gangs import Demand, Shapes, demands, sampler_shape
from orchestrator.plan.gpus import GPUS_PER_NODE, LARGEST, Gpu
from orchestrator.plan.plan import shapes_of
from orchestrator.plan.work import Lengths, work_of


def refuse_what_cannot_fit(stages: Sequence[RunConfig], gpu: Gpu) -> None:
    """Check that every role of every stage fits on `gpu`, and that every call ends within its time limit.

    A later stage may start from the model of an earlier one.

    Rows are assumed to have mean lengths, so a stage that runs out of memory only at maximum lengths is not refused.
    Models that the planner does not know are not checked.

    Raises:
        BadInput: if roles do not fit; the message names all of them.
    """
    problems = Problems()
    for i, config in enumerate(stages):
        problems += _problems_of_stage(largest(config), stages[:i], gpu)
        if not problems:
            problems += _late_calls(largest(config), stages[:i], gpu)
    problems.raise_if_any()


def _late_calls(config: RunConfig, before: Sequence[RunConfig], gpu: Gpu) -> Problems:
    """Name the calls whose planned time alone, without a margin, exceeds the time limit."""
    problems, lengths = Problems(), Lengths()
    try:
        shapes = shapes_of(config, before)
    except BadInput:
        return problems
    calls = calls_of(config, shapes, gpu, lengths, DEFAULT)
    for call in (call for call in calls if call.seconds > call.limit_s):
        problems.add(
            f"{call.phase} of {call.role} does not end within {call.key} = {call.limit_s:,.0f}",
            where=config.name,
            why=f"estimated time of {call.what} on {gpu.name}: {call.seconds:,.0f} s",
            fix=ending_text(changes_to_end(config, shapes, gpu, lengths, DEFAULT, calls)),
        )
    return problems


def _problems_of_stage(config: RunConfig, before: Sequence[RunConfig], gpu: Gpu) -> Problems:
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
    """Check that the attention heads divide evenly among the GPUs of an engine, as vLLM requires."""
    heads, gpus = sampler_shape(config, shapes).heads, config.rollout.tensor_parallel_size
    if heads % gpus:
        possible = ", ".join(str(n) for n in range(1, GPUS_PER_NODE + 1) if heads % n == 0)
        problems.add(
            f"rollout.tensor_parallel_size = {gpus}",
            where=config.name,
            why=f"the model's {heads} attention heads cannot be divided evenly among {gpus} GPUs",
            fix=f"use one of {possible}",
        )


def refuse_on_every_gpu(stages: Sequence[RunConfig]) -> None:
    """Check that every role fits on the largest GPU of the table, in the stages with `cluster.device: cuda`.

    Raises:
        BadInput: if roles do not fit; the message names all of them.
    """
    problems = Problems()
    for i, config in enumerate(stages):
        if config.cluster.device == "cuda":
            problems += _problems_of_stage(largest(config), stages[:i], LARGEST)
    problems.raise_if_any()


def _refusal(config: RunConfig, shapes: Shapes, gpu: Gpu, demand: Demand) -> Problem:
    shortage = shortage_of(config, shapes, gpu, Lengths(), demand)
    needed, available = gigabytes(demand.memory.total), gigabytes(demand.limit_bytes)
    return Problem(
        what=f"{demand.role} does not fit: {shortage_text(shortage)}",
        where=config.name,
        why=f"estimated need {needed} ({memory_text(demand.memory)}), available on one {gpu.name}: {available}",
        fix=suggestion_text(shortage),
    )
