"""How long a step takes: what each role is busy with in each phase, and which of them wait for one another.

generate   the engines                                       ─┐ ahead by max_staleness versions, or not at all
score      reward, reference or teacher, critic, policy       │ side by side, each on its own GPUs
learn      policy and critic                                  │ side by side
publish    one rank to all engines                           ─┘ both sides stand still

synchronous      every phase as long as its slowest role, one after the other
ahead            all roles at once: as long as the busiest of them, then publish
colocated        every role on all GPUs, one after the other, and the switches between them
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config import RunConfig
from orchestrator.plan.constants import Constants
from orchestrator.plan.gangs import (
    Shapes,
    adapter_params,
    engine_of,
    has_reference,
    sampler_shape,
    shares_base,
)
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
from workers.config import DistillConfig, LearnerConfig, ModelRewardConfig, ReferenceConfig, TeacherConfig
from workers.needs import NEEDS

PHASES = ("generate", "score", "learn", "publish", "switch")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one step. `busy` says what each role does: {"learn": {"policy": 20.1}, …}."""

    busy: Mapping[str, Mapping[str, float]]
    step_s: float
    ahead: bool = False  # generation and scoring run beside learning

    def phase_s(self, phase: str) -> float:
        """As long as its slowest role; 0 for a phase that there is not."""
        return max(self.busy.get(phase, {}).values(), default=0.0)


def step_time(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> StepTime:
    """Of the recipe as it is placed: every role on its own GPUs."""
    busy: dict[str, dict[str, float]] = {}
    if work.sampled:
        busy["generate"] = {"rollout": _generate(config, shapes, gpu, work, constants)}
    busy["score"] = _score(config, shapes, gpu, work, constants)
    busy["learn"] = _learn(config, shapes, gpu, work, constants)
    if work.sampled and not _taught(config):
        busy["publish"] = {"policy": _publish(config, shapes, constants)}
    busy = {phase: roles for phase, roles in busy.items() if any(roles.values())}
    frozen = config.reference.refresh == "never"
    ahead = config.max_staleness > 0 if work.sampled else frozen
    return StepTime(busy=busy, step_s=_together(busy, ahead=ahead, frozen=frozen), ahead=ahead)


def colocated_time(
    config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants, gpus: int
) -> StepTime:
    """Of the same work with every role on all `gpus`, taking turns."""
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


def _together(busy: Mapping[str, Mapping[str, float]], *, ahead: bool, frozen: bool) -> float:
    publish = max(busy.get("publish", {}).values(), default=0.0)
    phases = [phase for phase in ("generate", "score", "learn") if phase in busy]
    if not ahead:
        return publish + sum(max(busy[phase].values()) for phase in phases)
    loads: dict[str, float] = {}
    for phase in phases:
        for role, seconds in busy[phase].items():
            loads[role] = loads.get(role, 0.0) + seconds
    if not frozen and "reference" in loads:  # it may be another one when the step comes, so it does not run ahead
        loads["policy"] = loads.get("policy", 0.0) + loads.pop("reference")
    return publish + max(loads.values(), default=0.0)


def _taught(config: RunConfig) -> bool:
    """Whether the engines hold the teacher, to which nothing is published."""
    return isinstance(config.algorithm, DistillConfig) and config.algorithm.sampler == "teacher"


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
    """One forward pass of every model that is asked about the step's completions."""

    def forward(role: str, gpus: int, tokens: float) -> float:
        return scoring_s(shapes[role], gpu, tokens=tokens, context=work.context, gpus=gpus, constants=constants)

    def asked(settings: LearnerConfig | ReferenceConfig | TeacherConfig) -> tuple[int, float]:
        """Its GPUs, and the tokens of a pass."""
        return settings.num_ranks, work.scored_tokens(settings.tokens_per_micro_batch)

    busy: dict[str, float] = {}
    cached = config.reference.cache and not work.sampled
    if config.algorithm.needs_reference:
        role, settings = ("policy", config.policy) if shares_base(config) else ("reference", config.reference)
        busy[role] = forward("policy", *asked(settings)) / (work.epochs if cached else 1)
    if config.algorithm.needs_old_logprobs:
        busy["policy"] = busy.get("policy", 0.0) + forward("policy", *asked(config.policy))
    if config.teacher is not None:
        busy["teacher"] = forward("teacher", *asked(config.teacher))
    if NEEDS[config.algorithm.type].critic:
        busy["critic"] = forward("critic", *asked(config.critic or config.policy))
    if work.sampled:
        alone = work.sequences * work.context  # a reward model reads every completion with its prompt
        rewards = [i for i, reward in enumerate(config.reward) if isinstance(reward, ModelRewardConfig)]
        if rewards:
            busy["reward"] = sum(forward(f"reward.{i}", config.reward_workers.num_workers, alone) for i in rewards)
    if has_reference(config) and work.sampled and config.reference.refresh == "every_round":
        written = 2.0 * shapes["policy"].num_params
        busy["reference"] += through_files_s(written, constants)
    return busy


def _learn(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> dict[str, float]:
    busy = {"policy": _one_learner(config, "policy", shapes, gpu, work, constants)}
    if NEEDS[config.algorithm.type].critic:
        busy["critic"] = _one_learner(config, "critic", shapes, gpu, work, constants)
    return busy


def _one_learner(config: RunConfig, role: str, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> float:
    """Computing, or the links between nodes where they take longer: ZeRO-3 fetches the next layer meanwhile."""
    settings = config.critic if role == "critic" and config.critic is not None else config.policy
    frozen = config.model.lora is not None
    ranks, tokens = settings.num_ranks, work.learned_tokens * work.passes
    computing = learning_s(
        shapes[role], gpu, tokens=tokens, context=work.context, gpus=ranks, constants=constants, frozen=frozen
    )
    updates = max(1, work.updates)
    micro = updates * math.ceil(tokens / updates / (max(settings.tokens_per_micro_batch, work.row) * ranks))
    moving = 0.0
    if settings.zero_stage == 3:
        moving = zero3_traffic_s(shapes[role], micro_steps=micro, gpus=ranks, constants=constants, frozen=frozen)
    return max(computing, moving) + constants.update_overhead_s * updates


def _publish(config: RunConfig, shapes: Shapes, constants: Constants) -> float:
    """Whole weights by broadcast from one rank; adapters through a shared directory, read by every engine."""
    shape = sampler_shape(config, shapes)
    if adapters := adapter_params(config, shape):
        return through_files_s(2.0 * adapters, constants)
    return broadcast_s(2.0 * shape.num_params, constants)
