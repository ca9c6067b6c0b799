"""The nearest change to a recipe with which a role fits: one setting if one is enough, else two or three."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

from orchestrator.config import RunConfig
from orchestrator.config.values import show
from orchestrator.plan.gangs import Demand, Shapes, demands
from orchestrator.plan.gpus import GPUS, Gpu
from orchestrator.plan.work import Lengths, work_of
from workers.config import LoraConfig, ModelRewardConfig

Changes: TypeAlias = Mapping[str, Any]
"""Dotted keys with their new values: {"policy.zero_stage": 3}."""

TOGETHER = 3  # settings changed at once, at most
MAX_RANKS = 1024
TENSOR_PARALLEL = (1, 2, 4, 8)  # an engine lives in one node
CHUNK = 512


def changed(config: RunConfig, changes: Changes) -> RunConfig:
    """The config with `changes`; as a recipe they are still to be validated."""
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
    """As they are written on the command line."""
    return [f"{key}={show(_plain(value))}" for key, value in changes.items()]


def _plain(value: Any) -> Any:
    return {"r": value.r} if isinstance(value, LoraConfig) else value


def nearest(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, role: str) -> Changes | None:
    """The first change with which `role` fits, the mildest first; None: none of those that are tried does."""

    def fits(changes: Changes) -> bool:
        after = changed(config, changes)
        found = _of(role, demands(after, shapes, gpu, work_of(after, lengths)))
        return found is None or found.fits

    options = list(_options(config, shapes, role))
    for count in range(1, TOGETHER + 1):
        for chosen in combinations(options, count):
            changes = {key: value for option in chosen for key, value in option.items()}
            if len(changes) == sum(len(option) for option in chosen) and fits(changes):
                return changes
    return None


def larger_gpu(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, role: str) -> Gpu | None:
    """The smallest GPU of the table with more memory on which `role` fits as it is."""
    work = work_of(config, lengths)
    for other in sorted(GPUS.values(), key=lambda g: (g.memory_bytes, g.price)):
        if other.memory_bytes <= gpu.memory_bytes:
            continue
        found = _of(role, demands(config, shapes, other, work))
        if found is not None and found.fits:
            return other
    return None


def _of(role: str, found: Sequence[Demand]) -> Demand | None:
    return next((demand for demand in found if demand.role == role), None)


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
        shape = shapes["teacher" if "teacher" in shapes and config.algorithm.type == "distill" else "policy"]
        yield from (
            {"rollout.tensor_parallel_size": tp} for tp in TENSOR_PARALLEL if tp > now and shape.heads % tp == 0
        )
        if config.rollout.gpu_memory_utilization < 0.9:
            yield {"rollout.gpu_memory_utilization": 0.9}
    elif role == "reward":
        for i, reward in enumerate(config.reward):
            if isinstance(reward, ModelRewardConfig) and reward.tokens_per_micro_batch > reward.max_length:
                yield {f"reward.{i}.tokens_per_micro_batch": reward.max_length}


def _learner_options(config: RunConfig, role: str) -> Iterator[dict[str, Any]]:
    settings = getattr(config, role)
    for stage in range(settings.zero_stage + 1, 4):
        yield {f"{role}.zero_stage": stage}
    if not settings.gradient_checkpointing:
        yield {f"{role}.gradient_checkpointing": True}
    if settings.logprob_chunk_tokens > CHUNK:
        yield {f"{role}.logprob_chunk_tokens": CHUNK}
    yield from fewer_tokens(config, role)
    yield from ({f"{role}.num_ranks": ranks} for ranks in _more(settings.num_ranks))
    yield shorter_sequences(config, role)
    if not settings.offload_optimizer and settings.zero_stage > 0:
        yield {f"{role}.offload_optimizer": True}
    if config.model.lora is None and role == "policy":
        yield {"model.lora": LoraConfig(r=16)}


def _more(ranks: int) -> list[int]:
    """A quarter, a half, and then twice, four times … as many again."""
    more = {ranks + ranks // 4, ranks + ranks // 2} | set(_doubled(2 * ranks, MAX_RANKS))
    return sorted(more - {ranks})


def fewer_tokens(config: RunConfig, role: str) -> Iterator[dict[str, Any]]:
    """Smaller micro-batches, down to the longest sequence, which is never cut."""
    rollout, tokens = config.rollout, getattr(config, role).tokens_per_micro_batch
    sampled = rollout.max_prompt_length + rollout.max_completion_length
    least = sampled if config.data.prompts is not None else config.data.max_length
    while tokens > least:
        tokens = max(tokens // 2, least)
        yield {f"{role}.tokens_per_micro_batch": tokens}


def shorter_sequences(config: RunConfig, *roles: str) -> dict[str, Any]:
    """Completions, or a dataset's sequences, of half the length, and micro-batches of `roles` that are no longer."""
    rollout = config.rollout
    if config.data.prompts is None:
        key, half = "data.max_length", config.data.max_length // 2
        longest = half
    else:
        key, half = "rollout.max_completion_length", rollout.max_completion_length // 2
        longest = rollout.max_prompt_length + half
    return {key: half} | {f"{role}.tokens_per_micro_batch": longest for role in roles}


def _doubled(first: int, last: int) -> list[int]:
    """`first`, and twice as many again and again up to `last`: [6, 12, 24] up to 30."""
    found = []
    while first <= last:
        found.append(first)
        first *= 2
    return found
