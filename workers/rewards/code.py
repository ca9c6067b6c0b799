"""Code reward: run the program in a completion against the tests of its row.

Accepted formats of the tests (value of the column, or its JSON text):

    ["assert add(1, 2) == 3", …]                                      MBPP: `test_list`
    "def check(f): …\\ncheck(add)"                                    Python that raises an error if the test fails
    {"inputs": ["1 2\\n", …], "outputs": ["3\\n", …]}                 APPS, TACO, verl: standard input and output
    {"fn_name": "add", "inputs": [[1, 2], …], "outputs": [3, …]}      the same for a function or `Solution.add`
    [{"input": "1 2\\n", "output": "3\\n"}, …], {"test_cases": […]}   open-r1: `verification_info`

Expected outputs never enter the sandbox. Assertions do, and run in the program's process.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.config import CodeRewardConfig
from workers.rewards.base import Completed, RewardError, last_text
from workers.rewards.sandbox import ProgramResult, Sandbox
from workers.types import Floats, Prompt

FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
PYTHON = ("", "python", "python3", "py")
LEN_TOKEN = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Assertions:
    """Python code that is appended to the program. Example: `Assertions(source="assert add(1, 2) == 3")`."""

    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """Standard input and expected output. Example: `Input(given="1 2\\n", expected="3\\n")`."""

    given: str
    expected: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """Function call and expected result. Example: `Call(function="add", arguments=[1, 2], expected=3)`."""

    function: str
    arguments: Sequence[Any]
    expected: Any


Test = Assertions | Input | Call


class CodeScorer:
    """1 if the program passes all tests of its row, else 0; with partial credit, the share of tests that it passes.

    NaN for a row without tests.
    """

    name = "code"

    def __init__(self, config: CodeRewardConfig, *, num_parallel: int = 1) -> None:
        """Start the sandbox. Raises NoSandboxError if programs cannot be run safely on this machine."""
        self._config, self._num_parallel = config, num_parallel
        self._sandbox = Sandbox(timeout_s=config.timeout_s, memory_mib=config.memory_mib)

    def score(self, completed: Completed) -> Floats:
        """Return one number per completion.

        Raises:
            RewardError: the tests of a row cannot be read; this is checked before any program is run.
        """
        tests = [read_tests(prompt, self._config.tests_column) for prompt in completed.prompts]
        programs = [program(last_text(completion)) for completion in completed.completions]
        with ThreadPoolExecutor(self._num_parallel) as pool:
            return np.fromiter(pool.map(self._score, programs, tests), np.float32, len(programs))

    def _score(self, source: str, tests: Sequence[Test]) -> float:
        if not tests:
            return np.nan
        passed = 0
        for test in tests:
            if passes(self._sandbox, source, test):
                passed += 1
            elif not self._config.partial_credit:
                return 0.0
        return passed / len(tests)


def program(text: str) -> str:
    """Return the last fenced block marked as Python or unmarked. If nothing is fenced, return the whole text."""
    blocks = FENCE.findall(text)
    fitting = [code for language, code in blocks if language.lower() in PYTHON]
    return fitting[-1] if fitting else "" if blocks else text


def passes(sandbox: Sandbox, source: str, test: Test) -> bool:
    """Run the program `source` in a sandbox of its own and return whether it passes `test`."""
    match test:
        case Assertions():
            token = secrets.token_hex(LEN_TOKEN)
            result = sandbox.run(f"{source}\n\n{test.source}\n", {"mode": "assertions", "token": token})
            return _succeeded(result) and result.output.decode("ascii", "replace") == token
        case Input():
            result = sandbox.run(source, {"mode": "input"}, test.given.encode())
            return _succeeded(result) and _lines(result.output.decode("utf-8", "replace")) == _lines(test.expected)
        case Call():
            order = {"mode": "call", "function": test.function, "arguments": test.arguments}
            result = sandbox.run(source, order)
            return _succeeded(result) and _returned(result.output, test.expected)


def _succeeded(result: ProgramResult) -> bool:
    return result.end == "exit" and result.code == 0


def _lines(text: str) -> list[str]:
    """Split into lines without trailing white space and trailing empty lines, which no task specifies."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _returned(output: bytes, expected: Any) -> bool:
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return False
    return bool(value == expected or [value] == expected)  # some datasets wrap the expected value in a list


# ------------------------------------------------------------------------------------------------ tests


def read_tests(prompt: Prompt, column: str) -> Sequence[Test]:
    """Read the tests in a row's column. Raises RewardError, naming the row, if their format is unknown."""
    if column not in prompt.columns:
        raise RewardError(
            f"prompt {prompt.id} has no column {column!r}; it has {sorted(prompt.columns)}. "
            "Set tests_column to the column with the tests"
        )
    try:
        return _tests(prompt.columns[column])
    except (KeyError, TypeError, ValueError) as error:
        raise RewardError(
            f"the tests of prompt {prompt.id} (column {column!r}) cannot be read: {error}; give assertions, "
            "inputs and outputs, or test_cases in a format of docs/rewards.md"
        ) from None


def _tests(value: Any) -> Sequence[Test]:
    match value:
        case None:
            return ()
        case str():
            try:
                parsed = json.loads(value)
            except ValueError:
                return [Assertions(source=value)] if value.strip() else ()
            return _tests(parsed)
        case {"test_cases": cases}:
            return _tests(cases)
        case {"inputs": inputs, "outputs": outputs}:
            name = value.get("fn_name")
            return [_test(given, wanted, name) for given, wanted in zip(inputs, outputs, strict=True)]
        case [*tests]:
            return [_one(test) for test in tests]
    raise ValueError(f"they are {_kind(value)}")


def _one(test: Any) -> Test:
    match test:
        case str():
            return Assertions(source=test)
        case {"input": given, "output": wanted}:
            return _test(given, wanted, test.get("fn_name"))
    raise ValueError(f"one of them is {_kind(test)}")


def _test(given: Any, wanted: Any, function: str | None) -> Test:
    if function is not None:
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ValueError(f"the arguments of {function} are not a list: {given!r}")
        return Call(function=function, arguments=list(given), expected=wanted)
    return Input(given=_typed(given), expected=_typed(wanted))


def _typed(text: Any) -> str:
    """Join a list of lines, which some datasets give, to text."""
    if isinstance(text, Sequence) and not isinstance(text, str):
        return "\n".join(map(str, text)) + "\n"
    if not isinstance(text, str):
        raise ValueError(f"input or output is {_kind(text)}, not text")
    return text


def _kind(value: Any) -> str:
    keys = f" with {', '.join(map(repr, list(value)[:5]))}" if isinstance(value, Mapping) else ""
    return f"a {type(value).__name__}{keys}"
