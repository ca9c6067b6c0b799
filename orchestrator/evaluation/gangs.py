"""Gangs of an evaluation, by which it runs and its machines are chosen: those that answer, then those that score.

Light at import.
"""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.cluster.base import GangPlan
from orchestrator.evaluation.suite import SuiteConfig
from orchestrator.pipeline.roles import absolute, reward_plan, rollout_plan, scoring_plan
from workers.config import ModelConfig, ReferenceConfig


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
