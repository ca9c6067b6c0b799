"""Estimate the time of a step from the busy time of each role in each phase.

refresh    the drift is measured on the first chunk; policy writes, reference reads, before the chunk is scored
generate   rollout engines                               up to max_staleness versions ahead of learning
score      reward, reference or teacher                  each on its own GPUs, one chunk behind generation
           critic, policy                                after all rewards, before they learn
learn      policy and critic                             in parallel
publish    one rank to all engines                       engines and learners wait

synchronous   a stream of chunks (generate, score), then learn, then publish
ahead         phases overlap: as long as the busiest role, then publish
colocated     every role on all GPUs in turn, plus the switches between them
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from orchestrator.config import RunConfig
from orchestrator.pipeline.roles import has_reference, shares_base
from orchestrator.plan.chunks import chunk_sizes, prompts_per_chunk, streamed_s
from orchestrator.plan.constants import Constants
from orchestrator.plan.gangs import Shapes, adapter_params, engine_of, reference_shape, sampler_shape
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.loading import weights_s
from orchestrator.plan.scorers import cpu_s
from orchestrator.plan.time import (
    broadcast_s,
    generation_s,
    learning_s,
    scoring_s,
    through_files_s,
    zero3_traffic_s,
)
from orchestrator.plan.work import Work
from workers.config import (
    ClassifierRewardConfig,
    LearnerConfig,
    ModelScorerConfig,
    PairwiseRewardConfig,
    ReferenceConfig,
    TeacherConfig,
)

PHASES = ("refresh", "generate", "score", "learn", "publish", "switch")
Busy: TypeAlias = Mapping[str, Mapping[str, float]]
"""Seconds by phase and role: {"learn": {"policy": 20.1}, …}"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Duration of one step in seconds, with the busy time of each role."""

    busy: Busy
    step_s: float
    ahead: bool = False  # generation and scoring overlap with learning
    begins: Busy = field(default_factory=dict)  # seconds from the start of the step; empty: not known
    chunks: tuple[int, ...] = ()  # prompts, or rows of a dataset, of each chunk of generation and scoring
    chunk: Busy = field(default_factory=dict)  # seconds of a full chunk

    def phase_s(self, phase: str) -> float:
        """Return the busy time of the phase's slowest role; 0 for a phase that does not occur."""
        return max(self.busy.get(phase, {}).values(), default=0.0)


def step_time(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> StepTime:
    """Return the time of a step with every role on its own GPUs."""
    sizes = chunk_sizes(work.groups, prompts_per_chunk(config.rollout, work.group) if work.sampled else work.groups)
    by_size = {size: _chunk(config, shapes, gpu, replace(work, groups=size), constants) for size in set(sizes)}
    parts = [by_size[size] for size in sizes]
    if work.mixed:
        parts.append(_mixed(config, shapes, gpu, work, constants, like=parts[0]))
    busy: dict[str, dict[str, float]] = {"refresh": _refresh(config, shapes, parts[0], constants)}
    for phase in ("generate", "score"):
        busy[phase] = {role: sum(part[phase][role] for part in parts) for role in parts[0][phase]}
    trains = config.algorithm.needs.trains
    busy["learn"] = _learn(config, shapes, gpu, work, constants) if trains else {}
    # Nothing is published to a teacher. Engines that only evaluate get weights before an evaluation, not in every step.
    if work.sampled and trains and not config.algorithm.teacher_samples:
        busy["publish"] = {"policy": publish_s(config, shapes, constants)}
    busy = {phase: roles for phase, roles in busy.items() if any(roles.values())}
    frozen = config.reference.refresh == "never"
    ahead = config.max_staleness > 0 if work.sampled else frozen
    decided = sum(parts[0]["generate"].values()) if _measures_drift(config) else 0.0
    if ahead:
        begins, step_s = _ahead(busy, frozen=frozen)
    else:
        begins, step_s = _in_sequence(busy, parts, _streamed(config), decided)
    return StepTime(busy=busy, step_s=step_s, ahead=ahead, begins=begins, chunks=sizes, chunk=by_size[max(sizes)])


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
    if work.sampled and config.algorithm.needs.trains:
        busy["publish"] = {"policy": constants.colocated_publish_s}
        busy["switch"] = {"all": constants.switch_s}
    return StepTime(busy=busy, step_s=sum(sum(roles.values()) for roles in busy.values()))


def _streamed(config: RunConfig) -> frozenset[str]:
    """Return the roles that score a chunk while the engines sample the next one.

    The policy is one of them if it is the reference as well, under its adapters, and needs no scores of its own."""
    policy = {"policy"} if shares_base(config) and not config.algorithm.needs_old_logprobs else set[str]()
    return frozenset({"reward", "reference", "teacher"} | policy)


def _in_sequence(busy: Busy, parts: Sequence[Busy], streamed: frozenset[str], decided: float) -> tuple[Busy, float]:
    """Return when each role begins each phase, and the time of the step, if nothing overlaps but a step's chunks.

    Args:
        streamed: Roles that score a chunk while the next one is sampled. Other roles wait for the whole step's rewards.
        decided: When the chunk is sampled on which the decision to refresh depends.
    """
    generating = [sum(part["generate"].values()) for part in parts]
    begins: dict[str, dict[str, float]] = {"refresh": {}, "generate": dict.fromkeys(busy.get("generate", {}), 0.0)}
    refreshed = decided if busy.get("refresh") else 0.0
    for role, seconds in busy.get("refresh", {}).items():
        begins["refresh"][role] = refreshed
        refreshed += seconds
    score = busy.get("score", {})
    ends = {
        role: streamed_s(
            generating, [part["score"][role] for part in parts], ready=refreshed if role == "reference" else 0.0
        )
        for role in score
        if role in streamed
    }
    own = max(sum(generating), refreshed, ends.get("reward", 0.0))  # when the learners score
    begins["score"] = {role: ends[role] - score[role] if role in ends else own for role in score}
    learned = max([own, *(begins["score"][role] + seconds for role, seconds in score.items())])
    begins["learn"] = dict.fromkeys(busy.get("learn", {}), learned)
    published = learned + max(busy.get("learn", {}).values(), default=0.0)
    begins["publish"] = dict.fromkeys(busy.get("publish", {}), published)
    return begins, published + max(busy.get("publish", {}).values(), default=0.0)


def _ahead(busy: Busy, *, frozen: bool) -> tuple[Busy, float]:
    """Return when each role begins each phase, and the time of the step, if phases of different steps overlap."""
    publish = max(busy.get("publish", {}).values(), default=0.0)
    begins: dict[str, dict[str, float]] = {}
    loads: dict[str, float] = {}
    for phase in (phase for phase in PHASES if phase in busy and phase != "publish"):
        begins[phase] = {role: loads.get(role, 0.0) for role in busy[phase]}
        for role, seconds in busy[phase].items():
            loads[role] = loads.get(role, 0.0) + seconds
    if not frozen and "reference" in loads:  # it may be refreshed before the step, so it cannot run ahead
        loads["policy"] = loads.get("policy", 0.0) + loads.pop("reference")
    busiest = max(loads.values(), default=0.0)
    begins["publish"] = dict.fromkeys(busy.get("publish", {}), busiest)
    return begins, busiest + publish


def _chunk(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants) -> Busy:
    """Return the seconds of a chunk, the prompts of `work`."""
    generate = {"rollout": _generate(config, shapes, gpu, work, constants)} if work.sampled else {}
    return {"generate": generate, "score": _score(config, shapes, gpu, work, constants)}


def _mixed(
    config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, constants: Constants, *, like: Busy
) -> dict[str, dict[str, float]]:
    """Return the seconds of the chunk of given pairs, which nothing samples or rewards; `like`: a sampled one."""
    pairs = replace(work, groups=work.mixed, group=2, scored_group=2, sampled=False)
    scored = _score(config, shapes, gpu, pairs, constants)
    return {
        "generate": dict.fromkeys(like["generate"], 0.0),
        "score": {role: scored.get(role, 0.0) for role in like["score"]},
    }


def _measures_drift(config: RunConfig) -> bool:
    """Return whether the reference measures the drift on a step's first chunk, before a refresh."""
    if not has_reference(config) or config.data.prompts is None:
        return False
    return config.algorithm.needs.rounds or config.reference.refresh == "when_drifted"


def _refresh(config: RunConfig, shapes: Shapes, first: Busy, constants: Constants) -> dict[str, float]:
    """Return the time of a refresh before each step, and of the pass over the `first` chunk that measures the drift.

    The log-probabilities of that pass are used again if the reference and the temperature stay the same."""
    if not has_reference(config) or config.data.prompts is None:
        return {}
    refreshed = config.reference.refresh in ("every_round", "ema")
    sampling = config.rollout.temperature
    busy = refresh_s(shapes, constants) if refreshed else {}
    if _measures_drift(config) and (refreshed or config.algorithm.loss_temperature(sampling) != sampling):
        busy["reference"] = busy.get("reference", 0.0) + first["score"]["reference"]
    return busy


def refresh_s(shapes: Shapes, constants: Constants) -> dict[str, float]:
    """Return the time of either half of a refresh: rank 0 of the policy writes, then the reference reads."""
    seconds = weights_s(shapes["policy"].num_params, constants)
    return {"policy": seconds, "reference": seconds}


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
        shape = reference_shape(shapes) if role == "reference" else shapes[role]
        return scoring_s(shape, gpu, tokens=tokens, context=work.context, gpus=gpus, constants=constants)

    def size(settings: LearnerConfig | ReferenceConfig | TeacherConfig) -> tuple[int, float]:
        """Return the role's number of GPUs, and the tokens of a pass."""
        return settings.num_ranks, work.scored_tokens(settings.tokens_per_micro_batch)

    busy: dict[str, float] = {}
    cached = config.reference.cache and not work.sampled
    if config.algorithm.needs_reference:
        role, settings = ("policy", config.policy) if shares_base(config) else ("reference", config.reference)
        busy[role] = forward(role, *size(settings)) / (work.epochs if cached else 1)
    if config.algorithm.needs_old_logprobs:
        busy["policy"] = busy.get("policy", 0.0) + forward("policy", *size(config.policy))
    if config.teacher is not None:
        busy["teacher"] = forward("teacher", *size(config.teacher))
    if config.algorithm.needs.critic:
        busy["critic"] = forward("critic", *size(config.critic or config.policy))
    if work.sampled and config.reward:
        busy["reward"] = reward_s(
            config, shapes, gpu, prompts=work.groups, group=work.group, context=work.context, constants=constants
        )
    return busy


def reward_s(
    config: RunConfig,
    shapes: Shapes,
    gpu: Gpu,
    *,
    prompts: int,
    group: int,
    context: float,
    constants: Constants,
) -> float:
    """Return the time in which the reward workers score `prompts` with `group` completions each.

    A reward model reads every completion with its prompt, `context` tokens. A model that compares reads two at a time.
    A classifier reads no more than its `max_length`.
    """
    workers, forward = config.reward_workers.num_workers, 0.0
    for i, reward in enumerate(config.reward):
        if isinstance(reward, ModelScorerConfig):
            texts, each = (
                (group, 1) if not isinstance(reward, PairwiseRewardConfig) else (2 * reward.comparisons(group), 2)
            )
            read = min(context, reward.max_length) if isinstance(reward, ClassifierRewardConfig) else context
            tokens, length = prompts * texts * each * read, each * read
            shape = shapes[f"reward.{i}"]
            forward += scoring_s(shape, gpu, tokens=tokens, context=length, gpus=workers, constants=constants)
    cpus = config.cluster.cpus_per_worker
    return forward + cpu_s(config.reward, prompts=prompts, group=group, workers=workers, cpus=cpus)


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


def publish_s(config: RunConfig, shapes: Shapes, constants: Constants) -> float:
    """Return the time to broadcast all weights from one rank, or to pass adapters through a shared directory."""
    shape = sampler_shape(config, shapes)
    if adapters := adapter_params(config, shape):
        return through_files_s(2.0 * adapters, constants)
    return broadcast_s(2.0 * shape.num_params, constants)
