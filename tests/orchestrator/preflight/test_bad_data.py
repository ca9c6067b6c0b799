"""Golden error text and exit code 2 for every class of bad data. bad_input.py lists the classes by B number."""

from __future__ import annotations

import gzip
import json
import os
import re
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from recipe_dir import OFFLINE_DPO, RecipeDir, refused

from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.errors import BadInput
from orchestrator.preflight.data_files import read_all
from orchestrator.preflight.preflight import preflight

GRPO: Mapping[str, str | None] = {}
SFT: Mapping[str, str | None] = {
    "data": "{dataset: ./demos.jsonl}",
    "algorithm": "{type: sft, batch_size: 4}",
    "reward": None,
}
KTO: Mapping[str, str | None] = {
    "data": "{dataset: ./feedback.jsonl}",
    "algorithm": "{type: kto, batch_size: 2}",
    "reward": None,
}
FILES = {
    "grpo": (GRPO, "prompts.jsonl"),
    "dpo": (OFFLINE_DPO, "pairs.jsonl"),
    "sft": (SFT, "demos.jsonl"),
    "kto": (KTO, "feedback.jsonl"),
}
Golden = Callable[[str, str], None]


def lines(*rows: Any) -> bytes:
    return "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows
    ).encode()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PROMPT = {"prompt": "1+1=", "solution": "2"}
PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
RATED = {"prompt": "1+1=", "completions": ["2", "3", "4"], "ratings": [5, 3, 1]}
GOOD, BAD = ({"prompt": "1+1=", "completion": str(answer), "label": answer == 2} for answer in (2, 3))


class Case(NamedTuple):
    name: str
    algorithm: str
    content: bytes


CASES = (
    Case("b31-empty-file", "grpo", b""),
    Case("b31-blank-lines", "grpo", b"\n\n  \n"),
    Case("b32-no-prompt", "grpo", lines({"question": "1+1=", "answer": "2"}, {"question": "1+2=", "answer": "3"})),
    Case("b32-no-rejected", "dpo", lines({"prompt": "1+1=", "chosen": "2"})),
    Case(
        "b32-some-rows-lack-chosen", "dpo", lines(PAIR, {"prompt": "1+1=", "rejected": "2"}, {**PAIR, "chosen": None})
    ),
    Case("b32-renamed-columns", "dpo", lines({"question": "1+1=", "response_chosen": "2", "response_rejected": "3"})),
    Case(
        "b33-chosen-is-rejected",
        "dpo",
        lines(
            PAIR,
            {**PAIR, "rejected": "2"},
            {**PAIR, "rejected": " 2\n"},
            {**PAIR, "chosen": "é", "rejected": "e\u0301"},
        ),
    ),
    Case("b33-twenty-equal-pairs", "dpo", lines(*([{**PAIR, "rejected": "2"}] * 20))),
    Case("b34-empty", "dpo", lines({**PAIR, "chosen": ""}, {**PAIR, "chosen": " \t"}, {**PAIR, "prompt": ""})),
    Case(
        "b35-not-text",
        "dpo",
        lines(
            {**PAIR, "chosen": 2},
            {**PAIR, "rejected": ["3"]},
            {**PAIR, "prompt": {"text": "1"}},
            {**PAIR, "chosen": True},
        ),
    ),
    Case("b36-long-line", "grpo", lines({"prompt": "x" * (9 * 2**20)}, PROMPT)),
    Case("b39-invalid-utf8", "grpo", lines(PROMPT) + b'{"prompt": "\xff"}\n'),
    Case("b39-byte-order-mark", "grpo", b"\xef\xbb\xbf" + lines(PROMPT)),
    Case("b39-utf16", "grpo", lines(PROMPT).decode().encode("utf-16")),
    Case("b39-utf16-without-mark", "grpo", lines(PROMPT).decode().encode("utf-16-le")),
    Case("b39-lone-surrogate", "grpo", lines('{"prompt": "a\\ud800b"}')),
    Case("b39-nul", "grpo", lines('{"prompt": "a\\u0000b"}')),
    Case("b44-truncated-last-line", "grpo", lines(PROMPT) + b'{"prompt": "1+1=", "solu'),
    Case("b44-trailing-comma", "grpo", lines(json.dumps(PROMPT) + ",")),
    Case("b44-one-array", "grpo", json.dumps([PROMPT, PROMPT]).encode()),
    Case("b44-indented-array", "grpo", json.dumps([PROMPT, PROMPT], indent=2).encode()),
    Case("b44-indented-object", "grpo", json.dumps(PROMPT, indent=2).encode()),
    Case("b44-python-quotes", "grpo", lines(str(PROMPT))),
    Case("b44-not-an-object", "grpo", lines('"1+1="', "3", "null")),
    Case("b45-nan", "grpo", lines('{"prompt": "a", "score": NaN}', '{"prompt": "a", "score": -Infinity}')),
    Case("b45-duplicate-key", "grpo", lines('{"prompt": "a", "prompt": "b"}')),
    Case("b45-huge-integer", "grpo", lines('{"prompt": "a", "score": ' + "9" * 5000 + "}")),
    Case("b45-deep", "grpo", lines('{"prompt": ' + "[" * 10_000 + "]" * 10_000 + "}")),
    Case(
        "b46-roles",
        "grpo",
        lines(
            {"prompt": [user("a"), assistant("b")]},
            {"prompt": [assistant("a"), user("b")]},
            {"prompt": [user("a"), {"role": "system", "content": "b"}]},
            {"prompt": [{"role": "human", "content": "a"}]},
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            {"prompt": []},
        ),
    ),
    Case(
        "b46-completion-roles",
        "dpo",
        lines(
            {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [user("c")]},
            {"prompt": "a", "chosen": [assistant("b")], "rejected": [assistant("c")]},
            {"prompt": [user("a")], "chosen": "b", "rejected": "c"},
        ),
    ),
    Case("b48-gzip", "grpo", gzip.compress(lines(PROMPT), mtime=0)),
    Case("b50-fewer-rows-than-a-batch", "grpo", lines(PROMPT, PROMPT)),
    Case("prompts-as-dataset", "dpo", lines({"prompt": "1+1="})),
    Case("pairs-for-sft", "sft", lines(PAIR)),
    Case("unpaired-preferences", "dpo", lines({"prompt": "1+1=", "completion": "2", "label": True})),
    Case("labels", "kto", lines(GOOD, {**BAD, "label": "false"}, {**BAD, "label": 0}, {**BAD, "completion": " "})),
    Case("one-label", "kto", lines(GOOD, GOOD, GOOD)),
    Case("pairs-for-kto", "kto", lines(PAIR)),
    Case(
        "ratings",
        "dpo",
        lines(
            RATED,
            {**RATED, "ratings": [5, 3]},
            {**RATED, "ratings": [5, "3", 1]},
            {**RATED, "ratings": [5, True, 1]},
            {**RATED, "ratings": 5},
            {**RATED, "completions": ["2"]},
            {**RATED, "completions": ["2", " ", "4"]},
            {**RATED, "completions": ["2", "3", "2\n"]},
        ),
    ),
    Case(
        "b45-beyond-float32",
        "dpo",
        lines(
            {**RATED, "ratings": [1e39, 3, 1]},
            {**RATED, "ratings": [3e38, 0, -3e38]},
            {**RATED, "ratings": [16777217, 16777216, 1]},  # 2^24, where float32 stops counting by one
        ),
    ),
    Case("b45-margin-beyond-float32", "dpo", lines({**PAIR, "margin": 1e39}, {**PAIR, "margin": True})),
    Case(
        "b45-beyond-float64", "grpo", lines('{"prompt": "a", "score": 1e999}', f'{{"prompt": "a", "score": {2**63}}}')
    ),
    Case("equal-ratings", "dpo", lines(*[{**RATED, "ratings": [n, n, n]} for n in (1, 2, 3)])),
    Case(
        "ranks",
        "dpo",
        lines(*[{"prompt": "1+1=", "completions": ["2", "3"], "ranks": ranks} for ranks in ([0, 1], [1, 1.5], [1])]),
    ),
    Case("ratings-of-responses", "dpo", lines({"prompt": "1+1=", "responses": ["2", "3"], "ratings": [5, 1]})),
    Case("ratings-for-kto", "kto", lines(RATED)),
    Case("stepwise", "sft", lines({"prompt": "1+1=", "completions": ["2"], "labels": [True]})),
    Case("no-common-beginning", "dpo", lines({"chosen": "a", "rejected": "b"})),
    Case("margins", "dpo", lines({**PAIR, "margin": -1}, {**PAIR, "margin": "2"})),
    Case("messages-without-an-answer", "sft", lines({"messages": [user("a")]}, {"messages": [user("a"), user("b")]})),
    Case(
        "solutions-that-say-nothing",
        "grpo",
        lines(
            *[{"prompt": "1+1=", "solution": value} for value in ("2", None, " ", "\\boxed{}", ["2"], {"value": 2}, 2)],
            {"prompt": "1+1="},
        ),
    ),
    Case("no-solution-column", "grpo", lines(*[{"prompt": "1+1=", "answer": "2"}] * 8)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case: Case, recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    changes, file = FILES[case.algorithm]
    recipe_dir.recipe(changes)
    (recipe_dir.path / file).write_bytes(case.content)
    refused("recipe.yaml", case.name, golden, capsys)


def test_b43_parquet(recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"text": ["a", "b"]}), "schema.parquet")
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), "empty.parquet")
    Path("footer.parquet").write_bytes(b"PAR1" + b"\0" * 50)
    for name in ("schema", "empty", "footer"):
        recipe_dir.recipe({"data": f"{{prompts: ./{name}.parquet}}"})
        refused("recipe.yaml", f"b43-parquet-{name}", golden, capsys)


def test_b43_types_of_ray_are_refused_before_their_metadata_are_read(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    metadata = {b"ARROW:extension:name": b"ray.data.arrow_tensor", b"ARROW:extension:metadata": b"cpickle..."}
    schema = pa.schema([pa.field("prompt", pa.string(), metadata=metadata)])
    parquet.write_table(pa.table({"prompt": ["a"]}, schema=schema), "ray.parquet")
    recipe_dir.recipe({"data": "{prompts: ./ray.parquet}"})
    refused("recipe.yaml", "b43-parquet-ray", golden, capsys)


def test_b49_what_is_not_a_file(recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.jsonl")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    Path("notes.txt").write_text("a")
    sources = {"pipe": "./pipe.jsonl", "loop": "./loop.jsonl", "device": "/dev/zero", "text": "./notes.txt"}
    for name, source in {**sources, "missing": "./nowhere.jsonl"}.items():
        recipe_dir.recipe({"data": f"{{prompts: {source}}}"})
        refused("recipe.yaml", f"b49-{name}", golden, capsys)


@pytest.mark.parametrize(
    ("name", "function", "source"),
    [
        ("b55-no-file", "rewards.py:reward", None),
        ("b55-not-python", "rewards.py:reward", "def reward(:\n"),
        ("b55-no-function", "rewards.py:reward", "def score(completions, **columns): ...\n"),
        ("b55-wrong-signature", "rewards.py:reward", "def reward(text): ...\n"),
        ("b55-no-columns", "rewards.py:reward", "async def reward(completions): ...\n"),
        ("b55-other-columns", "rewards.py:reward", "def reward(completions, answer, *, level, n=1, **_): ...\n"),
        ("b55-by-position", "rewards.py:reward", "def reward(prompts, completions, /, **columns): ...\n"),
        ("b55-module", "rewards:reward", "if True:\n    def reward(completions, answer, **columns): ...\n"),
        ("b55-no-name", "rewards.py", "def reward(completions, **columns): ...\n"),
        ("b55-no-package", "nowhere.to.be.found:reward", None),
    ],
)
def test_b55_reward_functions(
    name: str,
    function: str,
    source: str | None,
    recipe_dir: RecipeDir,
    golden: Golden,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if source is not None:
        Path("rewards.py").write_text(source)
    recipe_dir.recipe({"reward": f"[{{type: function, function: '{function}'}}]"})
    refused("recipe.yaml", name, golden, capsys)


@pytest.mark.parametrize(
    "source",
    [
        "def reward(completions, solution, **_): ...\n",
        "def reward(prompts, completions, completion_ids, solution): ...\n",
        "def reward(completions, level=1, **_): ...\n",
        "@anything\ndef reward(text): ...\n",
        "try:\n    from fast import reward\nexcept ImportError:\n    def reward(text): ...\n",
        "reward: object = print\n",
        "from elsewhere import *\n",
    ],
)
def test_b55_functions_that_can_be_called(source: str, recipe_dir: RecipeDir) -> None:
    Path("rewards.py").write_text(source)
    for function in ("rewards.py:reward", "rewards:reward"):
        recipe_dir.recipe({"reward": f"[{{type: function, function: '{function}'}}]"})
        preflight(load("recipe.yaml"))


def test_b55_rows_that_leave_out_a_column_have_null_in_it(recipe_dir: RecipeDir) -> None:
    Path("rewards.py").write_text("def reward(completions, level, **_): ...\n")
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": "1+1="}] * 4 + [{"prompt": "1+1=", "level": 3}] * 4)
    recipe_dir.recipe({"reward": "[{type: function, function: 'rewards.py:reward'}]"})
    config = load("recipe.yaml").stages[0]
    preflight(load("recipe.yaml"))
    rows = read_all(config, None)["prompts"].prompts
    assert [row.columns["level"] for row in rows] == [None] * 4 + [3] * 4


@pytest.mark.parametrize(
    ("name", "reward", "rows"),
    [
        (
            "schemas",
            "{type: json_schema}",
            [{"schema": value} for value in ({}, "{}", None, "[", {"type": "objekt"}, {"$ref": "#/no"}, "{}", {})],
        ),
        (
            "tests",
            "{type: code}",
            [{"tests": value} for value in ("assert 1", [3], {"inputs": ["1"], "outputs": []}, None, [], 7, "", " ")],
        ),
    ],
)
def test_rows_that_a_reward_cannot_read(
    name: str, reward: str, rows: list[dict[str, object]], recipe_dir: RecipeDir, golden: Golden
) -> None:
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": "a", **row} for row in rows])
    recipe_dir.recipe({"reward": f"[{reward}]"})
    with pytest.raises(BadInput) as error:
        read_all(load("recipe.yaml").stages[0], None)
    golden(f"{name}-that-cannot-be-read", f"{error.value}\n")


def test_a_row_without_a_score_by_one_reward_may_be_scored_by_another(recipe_dir: RecipeDir) -> None:
    rows = [{"prompt": "a", "solution": "2", "tests": None}, {"prompt": "a", "solution": None, "tests": "assert 1"}]
    recipe_dir.jsonl("prompts.jsonl", [*rows] * 4)
    recipe_dir.recipe({"reward": "[{type: math}, {type: code}]"})
    assert len(read_all(load("recipe.yaml").stages[0], None)["prompts"].rows) == 8


def test_b63_output_that_cannot_be_written(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").write_text("a file")
    recipe_dir.recipe()
    refused("recipe.yaml", "b63-output", golden, capsys)


def test_b36_a_line_of_a_gigabyte_takes_no_gigabyte_of_memory(
    recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate("prompts.jsonl", 2**30)  # a hole that is read as one line of NULs, after 8 good rows
    recipe_dir.recipe()
    tracemalloc.start()
    code = main(["validate", "recipe.yaml"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (code, capsys.readouterr().err) == (
        2,
        "rlhf: ./prompts.jsonl:9: a line of more than 8 MiB\n  fix: split the row, or use parquet\n",
    )
    assert peak < 64 * 2**20


def test_b48_zstd_and_a_bomb(recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    Path("packed.jsonl").write_bytes(pa.compress(lines(PROMPT), codec="zstd", asbytes=True))
    parquet.write_table(pa.table({"prompt": ["0" * (80 * 2**20)]}), "bomb.parquet", compression="zstd")
    assert Path("bomb.parquet").stat().st_size < 2**20
    recipe_dir.recipe({"data": "{prompts: ./packed.jsonl}"})
    refused("recipe.yaml", "b48-zstd", golden, capsys)
    recipe_dir.recipe({"data": "{prompts: ./bomb.parquet}"})
    assert main(["validate", "recipe.yaml"]) == 2
    printed = capsys.readouterr().err  # the size of the file depends on pyarrow
    assert re.search(
        r"bomb\.parquet: decompression bomb.*\d{4} bytes decompress to 80 MiB.*the limit is 1000", printed, re.DOTALL
    )


def test_b49_a_truncated_file(recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    Path("memory.jsonl").symlink_to("/proc/self/mem")  # a regular file whose first bytes cannot be read
    recipe_dir.recipe({"data": "{prompts: ./memory.jsonl}"})
    refused("recipe.yaml", "b49-input-output-error", golden, capsys)
