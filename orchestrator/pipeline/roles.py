"""The gangs of a run: the one list of its roles, with the members of each and what they are started with.

Light at import: workers import torch and vLLM in their constructors. The planner reads this list, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.cluster.base import GangPlan, Resources
from orchestrator.cluster.fork_server import Preload
from orchestrator.cluster.preload import serve_forks
from orchestrator.config import ClusterConfig, RunConfig
from orchestrator.data.sources import local
from orchestrator.pipeline.environment import (
    CPU_ENVIRONMENT,
    ENVIRONMENT,
    NO_GPU,
    network,
    threads,
    torch_environment,
)
from workers import learner
from workers.config import (
    FunctionRewardConfig,
    JudgeRewardConfig,
    LearnerConfig,
    ModelConfig,
    ModelOrigin,
    ModelScorerConfig,
    ReferenceConfig,
    RefusalRewardConfig,
    RewardConfig,
    RolloutConfig,
    TeacherConfig,
)
from workers.encoder import Encoder
from workers.files import mirror
from workers.reference import Reference
from workers.reward import Reward
from workers.rewards.combine import SUM, Combination
from workers.rollout import Rollout
from workers.rollout import environment as rollout_environment
from workers.storage import environment as storage_environment
from workers.writer import Writer

Origin = TypeVar("Origin", bound=ModelOrigin)

SHARED_PRELOAD = Preload(
    modules=("transformers.modeling_utils", "transformers.models.auto.modeling_auto"),
    environment={**ENVIRONMENT, **CPU_ENVIRONMENT},
)
PRELOADS = {
    "torch": Preload(
        modules=(
            "workers.updates",
            "workers.engines.deepspeed_engine",
            "workers.engines.inference",
            "workers.engines.lora",
            "workers.rewards.function",
            "deepspeed.ops.op_builder.all_ops",
            "deepspeed.runtime.zero.muon.muon_optimizer",
            "peft",
        )
    ),
    "vllm": Preload(
        modules=("workers.engines.vllm_engine", "vllm.v1.worker.cpu_worker"),
        environment=rollout_environment(cuda=False),
    ),
}
"""What workers on a CPU import. vLLM is apart: it changes classes of transformers in the process that imports it."""


@contextmanager
def preloaded(cluster: ClusterConfig) -> Iterator[None]:
    """Import what workers import once, in fork servers, if this machine is the whole cluster and has no GPU.

    Forks of processes that have imported CUDA builds were not tried on a GPU.
    """
    is_here = cluster.address is None and "RAY_ADDRESS" not in os.environ
    has_gpu = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))
    with serve_forks(PRELOADS, SHARED_PRELOAD) if is_here and not has_gpu else nullcontext():
        yield


def gang_plans(config: RunConfig, *, cuda: bool, max_steps: int) -> list[GangPlan]:
    """Return the gangs of a run, policy first, so that a shortage of places names the other roles."""
    model = absolute(config.model)
    if not config.algorithm.needs.trains:
        return _generating(config, model, cuda=cuda)
    plans = [_learner("policy", config.policy, config, model, cuda=cuda, max_steps=max_steps)]
    if config.algorithm.needs.critic:
        critic = config.critic or config.policy
        origin = absolute(config.critic_model).path if config.critic_model else model.path
        start = model.model_copy(update={"path": origin})
        plans.append(_learner("critic", critic, config, start, cuda=cuda, max_steps=max_steps))
    if has_reference(config):
        path, own = config.reference.path, None if config.reference.path is None else model
        start = model if path is None else absolute(model.model_copy(update={"path": path}))
        plans.append(_reference(config, start, policy=own, cuda=cuda))
    if needs_base(config):
        plans.append(replace(_reference(config, model, cuda=cuda), role="base"))
    if config.teacher is not None:
        plans.append(_teacher(config, config.teacher, cuda=cuda))
    if config.data.answered:
        plans.append(_rollout(config, model, cuda=cuda))
        plans += [_reward("reward", config.reward, config, model, cuda=cuda)] if config.reward else []
    if config.data.eval_harmful is not None or config.data.eval_benign is not None:
        plans.append(_reward("refusal", (config.evaluation.refusal,), config, model, cuda=cuda))
    if config.data.dataset is not None or config.rounds.mix.is_on:
        encoder: Mapping[str, Any] = {
            "model": model,
            "max_length": config.data.max_length,
            "train_on_prompts": config.algorithm.trains_on_prompts,
            "mismatched": config.algorithm.needs.mismatched,
        }
        plans.append(plan_of("dataset", Encoder, [encoder], config.cluster, gpus=0))
    return [_with_storage(plan, config) for plan in plans]


def _generating(config: RunConfig, model: ModelConfig, *, cuda: bool) -> list[GangPlan]:
    """Return the gangs of a run that writes its samples as a data set."""
    plans = [_rollout(config, model, cuda=cuda)]
    plans += [_reward("reward", config.reward, config, model, cuda=cuda)] if config.reward else []
    return [*plans, plan_of("writer", Writer, [{"model": model}], config.cluster, gpus=0)]


def _with_storage(plan: GangPlan, config: RunConfig) -> GangPlan:
    """Return a plan whose members know the storage of the run, where it has one. Credentials are their machines'."""
    if config.storage is None:
        return plan
    root = local(config.output_dir).absolute()
    known = {**storage_environment(), **mirror.environment(config.storage, root)}
    environment = {**plan.resources.environment, **known}
    return replace(plan, resources=replace(plan.resources, environment=environment))


def shares_base(config: RunConfig) -> bool:
    """Return whether the base model under the policy's adapters serves as the reference during the whole run."""
    stays = config.reference.refresh == "never" and config.reference.path is None
    return config.model.lora is not None and stays


def has_reference(config: RunConfig) -> bool:
    """Return whether a gang of its own holds the reference."""
    return config.algorithm.needs_reference and not shares_base(config)


def needs_base(config: RunConfig) -> bool:
    """Return whether a gang of its own holds the initial policy, to measure the KL to it.

    Without one where the reference stays the initial policy during the whole run.
    """
    own = config.reference
    stays = config.algorithm.needs_reference and own.refresh == "never" and own.path is None
    return config.evaluation.num_samples > 0 and not stays and not shares_base(config)


def _learner(
    role: str, settings: LearnerConfig, config: RunConfig, model: ModelConfig, *, cuda: bool, max_steps: int
) -> GangPlan:
    common = {
        "model": model,
        "config": settings,
        "algorithm": config.algorithm,
        "head": config.algorithm.needs.head if role == "policy" else "values",
        "cuda": cuda,
        "seed": config.seed,
        "max_steps": max_steps,
        "teacher": None if config.teacher is None else absolute(config.teacher.model),
    }
    members = [{**common, "rank": rank} for rank in range(settings.num_ranks)]
    environment = torch_environment(cuda=cuda)
    if cuda and settings.offload_optimizer:
        environment = {**environment, **threads(config.cluster.cpus_per_worker)}
    return plan_of(
        role, learner.join, members, config.cluster, gpus=1 if cuda else 0, meet=True, environment=environment
    )


def _reference(config: RunConfig, model: ModelConfig, *, policy: ModelConfig | None = None, cuda: bool) -> GangPlan:
    """Return the gang of a reference. `policy`: the policy's model, if `model` is another one."""
    settings = config.reference
    model = model.model_copy(update={"lora": None})  # a reference holds whole models: the base, then merged ones
    common = {"model": model, "config": settings, "cuda": cuda, "chunk": config.policy.logprob_chunk_tokens}
    common |= {} if policy is None else {"policy": policy}
    members = [{**common, "rank": rank} for rank in range(settings.num_ranks)]
    return scoring_plan("reference", members, config.cluster, cuda=cuda)


def _teacher(config: RunConfig, settings: TeacherConfig, *, cuda: bool) -> GangPlan:
    """Return the teacher's gang: a reference with a model of its own, which is never refreshed."""
    reference = ReferenceConfig(
        num_ranks=settings.num_ranks,
        zero_stage=settings.zero_stage,
        tokens_per_micro_batch=settings.tokens_per_micro_batch,
    )
    common = {"model": absolute(settings.model), "config": reference, "chunk": config.policy.logprob_chunk_tokens}
    members = [{**common, "rank": rank, "cuda": cuda} for rank in range(settings.num_ranks)]
    return scoring_plan("teacher", members, config.cluster, cuda=cuda)


def scoring_plan(role: str, members: list[dict[str, Any]], cluster: ClusterConfig, *, cuda: bool) -> GangPlan:
    """Return a gang of ranks that compute log-probabilities; `members` are the arguments of each `Reference`."""
    gpus = 1 if cuda else 0
    return plan_of(role, Reference, members, cluster, gpus=gpus, meet=True, environment=torch_environment(cuda=cuda))


def _rollout(config: RunConfig, model: ModelConfig, *, cuda: bool) -> GangPlan:
    common: dict[str, Any] = {"model": model}
    if config.teacher is not None and config.algorithm.teacher_samples:
        common = {"model": absolute(config.teacher.model), "student": model}
    plan = rollout_plan(common, config.rollout, config.cluster, seed=config.seed, cuda=cuda)
    # Whole weights travel by NCCL between GPUs, in a group that takes nobody in later.
    gets_weights = config.algorithm.needs.trains and not config.algorithm.teacher_samples
    fixed = cuda and model.lora is None and gets_weights
    return replace(plan, restarts=0) if fixed else plan


def rollout_plan(
    models: Mapping[str, Any], settings: RolloutConfig, cluster: ClusterConfig, *, seed: int, cuda: bool
) -> GangPlan:
    """Return a gang of rollout engines; `models` are the arguments `model` and `student` of `Rollout`."""
    common = {**models, "config": settings, "seed": seed, "cuda": cuda}
    members = [{**common, "index": i} for i in range(settings.num_engines)]
    gpus = settings.tensor_parallel_size if cuda else 0
    plan = plan_of("rollout", Rollout, members, cluster, gpus=gpus, environment=rollout_environment(cuda=cuda))
    return replace(plan, slow=True, preload="vllm")


def _reward(
    role: str, rewards: Sequence[RewardConfig], config: RunConfig, model: ModelConfig, *, cuda: bool
) -> GangPlan:
    workers, shown = config.reward_workers.num_workers, config.samples_per_step
    rewards = [_with_cache(reward, config) for reward in rewards]
    return reward_plan(
        role,
        rewards,
        model,
        config.cluster,
        num_workers=workers,
        num_samples=shown,
        cuda=cuda,
        skip_special_tokens=config.reward_workers.skip_special_tokens,
        combination=_combination(role, config),
    )


def _with_cache(reward: RewardConfig, config: RunConfig) -> RewardConfig:
    """Return a reward with a place for what it pays for, where it needs one: that of the run."""
    if not isinstance(reward, JudgeRewardConfig) or reward.cache is not None:
        return reward
    return reward.model_copy(update={"cache": str(local(config.directory).absolute() / "judge")})


def _combination(role: str, config: RunConfig) -> Combination:
    """Return how scores make a reward: a classifier of refusals is always alone."""
    if role != "reward":
        return SUM
    return Combination(combine=config.reward_combine, normalize=config.reward_normalize is not None)


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
    combination: Combination = SUM,
) -> GangPlan:
    """Return a gang of workers that score with `rewards`; `model` is the one whose tokens they decode."""
    members = [
        {
            "model": model,
            "configs": [_absolute_reward(r) for r in rewards],
            "index": i,
            "num_workers": num_workers,
            "num_samples": num_samples,
            "num_cpus": max(1, int(cluster.cpus_per_worker)),
            "skip_special_tokens": skip_special_tokens,
            "combination": combination,
        }
        for i in range(num_workers)
    ]
    computes = any(isinstance(r, ModelScorerConfig) for r in rewards)
    environment = torch_environment(cuda=cuda) if computes else {}
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
        environment={**ENVIRONMENT, **network(), **({} if gpus else NO_GPU), **(environment or {})},
    )
    # Learners hold what is nowhere else: theirs is the newest checkpoint, and the next attempt.
    restarts = 0 if role in ("policy", "critic") else cluster.restarts_per_role
    return GangPlan(
        role=role,
        start=start,
        arguments=members,
        resources=resources,
        meet=meet,
        restarts=restarts,
        preload="torch",
    )


def absolute(model: Origin) -> Origin:
    """Return `model` with an absolute path: actors run in another working directory. A hub id stays."""
    assert model.path is not None
    return model.model_copy(update={"path": os.path.abspath(model.path)}) if os.path.isdir(model.path) else model


def _absolute_reward(reward: RewardConfig) -> RewardConfig:
    if isinstance(reward, ModelScorerConfig):
        return absolute(reward)
    if isinstance(reward, JudgeRewardConfig):
        paths = {key: path for key in ("cache", "api_key_file") if (path := getattr(reward, key)) is not None}
        return reward.model_copy(update={key: os.path.abspath(path) for key, path in paths.items()})
    if isinstance(reward, RefusalRewardConfig) and reward.classifier_file is not None:
        return reward.model_copy(update={"classifier": os.path.abspath(reward.classifier_file)})
    if not isinstance(reward, FunctionRewardConfig):
        return reward
    place, _, name = reward.function.rpartition(":")
    return (
        reward.model_copy(update={"function": f"{Path(place).resolve()}:{name}"}) if place.endswith(".py") else reward
    )
