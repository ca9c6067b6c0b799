"""A plan as JSON values: bytes, seconds, GPU-hours and US dollars."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from orchestrator.plan.advice import as_overrides
from orchestrator.plan.calls import Call
from orchestrator.plan.checkpoints import checkpoint_bytes, disk_bytes
from orchestrator.plan.gangs import Demand
from orchestrator.plan.gpus import PRICES
from orchestrator.plan.grace import stop_seconds
from orchestrator.plan.placement import Placement
from orchestrator.plan.plan import NOT_MEASURED, Plan

TIMES_AND_COSTS = (
    "phases_s", "step_s", "step_s_by_staleness", "step_s_colocated",
    "calls", "run_s", "evaluation_s", "gpu_hours_per_1000", "dollars_per_1000", "gpu_hours", "dollars",
)  # fmt: skip


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan. Times and costs are None when the roles have no room."""
    if not plan.has_room:  # they would belong to a larger cluster; `placements` has what fits on this one
        return _all_values(plan) | dict.fromkeys(TIMES_AND_COSTS)
    return _all_values(plan)


def _all_values(plan: Plan) -> dict[str, Any]:
    total = plan.total_gpu_hours
    return {
        "name": plan.name,
        "algorithm": plan.config.algorithm.type,
        "models": {role: asdict(shape) | {"num_params": shape.num_params} for role, shape in plan.shapes.items()},
        "gpu": plan.gpu.name,
        "gpus_given": plan.given,
        "gpus_asked": plan.asked,
        "fits": plan.fits,
        "roles": [_role(demand) for demand in plan.demands],
        "shortages": [
            {
                "role": shortage.role,
                "short_bytes": shortage.short_bytes,
                "overrides": as_overrides(shortage.changes) if shortage.changes else None,
                "larger_gpu": shortage.larger.name if shortage.larger else None,
            }
            for shortage in plan.shortages
        ],
        "calls": [_call(call) for call in plan.calls],
        "overrides_to_end": as_overrides(plan.ending) if plan.late else None,
        "fewest_gpus": plan.fewest,
        "work": asdict(plan.work) | {"sequences": plan.work.sequences},
        "phases_s": {
            phase: {role: _finite(duration) for role, duration in roles.items()}
            for phase, roles in plan.time.busy.items()
        },
        "step_s": _finite(plan.time.step_s),
        "step_s_by_staleness": {"0": _finite(plan.synchronous.step_s), "1": _finite(plan.one_ahead.step_s)},
        "step_s_colocated": _finite(plan.colocated.step_s),
        "load_s": dict(plan.load),
        "evaluation_s": None if plan.evaluation is None else _finite(plan.evaluation.seconds),
        "run_s": None if plan.run_s is None else _finite(plan.run_s),
        "gpu_hours_per_1000": _finite(plan.gpu_hours_per_1000()),
        "dollars_per_1000": _finite(plan.gpu_hours_per_1000() * plan.price),
        "gpu_hours": None if total is None else _finite(total),
        "dollars": None if total is None else _finite(total * plan.price),
        "dollars_per_gpu_hour": plan.price,
        "price_source": PRICES if plan.price == plan.gpu.price else "given",
        "checkpoint_bytes": checkpoint_bytes(plan.config, plan.shapes),
        "checkpoints_disk_bytes": disk_bytes(plan.config, plan.shapes),
        "checkpoint_every": plan.config.checkpoint.every,
        "stop_s": _finite(stop_seconds(plan)),
        "placements": [_placement(placement) for placement in plan.placements[:10]],
        "note": NOT_MEASURED,
    }


def _finite(value: float) -> float | None:
    """Return None for infinity, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def _role(demand: Demand) -> dict[str, Any]:
    return {
        "role": demand.role,
        "members": demand.members,
        "gpus_per_member": demand.gpus,
        "bytes_per_gpu": demand.memory.total,
        "limit_bytes": demand.limit_bytes,
        "host_bytes_per_gpu": demand.memory.host_bytes,
        "parts": dict(demand.memory.parts),
        "fits": demand.fits,
    }


def _call(call: Call) -> dict[str, Any]:
    return asdict(call) | {"seconds": _finite(call.seconds), "ends": call.ends}


def _placement(placement: Placement) -> dict[str, Any]:
    return {
        "overrides": as_overrides(placement.changes),
        "gpus": placement.num_gpus,
        "step_s": _finite(placement.time.step_s),
        "gpus_by_role": {demand.role: demand.num_gpus for demand in placement.demands},
    }
