"""Limits and failures of a reward function (B51-B56): the error names the function and the limit."""

from __future__ import annotations

import datetime
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from workers.config import FunctionRewardConfig
from workers.rewards import function_process
from workers.rewards.base import Completed, RewardError
from workers.rewards.function import FunctionScorer
from workers.rewards.function_child import answer
from workers.types import Prompt

pytestmark = pytest.mark.slow

Function = Callable[..., FunctionScorer]
HELPERS = """import ctypes, fcntl, os, stat
def is_writable_pipe(fd):
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_WRONLY
    except OSError:
        return False

"""


def batch(size: int = 2, **columns: Any) -> Completed:
    prompts = [Prompt(id=f"p.jsonl:{i}", text=f"question {i}", columns=columns) for i in range(size)]
    return Completed(prompts=prompts, completions=["a"] * size, completion_ids=[[i] for i in range(size)])


@pytest.fixture
def function(tmp_path: Path) -> Function:
    """Load the function `reward` of a file with the given text."""

    def load(text: str, **limits: Any) -> FunctionScorer:
        (tmp_path / "mine.py").write_text(text)
        settings = {"timeout_s": 20.0, "memory_mib": 512, **limits}
        return FunctionScorer(FunctionRewardConfig(type="function", function=f"{tmp_path}/mine.py:reward", **settings))

    return load


def failure(scorer: FunctionScorer, completed: Completed | None = None) -> RewardError:
    with pytest.raises(RewardError) as failed:
        scorer.score(completed or batch())
    return failed.value


def processes_of(scorer: FunctionScorer) -> list[int]:
    return function_process._session(scorer._process._process.pid)


# ------------------------------------------------------------------------------------------------ the process


def test_one_process_serves_all_batches_and_ends_with_its_scorer(function: Function) -> None:
    scorer = function("import os\ndef reward(completions, **_): return [float(os.getpid())] * len(completions)")
    pids = {scorer.score(batch(size)).tolist()[0] for size in (1, 2, 300)}
    (pid,) = pids
    assert pid != os.getpid()
    scorer._process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_columns_arrive_as_json_has_them(function: Function) -> None:
    scorer = function(
        "def reward(day, nested, **_): return [float(day == ['2026-01-02'] and nested == [{'a': [1, None]}])]"
    )
    assert scorer.score(batch(1, day=datetime.date(2026, 1, 2), nested={"a": (1, None)})).tolist() == [1]


def test_a_batch_larger_than_any_pipe(function: Function) -> None:
    scorer = function("def reward(completions, **_): return [float(len(c)) for c in completions]")
    long = Completed(prompts=batch(8).prompts, completions=["x" * 10**6] * 8, completion_ids=[[1]] * 8)
    assert scorer.score(long).tolist() == [10**6] * 8


def test_what_it_prints_goes_to_the_workers_log(function: Function, capfd: pytest.CaptureFixture[str]) -> None:
    function("def reward(completions, **_):\n    print('printed')\n    return [0.0, 0.0]").score(batch())
    assert capfd.readouterr().out == "printed\n"


def test_a_process_killed_from_outside_is_restarted(function: Function, tmp_path: Path) -> None:
    """Check that a new process scores the same batch after the kernel or a person has killed the first one."""
    text = (
        f"import os, signal, pathlib\nflag = pathlib.Path({str(tmp_path)!r}, 'killed')\n"
        "def reward(completions, **_):\n"
        "    if not flag.exists():\n"
        "        flag.touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return [1.0, 2.0]"
    )
    assert function(text).score(batch()).tolist() == [1, 2]
    always = function("import os\ndef reward(**_): os.kill(os.getpid(), 9)")
    assert str(failure(always)) == "reward reward: its process died of SIGKILL"


def test_sigterms_to_all_processes_of_a_run_cost_no_reward(function: Function) -> None:
    """Check also that a pool, which ends its processes by SIGTERM, still can."""
    scorer = function(
        "import multiprocessing, time\n"
        "def reward(completions, **columns):\n"
        "    time.sleep(0.5)\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        return pool.map(float, range(len(completions)))\n"
    )
    child = scorer._process._process.pid
    with ThreadPoolExecutor(1) as pool:
        scores = pool.submit(scorer.score, batch(3))
        for _ in range(5):
            time.sleep(0.05)
            os.kill(child, signal.SIGTERM)
        assert scores.result().tolist() == [0.0, 1.0, 2.0]
    assert scorer._process._process.pid == child, "it was not started again"


def test_after_a_limit_the_next_batch_gets_a_new_process(function: Function) -> None:
    scorer = function(
        "import time\ndef reward(completions, **_):\n    time.sleep(30 * (len(completions) == 2))\n    return [1.0]",
        timeout_s=2.0,
    )
    assert "timeout_s = 2" in str(failure(scorer))
    assert scorer.score(batch(1)).tolist() == [1]


# ------------------------------------------------------------------------------------------------ B51, B53, B55


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "1 / 0",
            r"reward reward raised ZeroDivisionError: division by zero at .*mine.py:9, on a batch of 2 completions",
        ),
        (
            "raise SystemExit(0)",
            r"raised SystemExit: 0 at .*mine.py:9, on a batch of 2 .*\(prompts p.jsonl:0, p.jsonl:1\)",
        ),
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt at"),
        ("os._exit(0)", "reward reward ended its process with exit code 0 instead of returning"),
        ("os._exit(7)", "with exit code 7"),
        ("ctypes.string_at(0)", r"its process died of SIGSEGV \(a crash in native code\)"),
        ("os.abort()", "its process died of SIGABRT"),
        ("os.closerange(3, 100)", "raised OSError|closed the pipe|ended its process"),
        ("[os.write(fd, b'x' * 99) for fd in range(3, 999) if is_writable_pipe(fd)]", "wrote into the pipe"),
    ],
)
def test_b51_a_function_that_fails(function: Function, body: str, message: str) -> None:
    error = failure(function(HELPERS + f"def reward(completions, **_):\n    {body}\n    return [0.0, 0.0]\n"))
    assert re.search(message, str(error)), str(error)
    assert "\n" not in str(error), "its last line is what a person reads first"


def test_b51_its_own_traceback_stands_above_the_error(function: Function) -> None:
    error = failure(function("def inner(): return {}['answer']\ndef reward(**_): return inner()"))
    for words in ("mine.py", "in reward", "in inner", "KeyError: 'answer'"):
        assert words in str(error.__cause__)


def test_b51_what_a_crash_printed_last_stands_above_the_error(function: Function) -> None:
    error = failure(
        function("import ctypes\ndef reward(**_):\n    print('before', flush=True)\n    ctypes.string_at(0)")
    )
    for words in ("before", "Segmentation fault", "mine.py"):
        assert words in str(error.__cause__)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_b53_a_wrong_length_names_both(function: Function, count: int) -> None:
    error = failure(function(f"def reward(**_): return [0.5] * {count}"))
    assert str(error) == f"reward reward returned {count} rewards for 2 completions"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reward = 3", "has no function 'reward'; a reward function looks like reward(prompts,"),
        ("def rewards(**_): return []", "has no function 'reward'"),
        ("def reward(texts): return []", "takes no `completions`; a reward function looks like reward("),
        ("import no_such_module_at_all", "it raised ModuleNotFoundError: No module named 'no_such_module_at_all' at "),
        ("def reward(:", "it raised SyntaxError: "),
        ("import sys; sys.exit(3)", "it raised SystemExit: 3 at "),
        ("import os; os._exit(3)", "ended its process with exit code 3"),
    ],
)
def test_b55_a_function_that_cannot_be_loaded(function: Function, text: str, message: str) -> None:
    with pytest.raises(RewardError) as failed:
        function(text)
    assert message in str(failed.value)


def test_b55_a_column_that_is_missing_is_named(function: Function) -> None:
    error = failure(function("def reward(completions, answer, **_): return [0.0, 0.0]"))
    assert "missing 1 required positional argument: 'answer'" in str(error)


# ------------------------------------------------------------------------------------------------ B52


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[0.0, float('nan')]", "returned nan for prompt p.jsonl:1; rewards must be finite"),
        ("[float('inf'), float('nan')]", "returned inf for prompts p.jsonl:0, p.jsonl:1; rewards must be finite"),
        ("[1e300, 0.0]", "returned 1e\\+300 for prompt p.jsonl:0; rewards must be finite"),
        ("[0.0, '2']", r"returned '2' \(str\) for prompt p.jsonl:1"),
        ("[0.0, True]", r"returned True \(bool\) for prompt p.jsonl:1"),
        ("[0.0, 1j]", r"returned 1j \(complex\) for prompt p.jsonl:1"),
        ("[0.0, [1.0]]", r"returned \[1.0\] \(list\) for prompt p.jsonl:1"),
        ("[0.0, Odd()]", r"returned \? \(Odd\)|returned <Odd instance"),
        ("numpy.zeros((2, 1))", "returned ndarray; it must return a list of numbers"),
        ("(x for x in [1.0, 2.0])", "returned generator; it must return a list of numbers"),
        ("{'rewards': [1.0, 1.0]}", "returned dict; it must return a list of numbers"),
        ("None", "returned NoneType; it must return a list of numbers"),
    ],
)
def test_b52_an_answer_that_is_no_number_names_row_and_type(function: Function, answer: str, message: str) -> None:
    text = f"import numpy\nclass Odd:\n    def __repr__(self): return 1 / 0\ndef reward(**_): return {answer}"
    with pytest.raises(RewardError, match=message):
        function(text).score(batch())


def test_b52_tensors_are_named_as_such() -> None:
    """Call `answer` in this process: one that imports torch takes ten seconds to start."""
    import torch

    weights = torch.ones(2, requires_grad=True)
    assert answer(lambda **_: weights, b"{}") == {"kind": "Tensor"}
    error = answer(lambda **_: [0.0, weights[1]], b"{}")
    assert (error["row"], error["kind"]) == (1, "Tensor")
    assert error["value"].startswith("tensor(1.")


# ------------------------------------------------------------------------------------------------ B54


@pytest.mark.parametrize(
    ("body", "limits", "message"),
    [
        ("time.sleep(60)", {"timeout_s": 2.0}, "did not answer within timeout_s = 2; its process was killed"),
        ("while True: pass", {"timeout_s": 2.0}, "did not answer within timeout_s = 2"),
        ("re.match(r'(a+)+$', 'a' * 40 + 'b')", {"timeout_s": 2.0}, "did not answer within timeout_s = 2"),
        ("signal.signal(15, signal.SIG_IGN); time.sleep(60)", {"timeout_s": 2.0}, "did not answer within timeout_s"),
        ("[os.write(1, b'x' * 2**20) for _ in range(1024)]", {}, "printed more than 8 MiB in one batch"),
        (
            "kept = [b'x' * 2**24 for _ in range(99)]",
            {"memory_mib": 256},
            r"MemoryError at .*its limit is memory_mib = 256",
        ),
        (
            "[time.sleep(60) for _ in range(8) if os.fork() == 0 and hold()]; time.sleep(60)",
            {"memory_mib": 256},
            r"used \d+ MiB of memory, more than memory_mib = 256",
        ),
        ("[time.sleep(60) for _ in range(60) if os.fork() == 0]; time.sleep(60)", {}, "started more than 40 processes"),
    ],
    ids=["hangs", "spins", "holds the GIL", "ignores SIGTERM", "prints", "leaks", "leaks in its forks", "forks"],
)
def test_b54_a_limit_that_is_hit_is_named(
    function: Function, monkeypatch: pytest.MonkeyPatch, body: str, limits: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(function_process, "MAX_OUTPUT_BYTES", 8 * 2**20)
    monkeypatch.setattr(function_process, "MAX_PROCESSES", 40)
    monkeypatch.setattr(os, "write", _write_to_nowhere(os.write))
    text = "import os, re, signal, time\ndef hold():\n    global kept\n    kept = b'x' * 2**26\n    return True\n"
    scorer = function(text + f"def reward(completions, **_):\n    {body}\n    return [0.0, 0.0]", **limits)
    started = time.monotonic()
    with pytest.raises(RewardError, match=message):
        scorer.score(batch())
    assert time.monotonic() - started < 15
    if "MemoryError" not in message:
        assert processes_of(scorer) == [], "its forks end with it"


def _write_to_nowhere(write: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    """Discard the function's output, which would fill pytest's report of a failure."""
    return lambda fd, data: len(data) if fd == 1 else write(fd, data)


def test_b54_a_fork_that_returns_does_not_answer_too(function: Function) -> None:
    scorer = function("import os\ndef reward(completions, **_):\n    os.fork()\n    return [1.0] * len(completions)")
    assert [scorer.score(batch(n)).tolist() for n in (1, 2, 3)] == [[1], [1, 1], [1, 1, 1]]


def test_a_function_dies_with_its_worker(function: Function, tmp_path: Path) -> None:
    scorer = function(
        f"import os\ndef reward(**_): open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); return [1.0, 1.0]"
    )
    worker = os.fork()
    if worker == 0:  # a worker of its own, which is killed while its function is idle
        try:
            function(Path(tmp_path, "mine.py").read_text()).score(batch())
            signal.pause()
        finally:
            os._exit(1)
    scorer._process.close()
    until = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    while _is_alive(pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------ B56


@pytest.mark.parametrize(
    ("body", "argument"),
    [
        ("completions.clear()", "completions"),
        ("completion_ids[1].append(7)", "completion_ids"),
        ("answer[0]['deep'].append(object())", "answer"),
    ],
)
def test_b56_an_argument_that_was_changed_is_named(function: Function, body: str, argument: str) -> None:
    scorer = function(f"def reward(completions, completion_ids, answer, **_):\n    {body}\n    return [0.0, 0.0]")
    error = failure(scorer, batch(answer={"deep": [1]}))
    assert str(error).startswith(f"reward reward changed its argument `{argument}`")
