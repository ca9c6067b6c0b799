"""Every class of bad data gets its golden text and exit code 2, with the lines. The B numbers are the catalogue's."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from workshop import OFFLINE_DPO, Workshop

from orchestrator.cli import main

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
    Case("b34-empty", "dpo", lines({**PAIR, "chosen": ""}, {**PAIR, "rejected": " \t"}, {**PAIR, "prompt": ""})),
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
    Case("no-solution-column", "grpo", lines(*[{"prompt": "1+1=", "answer": "2"}] * 8)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case: Case, workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    changes, file = FILES[case.algorithm]
    workshop.recipe(changes)
    (workshop.path / file).write_bytes(case.content)
    refused("recipe.yaml", case.name, golden, capsys)


def refused(recipe: str, name: str, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["validate", recipe])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert "Traceback" not in printed.err
    golden(name, printed.err)


def test_b43_parquet(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"text": ["a", "b"]}), "schema.parquet")
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), "empty.parquet")
    Path("footer.parquet").write_bytes(b"PAR1" + b"\0" * 50)
    for name in ("schema", "empty", "footer"):
        workshop.recipe({"data": f"{{prompts: ./{name}.parquet}}"})
        refused("recipe.yaml", f"b43-parquet-{name}", golden, capsys)


def test_b43_types_of_ray_are_refused_before_their_metadata_are_read(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    metadata = {b"ARROW:extension:name": b"ray.data.arrow_tensor", b"ARROW:extension:metadata": b"cpickle..."}
    schema = pa.schema([pa.field("prompt", pa.string(), metadata=metadata)])
    parquet.write_table(pa.table({"prompt": ["a"]}, schema=schema), "ray.parquet")
    workshop.recipe({"data": "{prompts: ./ray.parquet}"})
    refused("recipe.yaml", "b43-parquet-ray", golden, capsys)


def test_b49_what_is_not_a_file(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.jsonl")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    Path("notes.txt").write_text("a")
    sources = {"pipe": "./pipe.jsonl", "loop": "./loop.jsonl", "device": "/dev/zero", "text": "./notes.txt"}
    for name, source in {**sources, "missing": "./nowhere.jsonl"}.items():
        workshop.recipe({"data": f"{{prompts: {source}}}"})
        refused("recipe.yaml", f"b49-{name}", golden, capsys)


def test_b12_models(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.recipe()
    model = workshop.path / "model"
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused("recipe.yaml", "b12-lfs-pointer", golden, capsys)
    (model / "model.safetensors").unlink()
    (model / "tokenizer.json").unlink()
    refused("recipe.yaml", "b12-no-weights", golden, capsys)
    (model / "config.json").unlink()
    refused("recipe.yaml", "b12-no-config", golden, capsys)
    model.rmdir()
    refused("recipe.yaml", "b12-no-directory", golden, capsys)


def test_adapters_for_layers_that_the_model_has_not(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = {
        "model.embed_tokens.weight": [32, 8],
        "model.layers.0.self_attn.q_proj.weight": [8, 8],
        "model.layers.0.self_attn.q_proj.bias": [8],
        "model.layers.0.mlp.up_proj.weight": [16, 8],
        "model.norm.weight": [8],
        "lm_head.weight": [32, 8],
        "score.weight": [1, 8],
    }
    header = json.dumps({n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}).encode()
    (workshop.path / "model" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    workshop.recipe({"model": "{path: ./model, lora: {target_modules: [up_proj, c_attn, lm_head, score, proj]}}"})
    refused("recipe.yaml", "lora-unknown-targets", golden, capsys)
    workshop.recipe({"model": "{path: ./model, lora: {target_modules: [up_proj, self_attn.q_proj]}}"})
    assert main(["validate", "recipe.yaml"]) == 0


def test_b15_conversations_need_a_chat_template(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.jsonl("prompts.jsonl", [{"prompt": [user("1+1=")], "solution": "2"}] * 8)
    workshop.recipe()
    refused("recipe.yaml", "b15-no-chat-template", golden, capsys)
    (workshop.path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert main(["validate", "recipe.yaml"]) == 0


@pytest.mark.parametrize(
    ("name", "function", "source"),
    [
        ("b55-no-file", "rewards.py:reward", None),
        ("b55-not-python", "rewards.py:reward", "def reward(:\n"),
        ("b55-no-function", "rewards.py:reward", "def score(completions, **columns): ...\n"),
        ("b55-wrong-signature", "rewards.py:reward", "def reward(text): ...\n"),
        ("b55-no-name", "rewards.py", "def reward(completions, **columns): ...\n"),
        ("b55-no-package", "nowhere.to.be.found:reward", None),
    ],
)
def test_b55_reward_functions(
    name: str, function: str, source: str | None, workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    if source is not None:
        Path("rewards.py").write_text(source)
    workshop.recipe({"reward": f"[{{type: function, function: '{function}'}}]"})
    refused("recipe.yaml", name, golden, capsys)


def test_b63_output_that_cannot_be_written(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").write_text("a file")
    workshop.recipe()
    refused("recipe.yaml", "b63-output", golden, capsys)


def test_a_teacher_with_another_tokenizer(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("model", "teacher")
    vocabularies = {"model": {"a": 0, "b": 1, "c": 2}, "teacher": {"a": 0, "c": 1, "b": 2}}
    for directory, vocabulary in vocabularies.items():
        Path(directory, "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    distill = {
        "algorithm": "{type: distill, prompts_per_step: 4, max_steps: 10}",
        "teacher": "{model: {path: ./teacher}}",
        "reward": None,
    }
    workshop.recipe(distill)
    refused("recipe.yaml", "teacher-of-another-tokenizer", golden, capsys)
    Path("teacher/model.safetensors").unlink()
    shutil.copy("model/tokenizer.json", "teacher/tokenizer.json")
    refused("recipe.yaml", "teacher-without-weights", golden, capsys)
    shutil.copy("model/model.safetensors", "teacher/model.safetensors")
    assert main(["validate", "recipe.yaml"]) == 0


def test_a_stage_hands_its_tokenizer_on_to_the_teacher_it_makes(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("model", "other")
    for directory, token in (("model", "a"), ("other", "b")):
        Path(directory, "tokenizer.json").write_text(json.dumps({"model": {"vocab": {token: 0}}}))
    for origin, code in (("model", 0), ("other", 2)):
        Path("stages.yaml").write_text(
            f"stages:\n- {{name: base, model: {{path: {origin}}}, data: {{dataset: demos.jsonl}}, "
            "algorithm: {type: sft, batch_size: 4}}\n"
            "- {name: student, model: {path: model}, teacher: {model: {from_stage: base}}, "
            "data: {dataset: demos.jsonl}, algorithm: {type: distill, batch_size: 4}}\n"
        )
        assert main(["validate", "stages.yaml"]) == code
    assert "token 0 is 'a' in one and 'b' in the other" in capsys.readouterr().err
