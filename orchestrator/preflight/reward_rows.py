"""Whether the rows hold what their rewards compare completions with: every row, before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.data.audit import row_number
from orchestrator.data.rows import RowProblems
from orchestrator.errors import Problem
from workers.config import CodeRewardConfig, JsonSchemaRewardConfig, MathRewardConfig, RewardConfig
from workers.rewards.answers import wrong_solution
from workers.rewards.base import RewardError
from workers.rewards.code import read_tests
from workers.rewards.json_schema import wrong_schema
from workers.types import Prompt


def alike(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts, each with the columns of all: what a row leaves out is null in it, as in a file of columns."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    if all(len(prompt.columns) == len(names) for prompt in prompts):
        return prompts
    return [replace(p, columns={name: p.columns.get(name) for name in names}) for p in prompts]


def check_reward_rows(rewards: Sequence[RewardConfig], source: str, prompts: Sequence[Prompt]) -> list[Problem]:
    """What a reward could not read, and rows on which every reward passes, with their numbers. A column that is nowhere
    is another matter: `check_rewards`."""
    problems = RowProblems(source)
    there = {name for prompt in prompts for name in prompt.columns}
    known = [reward for reward in rewards if _column(reward) is None or _column(reward) in there]
    fix = "mend or remove these rows"
    schemas: dict[str, str] = {}  # texts repeat
    for prompt in prompts:
        for reward in known:
            if wrong := _wrong(reward, prompt, schemas):
                problems.add(row_number(prompt), f"`{_column(reward)}` {wrong}", why=WHY[reward.type], fix=fix)
        if known and len(known) == len(rewards) and all(_passes(r, prompt) for r in rewards):
            columns = ", ".join(f"`{_column(reward)}`" for reward in rewards)
            why = "without it no reward scores a completion, and one that none scores ends the run"
            problems.add(row_number(prompt), f"{columns} says nothing", why=why, fix="fill it in, or remove these rows")
    return problems.problems()


WHY: Mapping[str, str] = {
    "math": "the maths reward compares with it",
    "code": "the code reward runs programs against it",
    "json_schema": "the reward asks whether a completion is valid by it",
}


def _column(reward: RewardConfig) -> str | None:
    """What it reads of a row; None: nothing that is known here."""
    match reward:
        case MathRewardConfig():
            return reward.solution_column
        case CodeRewardConfig():
            return reward.tests_column
        case JsonSchemaRewardConfig():
            return reward.schema_column
    return None


def _passes(reward: RewardConfig, prompt: Prompt) -> bool:
    """Whether it certainly scores no completion of this prompt."""
    match reward:
        case MathRewardConfig():
            value = prompt.columns.get(reward.solution_column)
            return value is None or wrong_solution(value) == NOTHING
        case CodeRewardConfig():
            value = prompt.columns.get(reward.tests_column)
            return value is None or value == [] or (isinstance(value, str) and not value.strip())
    return False


NOTHING = wrong_solution("")


def _wrong(reward: RewardConfig, prompt: Prompt, schemas: dict[str, str]) -> str:
    """What is wrong with the column of a reward; empty where nothing is, and where it is empty itself."""
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
    return ""
