"""Which gangs a run needs and what their members are started with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.cluster.base import GangPlan, Resources
from orchestrator.config import RunConfig
from workers import learner
from workers.config import (
    DistillConfig,
    FunctionRewardConfig,
    LearnerConfig,
    ModelConfig,
    ModelOrigin,
    ModelRewardConfig,
    ReferenceConfig,
    RewardConfig,
    SftConfig,
    TeacherConfig,
)
from workers.encoder import Encoder
from workers.needs import NEEDS
from workers.reference import Reference
from workers.reward import Reward
from workers.rollout import Rollout
from workers.rollout import environment as rollout_environment

Origin = TypeVar("Origin", bound=ModelOrigin)


def gang_plans(config: RunConfig, *, cuda: bool, max_steps: int) -> list[GangPlan]:
    """Policy first: it is what the rest is for, so a shortfall names the others."""
    model = absolute(config.model)
    plans = [_learner("policy", config.policy, config, model, cuda=cuda, max_steps=max_steps)]
    if NEEDS[config.algorithm.type].critic:
        critic = config.critic or config.policy
        origin = absolute(config.critic_model).path if config.critic_model else model.path
        start = model.model_copy(update={"path": origin})
        plans.append(_learner("critic", critic, config, start, cuda=cuda, max_steps=max_steps))
    if config.algorithm.needs_reference and not shares_base(config):
        plans.append(_reference(config, model, cuda=cuda))
    if config.teacher is not None:
        plans.append(_teacher(config, config.teacher, cuda=cuda))
    if config.data.prompts is not None or config.data.eval_prompts is not None:
        plans.append(_rollout(config, model, cuda=cuda))
        plans += [_reward(config, model, cuda=cuda)] if config.reward else []
    if config.data.dataset is not None:
        whole = isinstance(config.algorithm, SftConfig) and not config.algorithm.completion_only_loss
        encoder: Mapping[str, Any] = {
            "model": model,
            "max_length": config.data.max_length,
            "whole": whole,
            "mismatched": NEEDS[config.algorithm.type].mismatched,
        }
        plans.append(_plan("dataset", Encoder, [encoder], config, gpus=0))
    return plans


def shares_base(config: RunConfig) -> bool:
    """Whether the model under the policy's adapters is the reference, for ever: then no second one is loaded."""
    return config.model.lora is not None and config.reference.refresh == "never"


def _learner(
    role: str, settings: LearnerConfig, config: RunConfig, model: ModelConfig, *, cuda: bool, max_steps: int
) -> GangPlan:
    common = {
        "model": model,
        "config": settings,
        "algorithm": config.algorithm,
        "head": NEEDS[config.algorithm.type].head if role == "policy" else "values",
        "cuda": cuda,
        "seed": config.seed,
        "max_steps": max_steps,
        "teacher": None if config.teacher is None else absolute(config.teacher.model),
    }
    members = [{**common, "rank": rank} for rank in range(settings.num_ranks)]
    return _plan(role, learner.join, members, config, gpus=1 if cuda else 0, meet=True, environment=_torch(cuda))


def _reference(config: RunConfig, model: ModelConfig, *, cuda: bool) -> GangPlan:
    settings = config.reference
    model = model.model_copy(update={"lora": None})  # it holds whole models: the base, then merged ones
    members = [
        {"model": model, "config": settings, "rank": rank, "cuda": cuda, "chunk": config.policy.logprob_chunk_tokens}
        for rank in range(settings.num_ranks)
    ]
    return _plan("reference", Reference, members, config, gpus=1 if cuda else 0, meet=True, environment=_torch(cuda))


def _teacher(config: RunConfig, settings: TeacherConfig, *, cuda: bool) -> GangPlan:
    """A reference with a model of its own, which never changes."""
    reference = ReferenceConfig(
        num_ranks=settings.num_ranks,
        zero_stage=settings.zero_stage,
        tokens_per_micro_batch=settings.tokens_per_micro_batch,
    )
    common = {"model": absolute(settings.model), "config": reference, "chunk": config.policy.logprob_chunk_tokens}
    members = [{**common, "rank": rank, "cuda": cuda} for rank in range(settings.num_ranks)]
    return _plan("teacher", Reference, members, config, gpus=1 if cuda else 0, meet=True, environment=_torch(cuda))


def asks_states(config: RunConfig) -> bool:
    """Whether the teacher is asked for the states that its whole distributions are read off, not for one number."""
    return isinstance(config.algorithm, DistillConfig) and config.algorithm.objective == "divergence"


def teacher_samples(config: RunConfig) -> bool:
    """Whether the engines hold the teacher, so that nothing the policy learns is published to them."""
    return isinstance(config.algorithm, DistillConfig) and config.algorithm.sampler == "teacher"


def _rollout(config: RunConfig, model: ModelConfig, *, cuda: bool) -> GangPlan:
    settings = config.rollout
    common: dict[str, Any] = {"model": model, "config": settings, "seed": config.seed, "cuda": cuda}
    if config.teacher is not None and teacher_samples(config):
        common |= {"model": absolute(config.teacher.model), "student": model}
    members = [{**common, "index": i} for i in range(settings.num_engines)]
    gpus = settings.tensor_parallel_size if cuda else 0
    plan = _plan("rollout", Rollout, members, config, gpus=gpus, environment=rollout_environment(cuda=cuda))
    # Whole weights travel by NCCL between GPUs, in a group that takes nobody in later.
    fixed = cuda and model.lora is None and not teacher_samples(config)
    return replace(plan, restarts=0) if fixed else plan


def _reward(config: RunConfig, model: ModelConfig, *, cuda: bool) -> GangPlan:
    count = config.reward_workers.num_workers
    members = [
        {
            "model": model,
            "configs": [_absolute_reward(r) for r in config.reward],
            "index": i,
            "num_workers": count,
            "num_samples": config.samples_per_step,
            "num_cpus": max(1, int(config.cluster.cpus_per_worker)),
        }
        for i in range(count)
    ]
    computes = any(isinstance(r, ModelRewardConfig) for r in config.reward)
    environment = _torch(cuda) if computes else {}
    return _plan("reward", Reward, members, config, gpus=1 if cuda and computes else 0, environment=environment)


def _plan(
    role: str,
    start: Any,
    members: list[Mapping[str, Any]] | list[dict[str, Any]],
    config: RunConfig,
    *,
    gpus: int,
    meet: bool = False,
    environment: Mapping[str, str] | None = None,
) -> GangPlan:
    resources = Resources(
        cpus=config.cluster.cpus_per_worker,
        gpus=gpus,
        environment={"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    # Learners hold what is nowhere else: theirs is the newest checkpoint, and the next attempt.
    restarts = 0 if role in ("policy", "critic") else config.cluster.restarts_per_role
    return GangPlan(role=role, start=start, arguments=members, resources=resources, meet=meet, restarts=restarts)


def _torch(cuda: bool) -> Mapping[str, str]:
    return {} if cuda else {"DS_ACCELERATOR": "cpu"}


def absolute(model: Origin) -> Origin:
    """Actors run in another working directory: a local path is made absolute, a hub id stays."""
    assert model.path is not None
    return model.model_copy(update={"path": os.path.abspath(model.path)}) if os.path.isdir(model.path) else model


def _absolute_reward(reward: RewardConfig) -> RewardConfig:
    if isinstance(reward, ModelRewardConfig):
        return absolute(reward)
    if not isinstance(reward, FunctionRewardConfig):
        return reward
    place, _, name = reward.function.rpartition(":")
    return (
        reward.model_copy(update={"function": f"{Path(place).resolve()}:{name}"}) if place.endswith(".py") else reward
    )
