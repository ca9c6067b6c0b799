"""Which roles a recipe asks GPUs for, what each of them holds, and whether it has room.

The light twin of orchestrator/pipeline/roles.py, which imports the workers themselves; a test keeps them in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from orchestrator.config import RunConfig
from orchestrator.plan.gpus import GPUS_PER_NODE, Gpu
from orchestrator.plan.memory import Memory, Sharding, engine_memory, learner_memory, scorer_memory
from orchestrator.plan.models import ModelShape
from orchestrator.plan.time import Engine
from orchestrator.plan.work import Work
from workers.config import DistillConfig, LearnerConfig, ModelRewardConfig
from workers.needs import NEEDS

Shapes: TypeAlias = Mapping[str, ModelShape]
"""By role: policy, critic, teacher, and each reward model as reward.0, reward.1 …"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What one role asks for: `members` actors of `gpus` GPUs each, and what each GPU holds.

    Example: four engines on two GPUs each: `Demand(role="rollout", members=4, gpus=2, memory=…, limit_bytes=80e9)`.
    """

    role: str
    members: int
    gpus: int
    memory: Memory
    limit_bytes: float  # of one GPU that this role may fill

    @property
    def num_gpus(self) -> int:
        return self.members * self.gpus

    @property
    def short_bytes(self) -> float:
        """Missing per GPU; 0 when it fits."""
        return max(0.0, self.memory.total - self.limit_bytes)

    @property
    def spans_nodes(self) -> bool:
        """Whether one actor asks for more GPUs than a node has, which no placement can give it."""
        return self.gpus > GPUS_PER_NODE

    @property
    def fits(self) -> bool:
        return self.short_bytes == 0.0 and not self.spans_nodes


def shares_base(config: RunConfig) -> bool:
    """Whether the model under the adapters is the reference."""
    return config.model.lora is not None and config.reference.refresh == "never"


def has_reference(config: RunConfig) -> bool:
    """Whether a second model stands beside the policy as its reference."""
    return config.algorithm.needs_reference and not shares_base(config)


def has_base(config: RunConfig) -> bool:
    """Whether a further one holds the model that the run began with, to measure the distance from it."""
    stays = config.algorithm.needs_reference and config.reference.refresh == "never"
    return config.evaluation.num_samples > 0 and not stays and not shares_base(config)


def asks_states(config: RunConfig) -> bool:
    return isinstance(config.algorithm, DistillConfig) and config.algorithm.objective == "divergence"


def sampler_shape(config: RunConfig, shapes: Shapes) -> ModelShape:
    """Of the model in the engines."""
    taught = isinstance(config.algorithm, DistillConfig) and config.algorithm.sampler == "teacher"
    return shapes["teacher" if taught else "policy"]


def engine_of(config: RunConfig, shapes: Shapes, gpu: Gpu) -> Engine:
    return Engine(
        shape=sampler_shape(config, shapes),
        gpu=gpu,
        tensor_parallel=config.rollout.tensor_parallel_size,
        utilization=config.rollout.gpu_memory_utilization,
        max_running=config.rollout.max_num_seqs,
    )


def headless(shape: ModelShape) -> ModelShape:
    """With one number at the end instead of an output layer: a critic, a reward model."""
    return replace(shape, tied=True)


def adapter_params(config: RunConfig, shape: ModelShape) -> int:
    """0 where all weights are trained."""
    lora = config.model.lora
    return 0 if lora is None else shape.adapter_params(lora.r, lora.target_modules)


def demands(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, *, typical: bool = False) -> list[Demand]:
    """Every role that takes GPUs, policy first. `typical`: for rows of mean lengths, not of the longest."""
    learned, scored = (work.row, work.context) if typical else (float(work.longest_row), float(work.longest))
    full = gpu.memory_bytes
    found = [_learner("policy", config, config.policy, shapes, learned, full)]
    if NEEDS[config.algorithm.type].critic:
        found.append(_learner("critic", config, config.critic or config.policy, shapes, learned, full))
    for role in [*(["reference"] if has_reference(config) else []), *(["base"] if has_base(config) else [])]:
        reference = config.reference
        sharding = Sharding(
            ranks=reference.num_ranks, zero_stage=reference.zero_stage, weight_bytes=_width(config.model.dtype)
        )
        tokens, chunk = max(reference.tokens_per_micro_batch, scored), config.policy.logprob_chunk_tokens
        memory = scorer_memory(shapes["policy"], sharding, tokens=tokens, chunk=chunk)
        found.append(Demand(role=role, members=reference.num_ranks, gpus=1, memory=memory, limit_bytes=full))
    if (teacher := config.teacher) is not None:
        sharding = Sharding(
            ranks=teacher.num_ranks, zero_stage=teacher.zero_stage, weight_bytes=_width(teacher.model.dtype)
        )
        memory = scorer_memory(
            shapes["teacher"],
            sharding,
            tokens=max(teacher.tokens_per_micro_batch, scored),
            chunk=config.policy.logprob_chunk_tokens,
            logprobs=not asks_states(config),
        )
        found.append(Demand(role="teacher", members=teacher.num_ranks, gpus=1, memory=memory, limit_bytes=full))
    if config.data.answered:
        found.append(_rollout(config, shapes, gpu))
        found += _reward(config, shapes, full)
    return found


def _width(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _learner(
    role: str,
    config: RunConfig,
    settings: LearnerConfig,
    shapes: Shapes,
    learned: float,
    full: float,
) -> Demand:
    logprobs = role == "policy" and NEEDS[config.algorithm.type].head != "scores"
    shape = shapes[role] if logprobs else headless(shapes[role])
    # What is never cut, a pair or a single completion, is a micro-batch of its own where it is longer than the budget.
    # A critic, or a policy with adapters, scores too: without gradients that takes less than learning from as much.
    tokens = max(settings.tokens_per_micro_batch, learned)
    sharding = Sharding(
        ranks=settings.num_ranks, zero_stage=settings.zero_stage, weight_bytes=_width(config.model.dtype)
    )
    memory = learner_memory(
        shape,
        sharding,
        tokens=tokens,
        checkpointing=settings.gradient_checkpointing,
        chunk=settings.logprob_chunk_tokens,
        offload=settings.offload_optimizer,
        adapters=adapter_params(config, shape),
        logprobs=logprobs,
        teacher=shapes["teacher"] if role == "policy" and asks_states(config) else None,
    )
    return Demand(role=role, members=settings.num_ranks, gpus=1, memory=memory, limit_bytes=full)


def _rollout(config: RunConfig, shapes: Shapes, gpu: Gpu) -> Demand:
    engine = engine_of(config, shapes, gpu)
    longest = config.rollout.max_prompt_length + config.rollout.max_completion_length
    return Demand(
        role="rollout",
        members=config.rollout.num_engines,
        gpus=config.rollout.tensor_parallel_size,
        memory=engine_memory(engine, longest),
        # Rounded where it fills its limit to the byte.
        limit_bytes=gpu.memory_bytes * engine.utilization + 1,
    )


def _reward(config: RunConfig, shapes: Shapes, full: float) -> list[Demand]:
    """Each worker holds all reward models of the recipe."""
    held: dict[str, float] = {}
    for i, reward in enumerate(config.reward):
        if not isinstance(reward, ModelRewardConfig):
            continue
        sharding = Sharding(ranks=1, zero_stage=0, weight_bytes=_width(reward.dtype))
        tokens = max(reward.tokens_per_micro_batch, reward.max_length)
        one = scorer_memory(headless(shapes[f"reward.{i}"]), sharding, tokens=tokens, chunk=0, logprobs=False)
        for name, size in one.parts:  # weights add up; one model at a time computes
            held[name] = held.get(name, 0.0) + size if name == "weights" else max(held.get(name, 0.0), size)
    if not held:
        return []
    workers, memory = config.reward_workers.num_workers, Memory(parts=tuple(held.items()))
    return [Demand(role="reward", members=workers, gpus=1, memory=memory, limit_bytes=full)]
