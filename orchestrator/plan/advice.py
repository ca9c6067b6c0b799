"""Find the nearest change to a recipe with which a role fits: one setting if that is enough, else two or three."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

from orchestrator.config import RunConfig
from orchestrator.config.values import show
from orchestrator.plan.gangs import Demand, Shapes, demands
from orchestrator.plan.gpus import GPUS, Gpu
from orchestrator.plan.work import Lengths, work_of
from workers.config import LoraConfig, ModelScorerConfig

Changes: TypeAlias = Mapping[str, Any]
"""Dotted keys with their new values: {"policy.zero_stage": 3}."""

MAX_SETTINGS = 3  # changed at once
MAX_RANKS = 1024
TENSOR_PARALLEL = (1, 2, 4, 8)  # an engine does not span nodes
SMALL_LOGPROB_CHUNK = 512


def apply_changes(config: RunConfig, changes: Changes) -> RunConfig:
    """Return `config` with `changes`. The result is not validated."""
    for key, value in changes.items():
        config = _with(config, key.split("."), value)
    return config


def _with(settings: Any, path: Sequence[str], value: Any) -> Any:
    if isinstance(settings, tuple):
        index = int(path[0])
        inner = _with(settings[index], path[1:], value) if path[1:] else value
        return (*settings[:index], inner, *settings[index + 1 :])
    inner = _with(getattr(settings, path[0]), path[1:], value) if path[1:] else value
    return settings.model_copy(update={path[0]: inner})


def as_overrides(changes: Changes) -> list[str]:
    """Return `changes` as command-line overrides."""
    return [f"{key}={show(_plain(value))}" for key, value in changes.items()]


def _plain(value: Any) -> Any:
    return {"r": value.r} if isinstance(value, LoraConfig) else value


def nearest(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, role: str) -> Changes | None:
    """Return the mildest change with which `role` fits, or None if none of the tried changes is enough."""

    def fits(changes: Changes) -> bool:
        after = apply_changes(config, changes)
        demand = _demand_of(role, demands(after, shapes, gpu, work_of(after, lengths)))
        return demand is None or demand.fits

    options = list(_options(config, shapes, role))
    for count in range(1, MAX_SETTINGS + 1):
        for chosen in combinations(options, count):
            changes = {key: value for option in chosen for key, value in option.items()}
            if len(changes) == sum(len(option) for option in chosen) and fits(changes):
                return changes
    return None


def larger_gpu(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, role: str) -> Gpu | None:
    """Return the smallest GPU of the table with more memory on which `role` fits unchanged, or None."""
    work = work_of(config, lengths)
    for other in sorted(GPUS.values(), key=lambda g: (g.memory_bytes, g.price)):
        if other.memory_bytes <= gpu.memory_bytes:
            continue
        demand = _demand_of(role, demands(config, shapes, other, work))
        if demand is not None and demand.fits:
            return other
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """A role that does not fit, and what would make it fit."""

    role: str
    short_bytes: float  # per GPU; 0: memory is enough, but one actor needs more GPUs than a node has
    changes: Changes | None  # the nearest change with which it fits; None: none found
    larger: Gpu | None  # the smallest GPU on which it fits unchanged; None: none in the table


def shortage_of(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, demand: Demand) -> Shortage:
    return Shortage(
        role=demand.role,
        short_bytes=demand.short_bytes,
        changes=nearest(config, shapes, gpu, lengths, demand.role),
        larger=larger_gpu(config, shapes, gpu, lengths, demand.role),
    )


def _demand_of(role: str, candidates: Sequence[Demand]) -> Demand | None:
    return next((demand for demand in candidates if demand.role == role), None)


def _options(config: RunConfig, shapes: Shapes, role: str) -> Iterator[dict[str, Any]]:
    if role in ("policy", "critic"):
        yield from _learner_options(config, "critic" if role == "critic" and config.critic else "policy")
    elif role in ("reference", "teacher"):
        settings = getattr(config, role)
        if settings.zero_stage == 0:
            for ranks in _doubled(settings.num_ranks, 64):
                yield {f"{role}.zero_stage": 3, f"{role}.num_ranks": ranks}
        yield from ({f"{role}.num_ranks": ranks} for ranks in _doubled(2 * settings.num_ranks, 256))
        yield from fewer_tokens(config, role)
        yield shorter_sequences(config, role)
    elif role == "rollout":
        now = config.rollout.tensor_parallel_size
        shape = shapes["teacher" if "teacher" in shapes and config.algorithm.needs.teacher else "policy"]
        yield from (
            {"rollout.tensor_parallel_size": tp} for tp in TENSOR_PARALLEL if tp > now and shape.heads % tp == 0
        )
        if config.rollout.gpu_memory_utilization < 0.9:
            yield {"rollout.gpu_memory_utilization": 0.9}
    elif role == "reward":
        for i, reward in enumerate(config.reward):
            if isinstance(reward, ModelScorerConfig) and reward.tokens_per_micro_batch > reward.max_length:
                yield {f"reward.{i}.tokens_per_micro_batch": reward.max_length}


def _learner_options(config: RunConfig, role: str) -> Iterator[dict[str, Any]]:
    settings = getattr(config, role)
    for stage in range(settings.zero_stage + 1, 4):
        yield {f"{role}.zero_stage": stage}
    if not settings.gradient_checkpointing:
        yield {f"{role}.gradient_checkpointing": True}
    if settings.logprob_chunk_tokens > SMALL_LOGPROB_CHUNK:
        yield {f"{role}.logprob_chunk_tokens": SMALL_LOGPROB_CHUNK}
    yield from fewer_tokens(config, role)
    yield from ({f"{role}.num_ranks": ranks} for ranks in _more_ranks(settings.num_ranks))
    yield shorter_sequences(config, role)
    if not settings.offload_optimizer and settings.zero_stage > 0:
        yield {f"{role}.offload_optimizer": True}
    if config.model.lora is None and role == "policy":
        yield {"model.lora": LoraConfig(r=16)}


def _more_ranks(ranks: int) -> list[int]:
    """Return rank counts 1.25, 1.5, 2, 4, 8 … times as large, up to `MAX_RANKS`."""
    more = {ranks + ranks // 4, ranks + ranks // 2} | set(_doubled(2 * ranks, MAX_RANKS))
    return sorted(more - {ranks})


def fewer_tokens(config: RunConfig, role: str) -> Iterator[dict[str, Any]]:
    """Yield ever smaller micro-batches, down to the longest sequence, which is never split."""
    rollout, tokens = config.rollout, getattr(config, role).tokens_per_micro_batch
    sampled = rollout.max_prompt_length + rollout.max_completion_length
    longest = sampled if config.data.prompts is not None else config.data.max_length
    while tokens > longest:
        tokens = max(tokens // 2, longest)
        yield {f"{role}.tokens_per_micro_batch": tokens}


def shorter_sequences(config: RunConfig, *roles: str) -> dict[str, Any]:
    """Return changes that halve the maximum length, with micro-batches of `roles` to match.

    The halved length is that of completions, or of a dataset's sequences."""
    rollout = config.rollout
    if config.data.prompts is None:
        key, half = "data.max_length", config.data.max_length // 2
        longest = half
    else:
        key, half = "rollout.max_completion_length", rollout.max_completion_length // 2
        longest = rollout.max_prompt_length + half
    return {key: half} | {f"{role}.tokens_per_micro_batch": longest for role in roles}


def _doubled(first: int, last: int) -> list[int]:
    """Return `first` and its doubles up to `last`, such as [6, 12, 24] up to 30."""
    values = []
    while first <= last:
        values.append(first)
        first *= 2
    return values
