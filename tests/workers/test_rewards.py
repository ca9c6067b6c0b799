"""Scorers: arguments and results of a user's function, and the math scorer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.config import FunctionRewardConfig, MathRewardConfig
from workers.rewards import build
from workers.rewards.base import Completed, RewardError
from workers.rewards.function import FunctionScorer
from workers.rewards.math import MathScorer
from workers.types import Prompt, Text


def completed(*completions: Text, columns: list[dict[str, Any]] | None = None) -> Completed:
    given = columns or [{} for _ in completions]
    return Completed(
        prompts=[Prompt(id=f"p.jsonl:{i}", text=f"question {i}", columns=c) for i, c in enumerate(given)],
        completions=completions,
        completion_ids=[[i] for i in range(len(completions))],
    )


def config(target: str) -> FunctionRewardConfig:
    return FunctionRewardConfig(type="function", function=target, timeout_s=20.0)


@pytest.fixture
def function(tmp_path: Path) -> Callable[[str], FunctionScorer]:
    """Load the function `reward` of a file with the given text."""

    def load(text: str) -> FunctionScorer:
        (tmp_path / "mine.py").write_text(text)
        return FunctionScorer(config(f"{tmp_path}/mine.py:reward"))

    return load


Function = Callable[[str], FunctionScorer]


# ------------------------------------------------------------------------------------------------ functions


def test_a_function_is_given_texts_tokens_and_columns_by_name(function: Function) -> None:
    scorer = function(
        "def reward(prompts, completions, completion_ids, answer, source):\n"
        "    assert prompts == ['question 0', 'question 1']\n"
        "    assert completions == ['4', '5'] and completion_ids == [[0], [1]]\n"
        "    assert answer == ['4', '6'] and source == [None, 'book']\n"
        "    return [float(c == a) for c, a in zip(completions, answer)]\n"
    )
    given = completed("4", "5", columns=[{"answer": "4"}, {"answer": "6", "source": "book"}])
    rewards = scorer.score(given)
    assert rewards.tolist() == [1, 0]
    assert rewards.dtype == np.float32
    assert scorer.name == "reward"


def test_none_is_a_pass(function: Function) -> None:
    rewards = function("def reward(**_): return [None, 2, 0.5]").score(completed("a", "b", "c"))
    assert rewards.tolist() == pytest.approx([np.nan, 2, 0.5], nan_ok=True)


def test_numpy_answers_are_accepted(function: Function) -> None:
    text = "import numpy as np\ndef reward(completions, **_): return np.array([len(c) for c in completions])"
    assert function(text).score(completed("ab", "c")).tolist() == [2, 1]


def test_async_functions_are_awaited(function: Function) -> None:
    text = "import asyncio\nasync def reward(completions, **_):\n    await asyncio.sleep(0)\n    return [1.0]"
    assert function(text).score(completed("a")).tolist() == [1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("1.0", "reward reward returned float; it must return a list of numbers, one per completion"),
        ("'10'", "reward reward returned str; it must"),
        ("None", "reward reward returned NoneType; it must"),
        ("[1.0]", "reward reward returned 1 rewards for 2 completions"),
        ("[1.0, '2']", r"reward reward returned '2' \(str\) for prompt p.jsonl:1"),
        ("[True, 1.0]", r"reward reward returned True \(bool\) for prompt p.jsonl:0"),
        ("[1.0, float('nan')]", "reward reward returned nan for prompt p.jsonl:1; rewards must be finite"),
        ("[float('-inf'), 1.0]", "reward reward returned -inf for prompt p.jsonl:0; rewards must be finite"),
        ("[1.0, 1e39]", r"reward reward returned 1e\+39 for prompt p.jsonl:1; rewards must be finite"),
        ("[1.0, 10**400]", r"reward reward returned 10+\.*0+ \(int, too large\) for prompt p.jsonl:1"),
        ("1 / 0", "reward reward raised ZeroDivisionError: division by zero"),
    ],
)
def test_an_answer_that_cannot_be_trusted_names_the_row(function: Function, answer: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        function(f"def reward(**_): return {answer}").score(completed("a", "b"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("reward", "names no function; write path/to/file.py:name"),
        ("nothing.py:reward", "nothing.py does not exist"),
        ("math:no_such_name", "math has no function 'no_such_name'; a reward function looks like"),
        ("math:pi", "math has no function 'pi'"),
    ],
)
def test_a_function_that_is_not_there(target: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        FunctionScorer(config(target))


def test_a_function_of_a_package() -> None:
    assert FunctionScorer(config("builtins:dict")).name == "dict"


# ------------------------------------------------------------------------------------------------ maths


def test_equal_as_mathematics() -> None:
    answers = ["0.5", "so it is $\\frac{1}{2}$", "$2/4$", "$\\frac{1}{3}$", "no idea"]
    given = completed(*answers, columns=[{"solution": "$\\frac{1}{2}$"}] * 5)
    assert MathScorer("solution").score(given).tolist() == [1, 1, 1, 0, 0]


def test_the_last_message_of_a_conversation_is_the_answer() -> None:
    message = [{"role": "assistant", "content": "The answer is $7$."}]
    assert MathScorer("gold").score(completed(message, columns=[{"gold": 7}])).tolist() == [1]


def test_an_empty_solution_is_skipped() -> None:
    rewards = MathScorer("solution").score(completed("3", "3", columns=[{"solution": ""}, {"solution": "3"}]))
    assert rewards.tolist() == pytest.approx([np.nan, 1], nan_ok=True)


def test_a_missing_solution_names_the_row_and_its_columns() -> None:
    with pytest.raises(RewardError, match=r"prompt p.jsonl:0 has no column 'solution'; it has \['answer', 'level'\]"):
        MathScorer("solution").score(completed("3", columns=[{"level": 1, "answer": "3"}]))


def test_build(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def exact(**_): return []")
    assert build(FunctionRewardConfig(type="function", function=f"{tmp_path}/mine.py:exact")).name == "exact"
    assert build(MathRewardConfig(type="math")).name == "math"
