"""Disk space of a run's checkpoints.

DeepSpeed saves the float32 master weights and AdamW's two moments: 12 bytes per trained parameter. Below ZeRO-3 it
also saves the module's own weights. A frozen base is not saved.
"""

from __future__ import annotations

from orchestrator.config import RunConfig
from orchestrator.plan.gangs import Shapes, adapter_params, headless
from workers.config import LearnerConfig


def bytes_per_parameter(*, zero_stage: int, weight_bytes: int) -> int:
    """Return the bytes of one trained parameter in a checkpoint. At stage 0 float32 weights are their own master copy.

    >>> bytes_per_parameter(zero_stage=3, weight_bytes=2), bytes_per_parameter(zero_stage=1, weight_bytes=2)
    (12, 14)
    """
    master = 4 if zero_stage or weight_bytes == 2 else 0
    return master + 8 + (0 if zero_stage == 3 else weight_bytes)


def checkpoint_bytes(config: RunConfig, shapes: Shapes) -> float:
    """Return the size of one checkpoint: policy and critic."""
    return sum(checkpoint_bytes_by_role(config, shapes).values())


def checkpoint_bytes_by_role(config: RunConfig, shapes: Shapes) -> dict[str, float]:
    """Return the bytes that each learner saves."""
    width = 4 if config.model.dtype == "float32" else 2
    sizes = {}
    for role, settings in learners(config).items():
        scores = role == "critic" or config.algorithm.needs.head == "scores"
        shape = headless(shapes[role]) if scores else shapes[role]
        trained = adapter_params(config, shape) or shape.num_params
        sizes[role] = trained * float(bytes_per_parameter(zero_stage=settings.zero_stage, weight_bytes=width))
    return sizes


def learners(config: RunConfig) -> dict[str, LearnerConfig]:
    """Return the settings of the policy and, if the method has one, the critic; none if nothing is trained."""
    if not config.algorithm.needs.trains:
        return {}
    critic = {"critic": config.critic or config.policy} if config.algorithm.needs.critic else {}
    return {"policy": config.policy, **critic}


def disk_bytes(config: RunConfig, shapes: Shapes) -> float:
    """Return the peak disk space: the checkpoints that are kept, one that is being written, and the initial state.

    Each of these checkpoints may need the model of another round: the best one until then.
    """
    initial, saved = config.rounds.policy == "base", config.checkpoint.keep + 1
    return (saved + initial) * checkpoint_bytes(config, shapes) + saved * round_model_bytes(config, shapes)


def round_model_bytes(config: RunConfig, shapes: Shapes) -> float:
    """Return the size of a round's model, where the best round is exported; else 0."""
    width = 4 if config.model.dtype == "float32" else 2
    return float(width * shapes["policy"].num_params) if config.best_round_by is not None else 0.0
