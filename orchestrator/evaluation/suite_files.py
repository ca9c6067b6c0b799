"""What can be known of a suite's files without starting anything: its prompts, scorers, and the models it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.data import read_prompts
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problems
from orchestrator.evaluation.suite import SuiteConfig, judge_key
from orchestrator.preflight.model_source import (
    check_evaluated,
    check_family,
    check_parallel,
    check_scorer,
    check_tokenizer,
    check_writer,
)
from orchestrator.preflight.preflight import Rows, check_model, check_rewards
from orchestrator.preflight.reward_rows import alike, check_reward_rows
from orchestrator.preflight.reward_source import check_reward_function
from workers.config import FunctionRewardConfig, ModelRewardConfig, RewardConfig
from workers.types import Prompt
from workers.vocabulary import first_difference, read_vocabulary

SETS = ("prompts", "harmful", "benign")


def suite_prompts(suite: SuiteConfig, problems: Problems) -> dict[str, Sequence[Prompt]]:
    """The first `max_prompts` of each set that the suite gives, by its key."""
    found: dict[str, Sequence[Prompt]] = {}
    for key in SETS:
        source = getattr(suite, key)
        if source is None:
            continue
        try:
            found[key] = alike(read_prompts(source, split=suite.split, max_rows=suite.max_prompts))
            if key == "prompts":
                problems.extend(check_reward_rows(suite.reward, source, found[key]))
        except BadInput as error:
            problems.extend(error.problems)
    return found


def check_suite(suite: SuiteConfig, found: Mapping[str, Sequence[Prompt]], problems: Problems) -> str | None:
    """Scorers and judge; returns the judge's key."""
    rows = [
        Rows(key=key, source=getattr(suite, key), count=len(prompts), whole=True, conversational=_talks(prompts),
             columns=tuple(prompts[0].columns))
        for key, prompts in found.items() if key == "prompts"
    ]  # fmt: skip
    check_rewards(suite.reward, suite.cluster, rows, problems)
    for i, reward in enumerate(suite.reward):
        _scorer(reward, f"reward.{i}", problems)
    if isinstance(suite.refusal, FunctionRewardConfig):
        where = f"refusal.function = {suite.refusal.function}"
        columns = {getattr(suite, key): prompts[0].columns for key, prompts in found.items() if key != "prompts"}
        check_reward_function(suite.refusal.function, where, problems, columns)
    return None if suite.judge is None else judge_key(suite.judge, problems)


def check_models(
    models: Mapping[str, str], found: Mapping[str, Sequence[Prompt]], tensor_parallel_size: int, problems: Problems
) -> None:
    """`models`: paths by what they are for, as the command line says it: MODEL, --against …"""
    for name, path in models.items():
        where = f"{name} = {path}"
        check_model(path, where, any(map(_talks, found.values())), problems)
        check_tokenizer(path, where, problems, writes=True)
        check_writer(path, where, problems)
        check_evaluated(path, where, problems)
        check_parallel(path, tensor_parallel_size, problems)


def check_comparable(path: str, other: str, where: str, problems: Problems) -> None:
    """Log-probabilities are compared token by token."""
    if difference := difference_of(path, other):
        why, fix = f"{difference}; log-probabilities are compared token by token", "give a model of the same family"
        problems.add(f"another tokenizer than {path}", where=f"{where} = {other}", why=why, fix=fix)


def difference_of(path: str, other: str) -> str:
    """The first token on which two models differ, in words; empty when they are the same, or not on this machine."""
    ours, theirs = (read_vocabulary(local(p)) for p in (path, other))
    return first_difference(ours, theirs) if ours is not None and theirs is not None else ""


def _scorer(reward: RewardConfig, key: str, problems: Problems) -> None:
    if isinstance(reward, ModelRewardConfig) and reward.path is not None:
        where = f"{key}.path = {reward.path}"
        check_model(reward.path, where, False, problems)
        check_tokenizer(reward.path, where, problems, writes=False)
        check_family(reward.path, where, problems)
        check_scorer(reward.path, where, problems)


def _talks(prompts: Sequence[Prompt]) -> bool:
    return not isinstance(prompts[0].text, str)
