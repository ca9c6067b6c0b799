"""Checks of a suite's files before anything starts: prompts, scorers, judge and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.data import read_prompts
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problems
from orchestrator.evaluation.agreement import read_pairs
from orchestrator.evaluation.suite import SuiteConfig, judge_key
from orchestrator.preflight.model_directory import check_directory
from orchestrator.preflight.model_family import check_evaluated, check_family
from orchestrator.preflight.model_source import (
    check_classifier,
    check_parallel,
    check_scorer,
    check_tokenizer,
    check_writer,
)
from orchestrator.preflight.reward_rows import check_reward_rows, with_common_columns
from orchestrator.preflight.reward_source import check_refusal, check_rewards
from orchestrator.preflight.source import SourceSummary
from workers.config import (
    ClassifierRewardConfig,
    ModelRewardConfig,
    ModelScorerConfig,
    RewardConfig,
)
from workers.types import Example, Prompt
from workers.vocabulary import first_difference, read_vocabulary

SETS = ("prompts", "harmful", "benign")


def suite_prompts(suite: SuiteConfig, problems: Problems) -> dict[str, Sequence[Prompt]]:
    """Read the first `max_prompts` prompts of each set of the suite, by key."""
    prompts: dict[str, Sequence[Prompt]] = {}
    for key in SETS:
        source = getattr(suite, key)
        if source is None:
            continue
        try:
            prompts[key] = with_common_columns(read_prompts(source, split=suite.split, max_rows=suite.max_prompts))
            if key == "prompts":
                problems.extend(check_reward_rows(suite.reward, source, prompts[key]))
        except BadInput as error:
            problems.extend(error.problems)
    return prompts


def suite_preferences(suite: SuiteConfig, problems: Problems) -> Sequence[Example]:
    """Read the first `max_prompts` labelled pairs of the suite; none if it has none."""
    if suite.preferences is None:
        return ()
    try:
        return read_pairs(suite.preferences, split=suite.split, max_rows=suite.max_prompts)
    except BadInput as error:
        problems.extend(error.problems)
        return ()


def check_suite(suite: SuiteConfig, prompts: Mapping[str, Sequence[Prompt]], problems: Problems) -> str | None:
    """Check the scorers and the judge. Return the judge's API key."""
    summaries = [
        SourceSummary(
            key=key, source=getattr(suite, key), count=len(rows), is_complete=True,
            conversational=_is_conversational(rows), columns=tuple(rows[0].columns),
        )
        for key, rows in prompts.items() if key == "prompts"
    ]  # fmt: skip
    check_rewards(suite.reward, suite.cluster, summaries, problems)
    for i, reward in enumerate(suite.reward):
        _check_scorer(reward, f"reward.{i}", problems)
    columns = {getattr(suite, key): rows[0].columns for key, rows in prompts.items() if key != "prompts"}
    check_refusal(suite.refusal, "refusal", columns, problems)
    return None if suite.judge is None else judge_key(suite.judge, problems)


def check_models(
    models: Mapping[str, str], prompts: Mapping[str, Sequence[Prompt]], tensor_parallel_size: int, problems: Problems
) -> None:
    """Check that the models can generate. `models`: paths by argument of the command line: MODEL, --against, …"""
    for name, path in models.items():
        where = f"{name} = {path}"
        check_directory(path, where, problems, needs_template=any(map(_is_conversational, prompts.values())))
        check_tokenizer(path, where, problems, writes=True)
        check_writer(path, where, problems)
        check_evaluated(path, where, problems)
        check_parallel(path, tensor_parallel_size, problems)


def check_comparable(path: str, other: str, where: str, problems: Problems) -> None:
    """Check that two models share a tokenizer, because log-probabilities are compared token by token."""
    if difference := difference_of(path, other):
        why, fix = f"{difference}; log-probabilities are compared token by token", "give a model of the same family"
        problems.add(f"another tokenizer than {path}", where=f"{where} = {other}", why=why, fix=fix)


def difference_of(path: str, other: str) -> str:
    """Describe the first token on which two models differ, or return "" if there is none or a model is not local."""
    ours, theirs = (read_vocabulary(local(p)) for p in (path, other))
    return first_difference(ours, theirs) if ours is not None and theirs is not None else ""


def _check_scorer(reward: RewardConfig, key: str, problems: Problems) -> None:
    if isinstance(reward, ModelScorerConfig) and reward.path is not None:
        where = f"{key}.path = {reward.path}"
        check_directory(reward.path, where, problems, needs_template=False)
        check_tokenizer(reward.path, where, problems, writes=False)
        if isinstance(reward, ClassifierRewardConfig):
            check_classifier(reward, where, problems)
            return
        check_family(reward.path, where, problems)
        if isinstance(reward, ModelRewardConfig):
            check_scorer(reward.path, where, problems, label=reward.label)
        else:
            check_writer(reward.path, where, problems)


def _is_conversational(prompts: Sequence[Prompt]) -> bool:
    return not isinstance(prompts[0].text, str)
