"""Check that every row has what its rewards compare completions with: solutions, tests, schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.data.audit import row_number
from orchestrator.data.rows import RowProblems
from orchestrator.errors import Problem
from workers.config import (
    ClassifierRewardConfig,
    CodeRewardConfig,
    JsonSchemaRewardConfig,
    MathRewardConfig,
    RewardConfig,
)
from workers.rewards.answers import wrong_solution
from workers.rewards.base import RewardError
from workers.rewards.code import read_tests
from workers.rewards.json_schema import wrong_schema
from workers.types import Prompt


def with_common_columns(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Return the prompts, each with the columns of all: absent values are None, as in a columnar file."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    if all(len(prompt.columns) == len(names) for prompt in prompts):
        return prompts
    return [replace(p, columns={name: p.columns.get(name) for name in names}) for p in prompts]


def check_reward_rows(rewards: Sequence[RewardConfig], source: str, prompts: Sequence[Prompt]) -> list[Problem]:
    """Return the problems of rows that a reward cannot read, and of rows that no reward scores.

    Columns that no row has are reported by `check_rewards`.
    """
    problems = RowProblems(source)
    columns = {name for prompt in prompts for name in prompt.columns}
    checked = [reward for reward in rewards if _column(reward) is None or _column(reward) in columns]
    fix = "fix or remove these rows"
    schemas: dict[str, str] = {}  # schema → problem; many rows share a schema
    for prompt in prompts:
        for reward in checked:
            if wrong := _wrong(reward, prompt, schemas):
                problems.add(row_number(prompt), f"`{_column(reward)}` {wrong}", why=WHY[reward.type], fix=fix)
        if checked and len(checked) == len(rewards) and all(_passes(r, prompt) for r in rewards):
            empty = ", ".join(f"`{_column(reward)}`" for reward in rewards)
            why = "no reward could score a completion, which would stop the run"
            problems.add(row_number(prompt), f"{empty} is empty", why=why, fix="fill it in, or remove these rows")
    return problems.problems()


WHY: Mapping[str, str] = {
    "math": "the math reward compares answers with it",
    "code": "the code reward runs programs against it",
    "json_schema": "the json_schema reward validates completions against it",
    "classifier": "the classifier reads it as the premise of each completion",
}


def _column(reward: RewardConfig) -> str | None:
    """Return the column that a reward reads; None: it reads none, or which ones is unknown."""
    match reward:
        case MathRewardConfig():
            return reward.solution_column
        case CodeRewardConfig():
            return reward.tests_column
        case JsonSchemaRewardConfig():
            return reward.schema_column
        case ClassifierRewardConfig():
            return reward.premise_column
    return None


def _passes(reward: RewardConfig, prompt: Prompt) -> bool:
    """Return whether the reward returns None for every completion of this prompt."""
    match reward:
        case MathRewardConfig():
            value = prompt.columns.get(reward.solution_column)
            return value is None or wrong_solution(value) == NOTHING
        case CodeRewardConfig():
            value = prompt.columns.get(reward.tests_column)
            return value is None or value == [] or (isinstance(value, str) and not value.strip())
        case ClassifierRewardConfig(premise_column=str(column)):
            value = prompt.columns.get(column)
            return value is None or (isinstance(value, str) and not value.strip())
    return False


NOTHING = wrong_solution("")


def _wrong(reward: RewardConfig, prompt: Prompt, schemas: dict[str, str]) -> str:
    """Return what is wrong with the column of a reward; empty: nothing is, or the column is empty."""
    match reward:
        case MathRewardConfig():
            value = prompt.columns.get(reward.solution_column)
            wrong = "" if value is None else wrong_solution(value)
            return "" if wrong == NOTHING else wrong
        case CodeRewardConfig():
            try:
                read_tests(prompt, reward.tests_column)
            except RewardError as error:
                return f"cannot be read as tests: {str(error).partition('cannot be read: ')[2].partition(';')[0]}"
        case JsonSchemaRewardConfig():
            value = prompt.columns.get(reward.schema_column)
            text = str(value)
            if text not in schemas:
                schemas[text] = wrong_schema(value)
            return schemas[text]
        case ClassifierRewardConfig(premise_column=str(column)):
            value = prompt.columns.get(column)
            return "" if value is None or isinstance(value, str) else f"is not text ({type(value).__name__})"
    return ""
