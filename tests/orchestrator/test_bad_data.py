"""Every class of bad data gets its golden text and exit code 2, with the lines. The B numbers are the catalogue's."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tokenizers
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


def safetensors_header(shapes: Mapping[str, list[int]]) -> bytes:
    header = json.dumps({n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}).encode()
    return len(header).to_bytes(8, "little") + header


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
    }
    (workshop.path / "model" / "model.safetensors").write_bytes(safetensors_header(shapes))
    workshop.recipe({"model": "{path: ./model, lora: {target_modules: [up_proj, c_attn, lm_head, proj]}}"})
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


def test_b36_a_line_of_a_gigabyte_takes_no_gigabyte_of_memory(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate("prompts.jsonl", 2**30)  # a hole that is read as one line of NULs, after 8 good rows
    workshop.recipe()
    tracemalloc.start()
    code = main(["validate", "recipe.yaml"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (code, capsys.readouterr().err) == (
        2,
        "rlhf: ./prompts.jsonl:9: a line of more than 8 MiB\n  fix: split the row, or use parquet\n",
    )
    assert peak < 64 * 2**20


def test_b48_zstd_and_a_bomb(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    Path("packed.jsonl").write_bytes(pa.compress(lines(PROMPT), codec="zstd", asbytes=True))
    parquet.write_table(pa.table({"prompt": ["0" * (80 * 2**20)]}), "bomb.parquet", compression="zstd")
    assert Path("bomb.parquet").stat().st_size < 2**20
    workshop.recipe({"data": "{prompts: ./packed.jsonl}"})
    refused("recipe.yaml", "b48-zstd", golden, capsys)
    workshop.recipe({"data": "{prompts: ./bomb.parquet}"})
    assert main(["validate", "recipe.yaml"]) == 2
    said = capsys.readouterr().err  # how small the file is depends on pyarrow
    assert re.search(
        r"bomb\.parquet: unpacks to far more.*\d{4} bytes unpack to 80 MiB.*the limit is 1000", said, re.DOTALL
    )


def test_b49_a_file_that_breaks_off(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    Path("memory.jsonl").symlink_to("/proc/self/mem")  # a regular file whose first bytes cannot be read
    workshop.recipe({"data": "{prompts: ./memory.jsonl}"})
    refused("recipe.yaml", "b49-input-output-error", golden, capsys)


# ------------------------------------------------------------------------------------- what is counted, not refused


def notes(capsys: pytest.CaptureFixture[str], recipe: str = "recipe.yaml") -> list[str]:
    """What `rlhf validate` remarks on a recipe that is good."""
    code = main(["validate", recipe])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return [line.removeprefix("    note: ") for line in printed.out.splitlines() if line.startswith("    note: ")]


def test_b33_equal_pairs_may_be_left_out(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "0"} for i in range(-1, 5)]
    workshop.jsonl("pairs.jsonl", rows)
    workshop.recipe({**OFFLINE_DPO, "data": "{dataset: ./pairs.jsonl, equal_pairs: drop}"})
    told = "left out, as data.equal_pairs has it: `chosen` and `rejected` are equal, so there is no preference (row 1)"
    assert notes(capsys) == [f"data.dataset: {told}"]
    workshop.jsonl("pairs.jsonl", rows[:1] * 5)
    refused("recipe.yaml", "b33-nothing-left", golden, capsys)


def test_b37_prompts_that_are_too_long(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer()
    workshop.jsonl("prompts.jsonl", [{"prompt": "1+" * i + "1=", "solution": "2"} for i in (1, 9, 2, 10, 3)])
    workshop.recipe({"rollout": "{max_prompt_length: 19}"})
    assert notes(capsys) == [
        "data.prompts: 2 of 5 rows have a prompt that is too long for 19 tokens (rollout.max_prompt_length) and will "
        "be dropped: rows 2, 4"
    ]
    workshop.recipe({"rollout": "{max_prompt_length: 3}"})
    refused("recipe.yaml", "b37-all-too-long", golden, capsys)


def test_b38_pairs_that_are_equal_once_they_are_cut(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer()
    long = {"prompt": "1+1=", "chosen": "1" * 30 + "2", "rejected": "1" * 30 + "3"}
    early = {"prompt": "1+1=", "chosen": "2" + "1" * 30, "rejected": "3"}
    whole = [{**PAIR, "prompt": f"{i}+1="} for i in range(3)]
    workshop.jsonl("pairs.jsonl", [long, *whole, early, {**PAIR, "prompt": "1+" * 20}])
    workshop.recipe({**OFFLINE_DPO, "data": "{dataset: ./pairs.jsonl, max_length: 20}"})
    assert notes(capsys) == [
        "data.dataset: 1 of 6 rows have a prompt that is too long for 20 tokens (data.max_length) and will be dropped: "
        "row 6",
        "data.dataset: 2 of 6 rows are longer than 20 tokens (data.max_length) and lose the end of a completion: "
        "rows 1, 5",
        "data.dataset: 1 of 6 rows are cut at 20 tokens (data.max_length), where their completions still agree: no "
        "preference: row 1",
    ]
    workshop.jsonl("pairs.jsonl", [{**long, "prompt": f"{i}+1="} for i in range(4)])
    refused("recipe.yaml", "b38-all-equal-when-cut", golden, capsys)


def test_b40_b41_repeated_and_contradicting_pairs(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    against = {"prompt": "1+1= ", "chosen": "3", "rejected": "2\n"}  # as a reader sees it, the opposite of PAIR
    workshop.jsonl("pairs.jsonl", [PAIR, other, {**PAIR, "source": "x"}, against, PAIR])
    workshop.recipe(OFFLINE_DPO)
    assert notes(capsys) == [
        "data.dataset: 2 of 5 rows repeat an earlier one: rows 3 and 1, 5 and 1",
        "data.dataset: 2 of 5 rows say the opposite of an earlier one, and the two cancel out: rows 4 and 1, 5 and 4",
    ]
    workshop.jsonl("feedback.jsonl", [GOOD, BAD, {**GOOD, "label": False}])
    workshop.recipe({**KTO, "algorithm": "{type: kto, batch_size: 2, desirable_weight: 2.0}"})
    assert notes(capsys) == [
        "data.dataset: 1 of 3 rows say the opposite of an earlier one, and the two cancel out: rows 3 and 1"
    ]


def test_b42_held_out_prompts_that_are_trained_on(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.jsonl("held.jsonl", [{"prompt": text, "solution": "1"} for text in ("7+7=", " 3+1=", "8+8=", "5+1=")])
    workshop.recipe({"data": "{prompts: ./prompts.jsonl, eval_prompts: ./held.jsonl}"})
    assert notes(capsys) == ["data.eval_prompts: 2 of 4 held-out prompts are trained on, too: rows 2, 4"]


def test_b47_special_tokens_in_a_text(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer()
    forged = {"prompt": "1+1=<eos>2+2=", "solution": "2"}
    workshop.jsonl("prompts.jsonl", [{"prompt": f"{i}+1=", "solution": "1"} for i in range(4)] + [forged])
    for policy, said in (
        ("keep", "the tokenizer takes them for its own"),
        ("drop", "left out, as data.special_tokens has it"),
    ):
        workshop.recipe({"data": f"{{prompts: ./prompts.jsonl, special_tokens: {policy}}}"})
        assert notes(capsys) == [f"data.prompts: 1 of 5 rows hold special tokens in their text (<eos>); {said}: row 5"]
    workshop.recipe({"data": "{prompts: ./prompts.jsonl, special_tokens: fail}"})
    refused("recipe.yaml", "b47-special-tokens", golden, capsys)
    Path("model/tokenizer.json").write_text("{}")
    refused("recipe.yaml", "b47-unknown-tokenizer", golden, capsys)


def tokenizer(directory: str = "model", alphabet: str = "0123456789+= ") -> None:
    """One token per character, in a model's directory."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    characters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    characters.add_special_tokens(["<pad>", "<eos>", "<unk>"])
    characters.save(f"{directory}/tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
    Path(directory, "tokenizer_config.json").write_text(json.dumps(settings))


# ---------------------------------------------------------------------------------------------------- models


def test_b13_b14_tokenizers(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer()
    config = Path("model/config.json")
    config.write_text('{"vocab_size": 16}')  # 13 characters and <pad>, <eos>, <unk>
    workshop.recipe()
    assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    config.write_text('{"vocab_size": 15}')
    refused("recipe.yaml", "b13-tokenizer-of-a-larger-model", golden, capsys)
    config.write_text('{"vocab_size": 16}')
    shutil.copytree("model", "critic")
    ppo = {"algorithm": "{type: ppo, prompts_per_step: 4, max_steps: 10}", "critic_model": "{path: ./critic}"}
    workshop.recipe(ppo)
    assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    tokenizer("critic", "9876543210+= ")
    refused("recipe.yaml", "b13-critic-with-another-tokenizer", golden, capsys)
    Path("model/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    workshop.recipe()
    refused("recipe.yaml", "b14-no-end-of-sequence", golden, capsys)


def test_b16_a_head_of_the_wrong_size(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("model", "judge")
    Path("judge/config.json").write_text('{"architectures": ["XForSequenceClassification"], "id2label": {"0": "x"}}')
    workshop.recipe({"reward": "[{type: model, path: ./judge}]"})
    for rows, code in ((1, 0), (2, 2)):
        shapes = {"model.embed_tokens.weight": [32, 8], "score.weight": [rows, 8]}
        Path("judge/model.safetensors").write_bytes(safetensors_header(shapes))
        if code:
            refused("recipe.yaml", "b16-head-of-two-rows", golden, capsys)
        else:
            assert main(["validate", "recipe.yaml"]) == 0
            capsys.readouterr()


def test_b19_heads_are_shared_out_among_gpus(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model/config.json").write_text('{"num_attention_heads": 28, "num_key_value_heads": 4}')
    for size in (1, 2, 4, 28):
        workshop.recipe({"rollout": f"{{tensor_parallel_size: {size}}}"})
        assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    workshop.recipe({"rollout": "{tensor_parallel_size: 8}"})
    refused("recipe.yaml", "b19-heads", golden, capsys)
