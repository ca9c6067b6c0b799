"""Gangs of an evaluation, by which it runs and its machines are chosen: those that answer, then those that score.

Light at import.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from orchestrator.cluster.base import GangPlan
from orchestrator.evaluation.judge import with_cache
from orchestrator.evaluation.suite import SuiteConfig
from orchestrator.pipeline.roles import absolute, reward_plan, rollout_plan, scoring_plan
from workers.config import JudgeRewardConfig, ModelConfig, ReferenceConfig


def answering_gangs(suite: SuiteConfig, path: str, prompt_sets: Collection[str], *, cuda: bool) -> list[GangPlan]:
    """Return the gangs that answer sets of prompts with the model at `path`, and score the answers."""
    model = model_config(suite, path)
    plans = [rollout_plan({"model": model}, suite.rollout, suite.cluster, seed=suite.seed, cuda=cuda)]
    scorers = {"reward": suite.reward if "prompts" in prompt_sets else ()}
    scorers["refusal"] = (suite.refusal,) if {"harmful", "benign"} & set(prompt_sets) else ()
    workers = suite.reward_workers.num_workers
    return plans + [
        reward_plan(role, rewards, model, suite.cluster, num_workers=workers, num_samples=0, cuda=cuda)
        for role, rewards in scorers.items()
        if rewards
    ]


def with_judges(suite: SuiteConfig, output: Path, used: Sequence[Mapping[str, float]]) -> SuiteConfig:
    """Return the suite with a cache for each judge among its scorers, and with what is left of its budget.

    Each reward worker gets an equal share of the budget.

    Args:
        output: directory of the result.
        used: what each of the scorers has used so far, such as {"requests": 8, "cost": 0.01}.
    """
    rewards = [
        _with_share(with_cache(reward, output), spent, suite.reward_workers.num_workers)
        if isinstance(reward, JudgeRewardConfig)
        else reward
        for reward, spent in zip(suite.reward, used, strict=True)
    ]
    return suite.model_copy(update={"reward": tuple(rewards)})


def _with_share(judge: JudgeRewardConfig, spent: Mapping[str, float], workers: int) -> JudgeRewardConfig:
    left: dict[str, float] = {}
    if judge.max_requests is not None:
        left["max_requests"] = max(0, judge.max_requests - int(spent.get("requests", 0))) // workers
    if judge.max_cost is not None:
        left["max_cost"] = max(0.0, judge.max_cost - spent.get("cost", 0.0)) / workers
    return judge.model_copy(update=left)


def scoring_gang(suite: SuiteConfig, path: str, *, cuda: bool) -> GangPlan:
    """Return the gang that computes log-probabilities. It starts with the model at `path`."""
    settings = suite.scoring
    reference = ReferenceConfig(
        num_ranks=settings.num_ranks,
        zero_stage=settings.zero_stage,
        tokens_per_micro_batch=settings.tokens_per_micro_batch,
    )
    common = {"model": model_config(suite, path), "config": reference, "chunk": settings.logprob_chunk_tokens}
    members = [{**common, "cuda": cuda, "rank": rank} for rank in range(settings.num_ranks)]
    return scoring_plan("reference", members, suite.cluster, cuda=cuda)


def model_config(suite: SuiteConfig, path: str) -> ModelConfig:
    """Return the config of the model at `path` with an absolute path, because workers run in other directories."""
    settings = suite.model
    return absolute(ModelConfig(path=path, dtype=settings.dtype, chat_template_kwargs=settings.chat_template_kwargs))
