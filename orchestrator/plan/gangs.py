"""Memory per GPU of every gang of a run, and whether it fits.

Roles, members and GPUs per member come from orchestrator/pipeline/roles.py, by which the driver starts the gangs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from orchestrator.config import RunConfig
from orchestrator.pipeline.roles import gang_plans
from orchestrator.plan.gpus import GPUS_PER_NODE, Gpu
from orchestrator.plan.memory import Memory, Sharding, engine_memory, learner_memory, scorer_memory
from orchestrator.plan.models import ModelShape
from orchestrator.plan.roles import ByRole
from orchestrator.plan.time import Engine
from orchestrator.plan.work import Work
from workers.config import LearnerConfig, ModelScorerConfig, PairwiseRewardConfig

Shapes: TypeAlias = Mapping[str, ModelShape]
"""By role: policy, critic, teacher, a reference that is another model, and each reward model as reward.0, reward.1 …"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """GPUs and memory of one role: `members` actors of `gpus` GPUs each, and what each GPU holds.

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
        """Bytes missing per GPU; 0 when it fits."""
        return max(0.0, self.memory.total - self.limit_bytes)

    @property
    def spans_nodes(self) -> bool:
        """True if one actor asks for more GPUs than a node has, which no placement can give it."""
        return self.gpus > GPUS_PER_NODE

    @property
    def fits(self) -> bool:
        return self.short_bytes == 0.0 and not self.spans_nodes


def sampler_shape(config: RunConfig, shapes: Shapes) -> ModelShape:
    """Return the shape of the model in the engines."""
    return shapes["teacher" if config.algorithm.teacher_samples else "policy"]


def reference_shape(shapes: Shapes) -> ModelShape:
    """Return the shape of the reference: that of the policy, unless it is another model."""
    return shapes["reference" if "reference" in shapes else "policy"]


def engine_of(config: RunConfig, shapes: Shapes, gpu: Gpu) -> Engine:
    return Engine(
        shape=sampler_shape(config, shapes),
        gpu=gpu,
        tensor_parallel=config.rollout.tensor_parallel_size,
        utilization=config.rollout.gpu_memory_utilization,
        max_running=config.rollout.max_num_seqs,
    )


def headless(shape: ModelShape) -> ModelShape:
    """Return a shape with one number at the end instead of an output layer: a critic, a reward model."""
    return replace(shape, tied=True)


def adapter_params(config: RunConfig, shape: ModelShape) -> int:
    """Return the number of adapter parameters; 0 where all weights are trained."""
    lora = config.model.lora
    return 0 if lora is None else shape.adapter_params(lora.r, lora.target_modules)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Load:
    """Models that the roles of a run hold, and the lengths (tokens) of the rows that they work on."""

    config: RunConfig
    shapes: Shapes
    gpu: Gpu
    learned: float  # row of a learner
    scored: float  # row of a reference or teacher


def demands(config: RunConfig, shapes: Shapes, gpu: Gpu, work: Work, *, typical: bool = False) -> list[Demand]:
    """Return the demand of every role that takes GPUs, policy first.

    `typical`: for rows of mean length instead of the longest.
    """
    learned, scored = (work.row, work.context) if typical else (float(work.longest_row), float(work.longest))
    load = _Load(config=config, shapes=shapes, gpu=gpu, learned=learned, scored=scored)
    found = []
    for plan in gang_plans(config, cuda=True, max_steps=1):
        if plan.resources.gpus:
            memory, limit_bytes = MEMORY[plan.role](load)
            members, gpus = len(plan.arguments), int(plan.resources.gpus)
            found.append(Demand(role=plan.role, members=members, gpus=gpus, memory=memory, limit_bytes=limit_bytes))
    return found


def _width(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _policy(load: _Load) -> tuple[Memory, float]:
    return _learner("policy", load, load.config.policy)


def _critic(load: _Load) -> tuple[Memory, float]:
    return _learner("critic", load, load.config.critic or load.config.policy)


def _learner(role: str, load: _Load, settings: LearnerConfig) -> tuple[Memory, float]:
    config, needs = load.config, load.config.algorithm.needs
    logprobs = role == "policy" and needs.head != "scores"
    shape = load.shapes[role] if logprobs else headless(load.shapes[role])
    # A row is never cut: a pair or a completion that is longer than the budget is a micro-batch of its own. A critic,
    # or a policy with adapters, scores as well: without gradients, which takes less memory than training on as much.
    tokens = max(settings.tokens_per_micro_batch, load.learned)
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
        teacher=load.shapes["teacher"] if role == "policy" and config.algorithm.needs_teacher_states else None,
    )
    return memory, load.gpu.memory_bytes


def _reference(load: _Load) -> tuple[Memory, float]:
    return _frozen(load, reference_shape(load.shapes))


def _base(load: _Load) -> tuple[Memory, float]:
    return _frozen(load, load.shapes["policy"])


def _frozen(load: _Load, shape: ModelShape) -> tuple[Memory, float]:
    settings = load.config.reference
    sharding = Sharding(
        ranks=settings.num_ranks, zero_stage=settings.zero_stage, weight_bytes=_width(load.config.model.dtype)
    )
    tokens = max(settings.tokens_per_micro_batch, load.scored)
    chunk = load.config.policy.logprob_chunk_tokens
    return scorer_memory(shape, sharding, tokens=tokens, chunk=chunk), load.gpu.memory_bytes


def _teacher(load: _Load) -> tuple[Memory, float]:
    settings = load.config.teacher
    assert settings is not None
    sharding = Sharding(
        ranks=settings.num_ranks, zero_stage=settings.zero_stage, weight_bytes=_width(settings.model.dtype)
    )
    memory = scorer_memory(
        load.shapes["teacher"],
        sharding,
        tokens=max(settings.tokens_per_micro_batch, load.scored),
        chunk=load.config.policy.logprob_chunk_tokens,
        logprobs=not load.config.algorithm.needs_teacher_states,
    )
    return memory, load.gpu.memory_bytes


def _rollout(load: _Load) -> tuple[Memory, float]:
    engine = engine_of(load.config, load.shapes, load.gpu)
    longest = load.config.rollout.max_prompt_length + load.config.rollout.max_completion_length
    # The byte is for rounding, where the engine fills its limit exactly.
    return engine_memory(engine, longest), load.gpu.memory_bytes * engine.utilization + 1


def _reward(load: _Load) -> tuple[Memory, float]:
    """Return what each reward worker holds: all reward models of the recipe, of which one at a time computes."""
    held: dict[str, float] = {}
    for i, reward in enumerate(load.config.reward):
        if not isinstance(reward, ModelScorerConfig):
            continue
        sharding = Sharding(ranks=1, zero_stage=0, weight_bytes=_width(reward.dtype))
        tokens = max(reward.tokens_per_micro_batch, reward.max_length)
        shape, writes = load.shapes[f"reward.{i}"], isinstance(reward, PairwiseRewardConfig)
        # Two tokens of each comparison have logits: far fewer than a chunk of a learner.
        one = scorer_memory(shape if writes else headless(shape), sharding, tokens=tokens, chunk=0, logprobs=False)
        for name, size in one.parts:
            held[name] = held.get(name, 0.0) + size if name == "weights" else max(held.get(name, 0.0), size)
    return Memory(parts=tuple(held.items())), load.gpu.memory_bytes


def _on_cpu(load: _Load) -> tuple[Memory, float]:
    return Memory(parts=()), load.gpu.memory_bytes


MEMORY: ByRole[Callable[[_Load], tuple[Memory, float]]] = ByRole(
    policy=_policy,
    critic=_critic,
    reference=_reference,
    base=_base,
    teacher=_teacher,
    rollout=_rollout,
    reward=_reward,
    refusal=_on_cpu,
    dataset=_on_cpu,
    writer=_on_cpu,
)
"""By role: what one of its GPUs holds, and the bytes that it may hold."""
