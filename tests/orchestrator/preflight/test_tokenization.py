"""Rows are tokenised as a trial before anything starts. Each row that fails is reported, with a fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from recipe_dir import OFFLINE_DPO, RecipeDir, refused
from templates import CHATML, GEMMA, LLAMA_3, MARKERS, MISTRAL, R1
from test_data_files import notes

from orchestrator.config import load
from orchestrator.data.tokens import TokenCounter
from orchestrator.driver.assembly import Material
from orchestrator.errors import BadInput
from orchestrator.pipeline.roles import gang_plans
from orchestrator.preflight.tokenization import CHEAP_BYTES, dated, pick
from workers.types import Example, Prompt

Golden = Callable[[str, str], None]
SFT: Mapping[str, str | None] = {
    "data": "{dataset: ./demos.jsonl}",
    "algorithm": "{type: sft, batch_size: 2}",
    "reward": None,
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def chat_model(template: str, directory: str = "model", end: str = "<eos>", special: bool = False) -> None:
    """Write a tokenizer with one token per character, marker and blank line. `special`: <think> is a special token."""
    alphabet = [chr(i) for i in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate(["<eos>", "<unk>", *alphabet])}
    characters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    characters.decoder = tokenizers.decoders.Fuse()
    thoughts = ["<think>", "</think>"]
    characters.add_special_tokens(["<eos>", "<unk>", *(m for m in MARKERS if special or m not in thoughts)])
    characters.add_tokens(["\n\n"] if special else [*thoughts, "\n\n"])
    characters.save(f"{directory}/tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "chat_template": template}
    Path(directory, "tokenizer_config.json").write_text(json.dumps(settings))


def prompts(recipe_dir: RecipeDir, *conversations: list[dict[str, Any]], **columns: Any) -> None:
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": c, "solution": "2", **columns} for c in conversations])


def call(name: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": name, "arguments": {}}}]}


QUESTION = [user("1+1=")]
SYSTEM = [{"role": "system", "content": "s"}, *QUESTION]


def test_a_gold_answer_must_continue_the_generation_prompt(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_dir.recipe({"algorithm": "{type: dpo, prompts_per_step: 2, max_steps: 1, pairs: {gold: chosen}}"})
    prompts(recipe_dir, QUESTION, SYSTEM, completion=[assistant("2")])
    chat_model(CHATML, end="<|im_end|>")
    assert notes(capsys) == []
    chat_model(R1)
    refused("recipe.yaml", "text-gold-beside-the-prompt", golden, capsys)


def test_rows_that_a_template_refuses(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, template, bad in (
        ("text-system-role", GEMMA, SYSTEM),
        ("text-alternation", MISTRAL, [user("a"), user("b")]),
        ("text-no-content", CHATML.replace("content", "said"), QUESTION),
        ("text-tool-call-left-out", CHATML, [user("a"), call("f"), {"role": "tool", "content": "2"}]),
    ):
        chat_model(template)
        prompts(recipe_dir, QUESTION, QUESTION, bad, QUESTION)
        recipe_dir.recipe()
        refused("recipe.yaml", name, golden, capsys)


def test_an_answer_that_a_template_cannot_render(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_model(CHATML.replace("m['content']", "(m['content'] if loop.last else 'hidden')"))
    recipe_dir.jsonl("demos.jsonl", [{"prompt": QUESTION, "completion": [assistant(str(i))]} for i in range(4)])
    recipe_dir.recipe(SFT)
    refused("recipe.yaml", "text-rewritten-turns", golden, capsys)


def test_turns_of_others_in_an_answer(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = [assistant("2"), user("and 2+2="), assistant("4")]
    recipe_dir.jsonl("demos.jsonl", [{"prompt": QUESTION, "completion": answer}] * 3)
    recipe_dir.recipe(SFT)
    refused("recipe.yaml", "text-other-turns", golden, capsys)


def test_a_prompt_that_contradicts_its_answers(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = {side: [*QUESTION, assistant(side)] for side in ("chosen", "rejected")}
    recipe_dir.jsonl("pairs.jsonl", [{"prompt": [user("2+2=")], **sides}])
    recipe_dir.recipe(OFFLINE_DPO)
    refused("recipe.yaml", "text-contradicting-prompt", golden, capsys)


def test_tools_that_are_no_schemas(recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    chat_model(LLAMA_3)
    prompts(recipe_dir, *[QUESTION] * 4, tools=["add"])
    recipe_dir.recipe()
    refused("recipe.yaml", "text-tools", golden, capsys)


def test_a_reward_model_reads_by_a_template_of_its_own(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_model(CHATML, end="<|im_end|>")
    Path("scorer").mkdir()
    kind = {"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"], "num_labels": 1}
    Path("scorer/config.json").write_text(json.dumps(kind))
    Path("scorer/model.safetensors").write_bytes(b"\0" * 16)
    chat_model(GEMMA, "scorer")
    prompts(recipe_dir, QUESTION, QUESTION, QUESTION, SYSTEM)
    recipe_dir.recipe({"reward": "[{type: model, path: ./scorer}]"})
    refused("recipe.yaml", "text-reward-model", golden, capsys)


def test_letters_that_a_tokenizer_has_no_token_for(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0, "1": 1, "+": 2, "=": 3}, unk_token="<unk>"))
    digits.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    digits.save("model/tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    Path("model/tokenizer_config.json").write_text(json.dumps(settings))
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": prompt, "solution": "2"} for prompt in ("1+1=", "1+a=", "1=", "b")])
    recipe_dir.recipe()
    refused("recipe.yaml", "text-no-token", golden, capsys)


def test_the_driver_checks_rows_again(recipe_dir: RecipeDir) -> None:
    """Check that the driver checks rows itself: a resume does not validate the recipe."""
    chat_model(GEMMA)
    prompts(recipe_dir, QUESTION, QUESTION, SYSTEM, QUESTION)
    (config,) = load(Path(recipe_dir.recipe())).stages
    with pytest.raises(BadInput, match=r"prompts\.jsonl:3: .*System role not supported"):
        Material.read(config)


# ------------------------------------------------------------------------------------------------ notes


def test_a_turn_end_that_is_no_end_of_sequence(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    chat_model(CHATML)
    prompts(recipe_dir, *[QUESTION] * 4)
    recipe_dir.recipe()
    assert notes(capsys) == [
        "data.prompts: the chat template ends the assistant's turn with <|im_end|>, which is an end of sequence "
        "neither in tokenizer_config.json nor in generation_config.json; sampled completions stop at it as well"
    ]
    number = tokenizers.Tokenizer.from_file("model/tokenizer.json").token_to_id("<|im_end|>")
    Path("model/generation_config.json").write_text(json.dumps({"eos_token_id": [number]}))
    assert notes(capsys) == []


def test_a_turn_without_an_end(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    chat_model("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    recipe_dir.jsonl("demos.jsonl", [{"prompt": QUESTION, "completion": [assistant("2")]}] * 4)
    recipe_dir.recipe(SFT)
    assert notes(capsys)[:1] == [
        "data.dataset: the chat template ends the assistant's turn without a token: completions of a dataset do not "
        "train the policy to stop, and sampled ones stop only at the end of sequence"
    ]


def test_answers_that_begin_before_the_generation_prompt_ends(
    recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["2", "\n2", "3", "\n3"]
    rows = [{"prompt": [user(str(i))], "completion": [assistant(a)]} for i, a in enumerate(answers)]
    recipe_dir.jsonl("demos.jsonl", rows)
    recipe_dir.recipe(SFT)
    what = (
        "rows have a completion that does not start where the generation prompt ends (a thinking template, or a token "
        "across the boundary); the policy is trained on all tokens from the first difference on"
    )
    chat_model(CHATML, end="<|im_end|>")
    assert notes(capsys) == [f"data.dataset: 2 of 4 {what}: rows 2, 4"]
    chat_model(R1, end="<|end_of_sentence|>")
    assert notes(capsys) == [f"data.dataset: 4 of 4 {what}: rows 1, 2, 3, 4"]


def test_content_that_a_template_leaves_out(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    chat_model(R1.replace("<think>\n", ""), end="<|end_of_sentence|>")
    rows = [{"prompt": [user(str(i))], "completion": [assistant(f"<think>{i}</think>2")]} for i in range(2)]
    recipe_dir.jsonl("demos.jsonl", [*rows, {"prompt": QUESTION, "completion": [assistant("2")]}])
    recipe_dir.recipe(SFT)
    assert notes(capsys) == [
        "data.dataset: 2 of 3 rows have a completion that the chat template renders only in part; the policy is not "
        "trained on the rest: rows 1, 2"
    ]


def test_tools_that_a_template_ignores(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    chat_model(CHATML, end="<|im_end|>")
    prompts(recipe_dir, *[QUESTION] * 4, tools=tools)
    recipe_dir.recipe()
    assert notes(capsys) == ["data.prompts: the chat template ignores `tools`: no prompt shows them to the model"]
    chat_model(LLAMA_3, end="<|eot_id|>")
    assert notes(capsys) == []
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": "1+1=", "solution": "2", "tools": tools}] * 4)
    assert notes(capsys) == [
        "data.prompts: 4 of 4 rows are plain text and have `tools`, which only a chat template shows to the model: "
        "rows 1, 2, 3, 4"
    ]


def test_special_tokens_that_rewards_do_not_see(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    chat_model(CHATML.replace("assistant\n", "assistant\n<think>"), end="<|im_end|>", special=True)
    prompts(recipe_dir, *[QUESTION] * 4)
    recipe_dir.recipe()
    assert notes(capsys) == [
        "data.prompts: rewards do not see <think>, </think>: they are special tokens; set "
        "reward_workers.skip_special_tokens to false to show them"
    ]
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": "1+1=", "solution": "2"}] * 4)
    assert len(notes(capsys)) == 1  # whatever the prompts are
    recipe_dir.recipe({"reward_workers": "{skip_special_tokens: false}"})
    assert notes(capsys) == []


def test_rows_that_could_not_be_checked_are_reported(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    chat_model(GEMMA)
    Path("model/tokenizer.json").unlink()
    Path("model/tokenizer.model").write_bytes(b"\0")
    prompts(recipe_dir, *[QUESTION] * 4)
    recipe_dir.recipe()
    assert notes(capsys) == [
        "data.prompts: ./model has no tokenizer.json that can be read here: rows were rendered with the chat template, "
        "but no tokens counted"
    ]
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": "1+1=", "solution": "2"}] * 4)
    assert notes(capsys) == [
        "data.prompts: ./model has no tokenizer.json: rows were not tokenised, and no tokens counted"
    ]
    recipe_dir.recipe({"model": "{path: someone/model}"})
    assert notes(capsys) == [
        "data.prompts: the tokenizer of someone/model is not on this machine: rows were not tokenised"
    ]


def test_a_template_s_own_tokens_count(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    """Count 23 tokens: <|im_start|>user\\n, 4 characters, <|im_end|>\\n and <|im_start|>assistant\\n.

    Markers are one token each, all else is one token per character: 1 + 5 + 4 + 2 + 1 + 10.
    """
    chat_model(CHATML, end="<|im_end|>")
    prompts(recipe_dir, *[QUESTION] * 4, [user("10+1=")])
    assert len(TokenCounter.of(Path("model")).prompt(QUESTION)) == 23  # type: ignore[union-attr]
    recipe_dir.recipe({"rollout": "{max_prompt_length: 23}"})
    assert notes(capsys) == [
        "data.prompts: 1 of 5 rows are dropped: their prompt is longer than 23 tokens (rollout.max_prompt_length): "
        "row 5"
    ]


# ------------------------------------------------------------------------------------- sampling of rows, template dates


def row(i: int, text: Any, *answers: Any, **columns: Any) -> Any:
    prompt = Prompt(id=f"p:{i}", text=text, columns=columns)
    return Example(prompt=prompt, completions=answers) if answers else prompt


def test_of_a_large_file_every_kind_of_row_is_checked() -> None:
    long = CHEAP_BYTES // 1000
    rows = [row(i, [user("x" * long)]) for i in range(10_000)]
    assert pick(rows[:100]) == list(range(100))
    odd = {4321: SYSTEM, 6543: [user("a"), call("f"), {"role": "tool", "content": "b"}], 7001: "text"}
    for i, text in odd.items():
        rows[i] = row(i, text)
    rows[8765] = row(8765, QUESTION, tools=[{}])
    rows[9321] = row(9321, QUESTION, chat_template_kwargs={"thinking": True})
    found = pick(rows)
    assert {*odd, 8765, 9321, 0} <= set(found)
    assert 500 < len(found) < 1500  # about as many as make CHEAP_BYTES, from beginning to end
    assert max(b - a for a, b in pairwise(found)) < 20


def test_template_dates_are_the_start_of_the_run(recipe_dir: RecipeDir) -> None:
    (config,) = load(Path(recipe_dir.recipe({"reward": "[{type: math}, {type: model, path: ./scorer}]"}))).stages
    began = dated(config, 1709251199.0)  # 2024-02-29, a second before midnight, UTC
    assert began.model.template_date == "2024-02-29T23:59:59"
    assert [getattr(reward, "template_date", "none") for reward in began.reward] == ["none", "2024-02-29T23:59:59"]
    (config,) = load(Path(recipe_dir.recipe({"model": "{path: ./model, template_date: '2026-01-01'}"}))).stages
    assert dated(config, 1709251199.0).model.template_date == "2026-01-01"


def test_every_worker_has_the_same_template_date(recipe_dir: RecipeDir) -> None:
    """Check all roles that render text: the driver starts its gangs with this config, also after a resume."""
    rewards = {"reward": "[{type: model, path: ./scorer}]", "evaluation": "{refusal: {type: refusal}}"}
    data = {"data": "{prompts: ./prompts.jsonl, eval_harmful: ./prompts.jsonl, eval_benign: ./prompts.jsonl}"}
    (config,) = load(Path(recipe_dir.recipe({**rewards, **data}))).stages
    plans = {plan.role: plan for plan in gang_plans(dated(config, 0.0), cuda=False, max_steps=1)}
    assert {"rollout", "reward", "refusal", "policy"} <= set(plans)
    for plan in plans.values():
        for member in plan.arguments:
            assert member["model"].template_date == "1970-01-01T00:00:00"
    (scorer,) = plans["reward"].arguments[0]["configs"]
    assert scorer.template_date == "1970-01-01T00:00:00"
