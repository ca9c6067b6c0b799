"""Estimate the time of a step from the busy time of each role in each phase.

generate   rollout engines                               up to max_staleness versions ahead of learning
score      reward, reference or teacher, critic, policy  in parallel, each on its own GPUs
learn      policy and critic                             in parallel
publish    one rank to all engines                       engines and learners wait

synchronous   phases are sequential, each as long as its slowest role
ahead         phases overlap: as long as the busiest role, then publish
colocated     every role on all GPUs in turn, plus the switches between them
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config import RunConfig
from orchestrator.pipeline.roles import has_reference, shares_base
from orchestrator.plan.constants import Constants
from orchestrator.plan.gangs import Shapes, adapter_params, engine_of, sampler_shape
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.time import (
    broadcast_s,
    generation_s,
    learning_s,
    scoring_s,
    through_files_s,
    zero3_traffic_s,
)
from orchestrator.plan.work import Work
from workers.config import LearnerConfig, ModelRewardConfig, ReferenceConfig, TeacherConfig

PHASES = ("generate", "score", "learn", "publish", "switch")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Duration of one step in seconds, with the busy time of each role."""

    busy: Mapping[str, Mapping[str, float]]  # by phase and role: {"learn": {"policy": 20.1}, …}
    step_s: float
    ahead: bool = False  # generation and scoring overlap with learning

    def phase_s(self, phase: str) -> float:
        """Return the busy time of the phase's slowest role; 0 for a phase that does not occur."""
        return max(self.busy.get(phase, {}).values(), default=0.0)


def step_time(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> StepTime:
    """Return the time of a step with every role on its own GPUs."""
    busy: dict[str, dict[str, float]] = {}
    if work.sampled:
        busy["generate"] = {"rollout": _generate(config, shapes, gpu, work, constants)}
    busy["score"] = _score(config, shapes, gpu, work, constants)
    busy["learn"] = _learn(config, shapes, gpu, work, constants)
    if work.sampled and not config.algorithm.teacher_samples:  # nothing is published to a teacher
        busy["publish"] = {"policy": _publish(config, shapes, constants)}
    busy = {phase: roles for phase, roles in busy.items() if any(roles.values())}
    frozen = config.reference.refresh == "never"
    ahead = config.max_staleness > 0 if work.sampled else frozen
    return StepTime(busy=busy, step_s=_combined_s(busy, ahead=ahead, frozen=frozen), ahead=ahead)


def colocated_time(
    config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants, gpus: int
) -> StepTime:
    """Return the time of a step in which all roles time-share all `gpus`."""
    engines = max(1, gpus // config.rollout.tensor_parallel_size)
    reference = config.reference.model_copy(update={"num_ranks": gpus, "zero_stage": 3})
    policy = config.policy.model_copy(update={"num_ranks": gpus})
    update: dict[str, object] = {
        "policy": policy,
        "reference": reference,
        "rollout": config.rollout.model_copy(update={"num_engines": engines}),
        "reward_workers": config.reward_workers.model_copy(update={"num_workers": gpus}),
    }
    if config.critic is not None:
        update["critic"] = config.critic.model_copy(update={"num_ranks": gpus})
    if config.teacher is not None:
        update["teacher"] = config.teacher.model_copy(update={"num_ranks": gpus, "zero_stage": 3})
    split = step_time(config.model_copy(update=update), shapes, gpu, work, constants)
    busy = {phase: dict(roles) for phase, roles in split.busy.items() if phase != "publish"}
    if work.sampled:
        busy["publish"] = {"policy": constants.colocated_publish_s}
        busy["switch"] = {"all": constants.switch_s}
    return StepTime(busy=busy, step_s=sum(sum(roles.values()) for roles in busy.values()))


def _combined_s(busy: Mapping[str, Mapping[str, float]], *, ahead: bool, frozen: bool) -> float:
    publish = max(busy.get("publish", {}).values(), default=0.0)
    phases = [phase for phase in ("generate", "score", "learn") if phase in busy]
    if not ahead:
        return publish + sum(max(busy[phase].values()) for phase in phases)
    loads: dict[str, float] = {}
    for phase in phases:
        for role, seconds in busy[phase].items():
            loads[role] = loads.get(role, 0.0) + seconds
    if not frozen and "reference" in loads:  # it may be refreshed before the step, so it cannot run ahead
        loads["policy"] = loads.get("policy", 0.0) + loads.pop("reference")
    return publish + max(loads.values(), default=0.0)


def _generate(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> float:
    engines = config.rollout.num_engines
    sequences = math.ceil(work.groups / engines) * work.group  # a group is sampled by one engine
    return generation_s(
        engine_of(config, shapes, gpu),
        sequences=sequences,
        prompt=work.prompt,
        response=work.response,
        longest=work.longest_response,
        group=work.group,
        constants=constants,
    )


def _score(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> dict[str, float]:
    """Return the time of one forward pass over the step's completions, for every model that scores them."""

    def forward(role: str, gpus: int, tokens: float) -> float:
        return scoring_s(shapes[role], gpu, tokens=tokens, context=work.context, gpus=gpus, constants=constants)

    def size(settings: LearnerConfig | ReferenceConfig | TeacherConfig) -> tuple[int, float]:
        """Return the role's number of GPUs, and the tokens of a pass."""
        return settings.num_ranks, work.scored_tokens(settings.tokens_per_micro_batch)

    busy: dict[str, float] = {}
    cached = config.reference.cache and not work.sampled
    if config.algorithm.needs_reference:
        role, settings = ("policy", config.policy) if shares_base(config) else ("reference", config.reference)
        busy[role] = forward("policy", *size(settings)) / (work.epochs if cached else 1)
    if config.algorithm.needs_old_logprobs:
        busy["policy"] = busy.get("policy", 0.0) + forward("policy", *size(config.policy))
    if config.teacher is not None:
        busy["teacher"] = forward("teacher", *size(config.teacher))
    if config.algorithm.needs.critic:
        busy["critic"] = forward("critic", *size(config.critic or config.policy))
    if work.sampled:
        tokens = work.sequences * work.context  # a reward model reads every completion with its prompt
        rewards = [i for i, reward in enumerate(config.reward) if isinstance(reward, ModelRewardConfig)]
        if rewards:
            busy["reward"] = sum(forward(f"reward.{i}", config.reward_workers.num_workers, tokens) for i in rewards)
    if has_reference(config) and work.sampled and config.reference.refresh == "every_round":
        written = 2.0 * shapes["policy"].num_params
        busy["reference"] += through_files_s(written, constants)
    return busy


def _learn(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> dict[str, float]:
    busy = {"policy": _one_learner(config, "policy", shapes, gpu, work, constants)}
    if config.algorithm.needs.critic:
        busy["critic"] = _one_learner(config, "critic", shapes, gpu, work, constants)
    return busy


def _one_learner(config: RunConfig, role: str, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> float:
    """Return the longer of computation and ZeRO-3 traffic between nodes, which overlap, plus fixed costs."""
    settings = config.critic if role == "critic" and config.critic is not None else config.policy
    frozen = config.model.lora is not None
    ranks, tokens = settings.num_ranks, work.learned_tokens * work.passes
    computing = learning_s(
        shapes[role], gpu, tokens=tokens, context=work.context, gpus=ranks, constants=constants, frozen=frozen
    )
    updates = max(1, work.updates)
    micro = updates * math.ceil(tokens / updates / (max(settings.tokens_per_micro_batch, work.row) * ranks))
    traffic = 0.0
    if settings.zero_stage == 3:
        traffic = zero3_traffic_s(shapes[role], micro_steps=micro, gpus=ranks, constants=constants, frozen=frozen)
    return max(computing, traffic) + constants.update_overhead_s * updates


def _publish(config: RunConfig, shapes: Shapes, constants: Constants) -> float:
    """Return the time to broadcast all weights from one rank, or to pass adapters through a shared directory."""
    shape = sampler_shape(config, shapes)
    if adapters := adapter_params(config, shape):
        return through_files_s(2.0 * adapters, constants)
    return broadcast_s(2.0 * shape.num_params, constants)
