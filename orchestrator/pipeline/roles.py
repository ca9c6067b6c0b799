"""Which gangs a run needs and what their members are started with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.cluster.base import GangPlan, Resources
from orchestrator.config import ClusterConfig, RunConfig
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
    RolloutConfig,
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
    if needs_base(config):
        plans.append(replace(_reference(config, model, cuda=cuda), role="base"))
    if config.teacher is not None:
        plans.append(_teacher(config, config.teacher, cuda=cuda))
    if config.data.answered:
        plans.append(_rollout(config, model, cuda=cuda))
        plans += [_reward("reward", config.reward, config, model, cuda=cuda)] if config.reward else []
    if config.data.eval_harmful is not None or config.data.eval_benign is not None:
        plans.append(_reward("refusal", (config.evaluation.refusal,), config, model, cuda=cuda))
    if config.data.dataset is not None:
        whole = isinstance(config.algorithm, SftConfig) and not config.algorithm.completion_only_loss
        encoder: Mapping[str, Any] = {
            "model": model,
            "max_length": config.data.max_length,
            "whole": whole,
            "mismatched": NEEDS[config.algorithm.type].mismatched,
        }
        plans.append(plan_of("dataset", Encoder, [encoder], config.cluster, gpus=0))
    return plans


def shares_base(config: RunConfig) -> bool:
    """Whether the model under the policy's adapters is the reference, for ever: then no second one is loaded."""
    return config.model.lora is not None and config.reference.refresh == "never"


def needs_base(config: RunConfig) -> bool:
    """Whether a gang of its own holds the model that the run began with, to measure the distance from it: where no
    reference does so from beginning to end."""
    stays = config.algorithm.needs_reference and config.reference.refresh == "never"
    return config.evaluation.num_samples > 0 and not stays and not shares_base(config)


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
    return plan_of(
        role, learner.join, members, config.cluster, gpus=1 if cuda else 0, meet=True, environment=_torch(cuda)
    )


def _reference(config: RunConfig, model: ModelConfig, *, cuda: bool) -> GangPlan:
    settings = config.reference
    model = model.model_copy(update={"lora": None})  # it holds whole models: the base, then merged ones
    members = [
        {"model": model, "config": settings, "rank": rank, "cuda": cuda, "chunk": config.policy.logprob_chunk_tokens}
        for rank in range(settings.num_ranks)
    ]
    return scoring_plan("reference", members, config.cluster, cuda=cuda)


def _teacher(config: RunConfig, settings: TeacherConfig, *, cuda: bool) -> GangPlan:
    """A reference with a model of its own, which never changes."""
    reference = ReferenceConfig(
        num_ranks=settings.num_ranks,
        zero_stage=settings.zero_stage,
        tokens_per_micro_batch=settings.tokens_per_micro_batch,
    )
    common = {"model": absolute(settings.model), "config": reference, "chunk": config.policy.logprob_chunk_tokens}
    members = [{**common, "rank": rank, "cuda": cuda} for rank in range(settings.num_ranks)]
    return scoring_plan("teacher", members, config.cluster, cuda=cuda)


def scoring_plan(role: str, members: list[dict[str, Any]], cluster: ClusterConfig, *, cuda: bool) -> GangPlan:
    """Ranks that compute log-probabilities; `members` is what each `Reference` is started with."""
    gpus = 1 if cuda else 0
    return plan_of(role, Reference, members, cluster, gpus=gpus, meet=True, environment=_torch(cuda))


def asks_states(config: RunConfig) -> bool:
    """Whether the teacher is asked for the states that its whole distributions are read off, not for one number."""
    return isinstance(config.algorithm, DistillConfig) and config.algorithm.objective == "divergence"


def teacher_samples(config: RunConfig) -> bool:
    """Whether the engines hold the teacher, so that nothing the policy learns is published to them."""
    return isinstance(config.algorithm, DistillConfig) and config.algorithm.sampler == "teacher"


def _rollout(config: RunConfig, model: ModelConfig, *, cuda: bool) -> GangPlan:
    common: dict[str, Any] = {"model": model}
    if config.teacher is not None and teacher_samples(config):
        common = {"model": absolute(config.teacher.model), "student": model}
    plan = rollout_plan(common, config.rollout, config.cluster, seed=config.seed, cuda=cuda)
    # Whole weights travel by NCCL between GPUs, in a group that takes nobody in later.
    fixed = cuda and model.lora is None and not teacher_samples(config)
    return replace(plan, restarts=0) if fixed else plan


def rollout_plan(
    models: Mapping[str, Any], settings: RolloutConfig, cluster: ClusterConfig, *, seed: int, cuda: bool
) -> GangPlan:
    """Engines that sample. `models`: which, as `Rollout` is told."""
    common = {**models, "config": settings, "seed": seed, "cuda": cuda}
    members = [{**common, "index": i} for i in range(settings.num_engines)]
    gpus = settings.tensor_parallel_size if cuda else 0
    plan = plan_of("rollout", Rollout, members, cluster, gpus=gpus, environment=rollout_environment(cuda=cuda))
    return replace(plan, slow=True)  # vLLM


def _reward(
    role: str, rewards: Sequence[RewardConfig], config: RunConfig, model: ModelConfig, *, cuda: bool
) -> GangPlan:
    workers, shown = config.reward_workers.num_workers, config.samples_per_step
    return reward_plan(
        role,
        rewards,
        model,
        config.cluster,
        num_workers=workers,
        num_samples=shown,
        cuda=cuda,
        skip_special_tokens=config.reward_workers.skip_special_tokens,
    )


def reward_plan(
    role: str,
    rewards: Sequence[RewardConfig],
    model: ModelConfig,
    cluster: ClusterConfig,
    *,
    num_workers: int,
    num_samples: int,
    cuda: bool,
    skip_special_tokens: bool = True,
) -> GangPlan:
    """Workers that score with `rewards`; `model` is the one whose tokens they read."""
    members = [
        {
            "model": model,
            "configs": [_absolute_reward(r) for r in rewards],
            "index": i,
            "num_workers": num_workers,
            "num_samples": num_samples,
            "num_cpus": max(1, int(cluster.cpus_per_worker)),
            "skip_special_tokens": skip_special_tokens,
        }
        for i in range(num_workers)
    ]
    computes = any(isinstance(r, ModelRewardConfig) for r in rewards)
    environment = _torch(cuda) if computes else {}
    return plan_of(role, Reward, members, cluster, gpus=1 if cuda and computes else 0, environment=environment)


def plan_of(
    role: str,
    start: Any,
    members: list[Mapping[str, Any]] | list[dict[str, Any]],
    cluster: ClusterConfig,
    *,
    gpus: int,
    meet: bool = False,
    environment: Mapping[str, str] | None = None,
) -> GangPlan:
    resources = Resources(
        cpus=cluster.cpus_per_worker,
        gpus=gpus,
        environment={"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    # Learners hold what is nowhere else: theirs is the newest checkpoint, and the next attempt.
    restarts = 0 if role in ("policy", "critic") else cluster.restarts_per_role
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
