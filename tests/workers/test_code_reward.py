"""Code reward: extraction of the program, formats of the tests, rewards, and the sandbox's filter."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.config import CodeRewardConfig
from workers.rewards import sandbox as sandboxes
from workers.rewards.base import Completed, RewardError
from workers.rewards.code import Assertions, Call, CodeScorer, Input, program, read_tests
from workers.rewards.sandbox import NoSandboxError, Sandbox
from workers.rewards.seccomp import MACHINES, REFUSED, filter_for
from workers.types import Prompt

Scorer = Callable[..., CodeScorer]


@pytest.fixture
def scorer() -> Scorer:
    def build(**settings: Any) -> CodeScorer:
        try:
            return CodeScorer(CodeRewardConfig(type="code", timeout_s=5.0, **settings), num_parallel=2)
        except NoSandboxError as error:
            pytest.skip(str(error))

    return build


def completed(*completions: str, tests: Any) -> Completed:
    prompts = [Prompt(id=f"p.jsonl:{i}", text="?", columns={"tests": tests}) for i in range(len(completions))]
    return Completed(prompts=prompts, completions=completions, completion_ids=[[0]] * len(completions))


ADD = "def add(a, b): return a + b"
SUBTRACT = "def add(a, b): return a - b"
ASSERTIONS = ["assert add(1, 0) == 1", "assert add(1, 2) == 3", "assert add(5, 5) == 10", "assert add(2, 0) == 2"]


# ------------------------------------------------------------------------------------------------ programs


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1", "x = 1"),
        ("First:\n```python\nx = 1\n```\nbetter:\n```python\nx = 2\n```\n", "x = 2\n"),
        ("```py\nx = 1\n```\nprints\n```text\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("  ```Python3 title=a.py\n  x = 1\n  ```", "  x = 1\n"),
        ("```java\nint x;\n```", ""),
        ("```python\nx = 1", "```python\nx = 1"),
        ("```python\ny = '''```'''\nx = 1\n```\n", "y = '''```'''\nx = 1\n"),
        ("", ""),
    ],
)
def test_the_last_python_block_is_the_program(text: str, found: str) -> None:
    assert program(text) == found


# ------------------------------------------------------------------------------------------------ tests


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["assert f()", "assert g()"], [Assertions(source="assert f()"), Assertions(source="assert g()")]),
        ("check(f)", [Assertions(source="check(f)")]),
        ({"inputs": ["1\n"], "outputs": ["2\n"]}, [Input(given="1\n", expected="2\n")]),
        ({"inputs": [["1", "2"]], "outputs": [["3"]], "fn_name": None}, [Input(given="1\n2\n", expected="3\n")]),
        (
            {"fn_name": "f", "inputs": [[1], [[2]]], "outputs": [1, [2]]},
            [Call(function="f", arguments=[1], expected=1), Call(function="f", arguments=[[2]], expected=[2])],
        ),
        (
            {"language": "python", "test_cases": [{"input": "1", "output": "2", "type": "stdin_stdout"}]},
            [Input(given="1", expected="2")],
        ),
        ([{"fn_name": "f", "input": [1], "output": 1}], [Call(function="f", arguments=[1], expected=1)]),
        ([], []),
        (None, []),
        ("", []),
    ],
)
def test_the_shapes_that_tests_have(value: Any, expected: Any) -> None:
    assert list(read_tests(Prompt(id="p", text="?", columns={"tests": value}), "tests")) == expected
    assert list(read_tests(Prompt(id="p", text="?", columns={"tests": json.dumps(value)}), "tests")) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "cannot be read: they are a int"),
        ({"cases": []}, "they are a dict with 'cases'"),
        ([1], "one of them is a int"),
        ({"inputs": ["1"], "outputs": []}, "cannot be read: zip"),
        ({"inputs": [1], "outputs": ["1"]}, "input or output is a int, not text"),
        ({"fn_name": "f", "inputs": ["1"], "outputs": [1]}, "the arguments of f are not a list: '1'"),
    ],
)
def test_tests_that_cannot_be_read_name_the_row(value: Any, message: str) -> None:
    with pytest.raises(RewardError, match=f"the tests of prompt p.jsonl:4 .*{message}"):
        read_tests(Prompt(id="p.jsonl:4", text="?", columns={"tests": value}), "tests")


def test_a_missing_column_names_the_row_and_its_columns() -> None:
    with pytest.raises(RewardError, match=r"p.jsonl:4 has no column 'tests'; it has \['test_list'\]. Set tests_column"):
        read_tests(Prompt(id="p.jsonl:4", text="?", columns={"test_list": []}), "tests")


# ------------------------------------------------------------------------------------------------ rewards


def test_all_or_nothing(scorer: Scorer) -> None:
    rewards = scorer().score(completed(ADD, SUBTRACT, "nonsense(", f"```python\n{ADD}\n```", tests=ASSERTIONS))
    assert rewards.tolist() == [1, 0, 0, 1]
    assert rewards.dtype == np.float32


def test_partial_credit_is_the_share_of_tests(scorer: Scorer) -> None:
    rewards = scorer(partial_credit=True).score(completed(ADD, SUBTRACT, "x", tests=ASSERTIONS))
    assert rewards.tolist() == [1, 0.5, 0]


def test_inputs_and_outputs(scorer: Scorer) -> None:
    tests = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3", "7\n"]}
    right = "print(sum(map(int, input().split())), ' ')"
    rewards = scorer().score(completed(right, "print(3)", right + "\n1 / 0", tests=tests))
    assert rewards.tolist() == [1, 0, 0]


def test_calls(scorer: Scorer) -> None:
    tests = {"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [3, [[1, 2]]]}
    method = "class Solution:\n    def add(self, a, b): return a + b"
    tuples = "def add(a, b): return a + b if isinstance(a, int) else (*a, *b)"
    rewards = scorer().score(completed(ADD, method, tuples, SUBTRACT, "def sub(a, b): return 3", tests=tests))
    assert rewards.tolist() == [1, 1, 1, 0, 0]


def test_an_empty_list_expected_is_not_what_a_failure_returns(scorer: Scorer) -> None:
    tests = {"fn_name": "f", "inputs": [[]], "outputs": [[]]}
    assert scorer().score(completed("def f(): return []", "def f(): return object()", tests=tests)).tolist() == [1, 0]


def test_a_row_without_tests_is_skipped(scorer: Scorer) -> None:
    assert np.isnan(scorer().score(completed(ADD, tests=[]))).tolist() == [True]


def test_text_that_is_not_unicode_is_a_program_that_fails(scorer: Scorer) -> None:
    assert scorer().score(completed("x = '\ud800'\n1 / 0", "\0", tests=["assert x"])).tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------ refusals


def test_without_bubblewrap_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoSandboxError, match=r"bubblewrap \(bwrap\) is not installed .*; code rewards need"):
        Sandbox(timeout_s=1.0, memory_mib=256)


def test_without_user_namespaces_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Simulate bubblewrap's error if the kernel or a container forbids user namespaces."""
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(NoSandboxError, match=r"does not start: bwrap: No permissions .*; code rewards need"):
        Sandbox(timeout_s=1.0, memory_mib=256)


def test_on_an_unknown_machine_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bwrap").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandboxes, "filter_for", lambda: filter_for("riscv64"))
    with pytest.raises(NoSandboxError, match=f"no system-call filter for {platform.machine()}"):
        Sandbox(timeout_s=1.0, memory_mib=256)


def test_a_sandbox_that_breaks_later_is_never_a_zero(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = scorer()
    built._sandbox._command[0] = "/bin/false"
    with pytest.raises(NoSandboxError, match="does not start: it ended with 1"):
        built.score(completed(ADD, tests=ASSERTIONS))


# ------------------------------------------------------------------------------------------------ the filter


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_decides_as_described(machine: str) -> None:
    """Interpret the instructions like the kernel does."""
    instructions = filter_for(machine)
    assert instructions is not None
    audit, column, clone, clone3 = MACHINES[machine]
    refused, missing, allowed, killed = 0x00050001, 0x00050026, 0x7FFF0000, 0x80000000
    for numbers in REFUSED.values():
        if numbers[column] is not None:
            assert decide(instructions, audit, numbers[column]) == refused
    assert decide(instructions, audit, clone, flags=17) == refused  # a new process
    assert decide(instructions, audit, clone, flags=0x3D0F00) == allowed  # a thread of glibc
    assert decide(instructions, audit, clone3) == missing
    assert decide(instructions, audit, 0x40000000 + 39) == refused
    assert decide(instructions, 0x40000003, 1) == killed  # the calls of 32-bit programs
    known_numbers = {numbers[column] for numbers in REFUSED.values()} | {clone, clone3}
    assert all(decide(instructions, audit, n) == allowed for n in range(600) if n not in known_numbers)


def decide(instructions: bytes, audit: int, number: int | None, flags: int = 0) -> int:
    import struct

    data, accumulator, at = {0: number, 4: audit, 16: flags}, 0, 0
    while True:
        code, if_so, if_not, value = struct.unpack_from("<HBBI", instructions, 8 * at)
        at += 1
        match code:
            case 0x20:
                accumulator = data[value] or 0
            case 0x06:
                return int(value)
            case _:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
                at += if_so if holds[code] else if_not
