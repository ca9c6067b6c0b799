"""Seconds to start each role: its processes, the weights that it reads, the graphs that an engine compiles."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.config import RunConfig
from orchestrator.pipeline.roles import gang_plans
from orchestrator.plan.constants import Constants
from orchestrator.plan.gangs import Shapes, reference_shape, sampler_shape
from orchestrator.plan.roles import ByRole


def weights_s(num_params: float, constants: Constants) -> float:
    """Return the time in which every node reads a model of `num_params`, in bfloat16, from the shared file system."""
    return 2.0 * num_params / constants.disk_bytes_per_s


def loading_s(config: RunConfig, shapes: Shapes, constants: Constants) -> dict[str, float]:
    """Return the time to start each role. All roles start at the same time."""
    loaded = {}
    for plan in gang_plans(config, cuda=True, max_steps=1):
        reading = weights_s(_PARAMS[plan.role](config, shapes), constants)
        loaded[plan.role] = constants.process_start_s + reading
        if plan.role == "rollout":
            loaded[plan.role] += constants.engine_layer_start_s * sampler_shape(config, shapes).layers
    return loaded


def _policy(config: RunConfig, shapes: Shapes) -> float:
    return shapes["policy"].num_params


def _critic(config: RunConfig, shapes: Shapes) -> float:
    return shapes["critic"].num_params


def _reference(config: RunConfig, shapes: Shapes) -> float:
    return reference_shape(shapes).num_params


def _teacher(config: RunConfig, shapes: Shapes) -> float:
    return shapes["teacher"].num_params


def _rollout(config: RunConfig, shapes: Shapes) -> float:
    return sampler_shape(config, shapes).num_params


def _reward(config: RunConfig, shapes: Shapes) -> float:
    return sum(shapes[f"reward.{i}"].num_params for i, reward in enumerate(config.reward) if reward.type == "model")


def _no_model(config: RunConfig, shapes: Shapes) -> float:
    return 0.0


_PARAMS: ByRole[Callable[[RunConfig, Shapes], float]] = ByRole(
    policy=_policy,
    critic=_critic,
    reference=_reference,
    base=_policy,
    teacher=_teacher,
    rollout=_rollout,
    reward=_reward,
    refusal=_no_model,
    dataset=_no_model,
    writer=_no_model,
)
"""By role: parameters of the models that it loads."""
