"""Language model that compares two completions, as a scorer: a tiny judge that is trained here to prefer the longer
answer, judges of which the result is known, and RLHFlow's format."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import experience
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.quickstart.tiny import bpe_tokenizer, character_tokenizer, create_model
from workers.config import ModelConfig, PairwiseRewardConfig
from workers.reward import Reward
from workers.rewards import build
from workers.rewards.base import Completed, RewardError
from workers.rewards.pairwise import comparison_text, opponents, plain_text
from workers.types import Prompt, Text

TEMPLATE = "{context}|{response_a}|{response_b}="
LETTERS = "abcdefgh"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def settings(path: Path, **changes: Any) -> PairwiseRewardConfig:
    given = {"type": "pairwise", "path": str(path), "dtype": "float32", "template": TEMPLATE, **changes}
    return PairwiseRewardConfig.model_validate(given)


def completed(groups: Sequence[Sequence[str]], prompts: Sequence[Text] | None = None) -> Completed:
    given = [Prompt(id=f"p{g}", text=text) for g, text in enumerate(prompts or ["ab"] * len(groups))]
    texts = [text for group in groups for text in group]
    return Completed(
        prompts=[prompt for prompt, group in zip(given, groups, strict=True) for _ in group],
        completions=[t if isinstance(given[0].text, str) else [{"role": "assistant", "content": t}] for t in texts],
        completion_ids=[[0]] * len(texts),
    )


def score(path: Path, groups: Sequence[Sequence[str]], **changes: Any) -> list[float]:
    return build(settings(path, **changes)).score(completed(groups)).tolist()


def judge_of(directory: Path) -> tuple[Any, Any]:
    create_model(
        directory,
        {"model_type": "qwen2", "tie_word_embeddings": False, **SIZES},
        character_tokenizer(f"{LETTERS}|=AB"),
        seed=0,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("untrained")
    judge_of(directory)
    return directory


@pytest.fixture(scope="module")
def prefers_longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a judge on comparisons of words, for 8 seconds."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("longer")
    model, tokenizer = judge_of(directory)
    choices = tokenizer.convert_tokens_to_ids(["A", "B"])
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=3e-3), random.Random(0)
    for _ in range(250):
        words = ["".join(draw.choice(LETTERS) for _ in range(draw.randint(1, 6))) for _ in range(3 * 64)]
        rows = [(p, a, b) for p, a, b in zip(words[::3], words[1::3], words[2::3], strict=True) if len(a) != len(b)]
        batch = tokenizer(
            [f"{p}|{a}|{b}=" for p, a, b in rows], padding=True, padding_side="right", return_tensors="pt"
        )
        last = batch["attention_mask"].sum(1) - 1
        logits = model(**batch).logits[torch.arange(len(rows)), last][:, choices]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([int(len(b) > len(a)) for _, a, b in rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    return directory


def chooses_a(path: Path, context: str, a: str, b: str) -> float:
    """Return the probability of A, by transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    return after(model, AutoTokenizer.from_pretrained(path), f"{context}|{a}|{b}=")


def after(model: Any, tokenizer: Any, text: str) -> float:
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    logits = model(tokens).logits[0, -1][tokenizer.convert_tokens_to_ids(["A", "B"])]
    return logits.softmax(0)[0].item()


# ------------------------------------------------------------------------------------------------ win rates


def test_a_judge_that_prefers_longer_answers(prefers_longer: Path) -> None:
    """Check that it does in whatever order they stand: the longest wins all, the middle one half."""
    scores = score(prefers_longer, [["abc", "fedcba", "h"], ["hh", "gggg"], ["edcba", "a", "gf"]])
    assert scores == pytest.approx([0.5, 1, 0, 0, 1, 1, 0, 0.5], abs=0.05)


@pytest.mark.parametrize("budget", [16384, 1])
def test_win_rates_are_means_over_both_orders(untrained: Path, budget: int) -> None:
    group = ["abc", "h", "gg", "abcdef"]
    wins = np.zeros((4, 4))
    for i, j in combinations(range(4), 2):
        wins[i, j] = (
            chooses_a(untrained, "ab", group[i], group[j]) + 1 - chooses_a(untrained, "ab", group[j], group[i])
        ) / 2
        wins[j, i] = 1 - wins[i, j]
    scores = score(untrained, [group], tokens_per_micro_batch=budget)
    assert scores == pytest.approx((wins.sum(1) / 3).tolist(), abs=1e-5)
    assert np.std(scores) > 0.01
    assert np.mean(scores) == pytest.approx(0.5)


def test_a_judge_of_positions_alone_has_no_preference(tmp_path: Path) -> None:
    """Check that a bias towards A cancels: its layers do nothing, and `=` is followed by A with probability 0.9."""
    model, tokenizer = judge_of(tmp_path)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        state = model.model.norm(model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("=")])
        a, b = tokenizer.convert_tokens_to_ids(["A", "B"])
        model.lm_head.weight[b].zero_()
        model.lm_head.weight[a].copy_(state * np.log(9) / state.square().sum())
    model.save_pretrained(tmp_path)
    assert chooses_a(tmp_path, "ab", "abc", "h") == pytest.approx(0.9, abs=1e-4)
    assert score(tmp_path, [["abc", "h", "gg"]]) == pytest.approx([0.5] * 3, abs=1e-6)


def test_equal_completions_tie_and_an_only_one_gets_no_score(untrained: Path) -> None:
    scores = score(untrained, [["abc", "abc"], ["h"]])
    assert scores[:2] == [0.5, 0.5]
    assert np.isnan(scores[2])


def test_comparisons_that_are_too_long_are_left_out(prefers_longer: Path) -> None:
    # With prompt and marks 5 tokens besides the answers: those of abc and h fit, any with abcdef does not.
    scores = score(prefers_longer, [["abc", "abcdef", "h"]], max_length=9)
    assert scores == pytest.approx([1, np.nan, 0], abs=0.05, nan_ok=True)


# ------------------------------------------------------------------------------------------------ opponents


@pytest.mark.parametrize(("size", "limit"), [(8, 2), (8, 4), (7, 4), (5, 4), (8, 6), (3, 4), (2, 2), (8, None)])
def test_every_completion_has_the_same_number_of_opponents(size: int, limit: int | None) -> None:
    pairs = opponents([str(i) for i in range(size)], limit)
    met = [sorted({i + j - k for i, j in pairs if k in (i, j)}) for k in range(size)]
    expected = size - 1 if limit is None else min(limit, size - 1)
    assert {len(others) for others in met} == {expected}
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == size * expected // 2
    config = PairwiseRewardConfig(type="pairwise", path="judge", opponents=limit)
    assert config.comparisons(size) == len(pairs)


def test_opponents_depend_on_the_texts_alone() -> None:
    groups = [[f"{g} {i}" for i in range(12)] for g in range(20)]
    assert [opponents(group, 2) for group in groups] == [opponents(group, 2) for group in groups]
    assert len({tuple(sorted(map(sorted, opponents(group, 2)))[0]) for group in groups}) > 1


def test_fewer_opponents_are_an_estimate_of_all(prefers_longer: Path) -> None:
    group = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
    every = score(prefers_longer, [group])
    some = score(prefers_longer, [group], opponents=4)
    assert every == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1], abs=0.05)
    assert some == pytest.approx(every, abs=0.3)
    assert some[0] < 0.05 < 0.95 < some[-1]
    assert np.mean(some) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------ format

QUESTION = [{"role": "user", "content": "what is"}]
# The templates that RLHFlow publishes with pair-preference-model-LLaMA3-8B, in their Jinja form.
PLAIN = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
HEADED = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_conversation_is_written_as_rlhflow_writes_it() -> None:
    tokenizer = character_tokenizer("ab")
    tokenizer.chat_template = PLAIN
    turns = [*QUESTION, {"role": "assistant", "content": "it"}, {"role": "user", "content": "and"}]
    assert plain_text(turns) == tokenizer.apply_chat_template(turns, tokenize=False)


def test_answers_are_not_read_as_templates() -> None:
    text = comparison_text("{context} 1 {response_a} 2 {response_b}", "{response_b}", "{context} {x}", "\\1")
    assert text == "{response_b} 1 {context} {x} 2 \\1"


@pytest.mark.parametrize("bos", [False, True])
def test_a_chat_model_is_asked_in_its_own_template(tmp_path: Path, bos: bool) -> None:
    tokenizer = bpe_tokenizer(["what is it [CONTEXT] [RESPONSE A] [RESPONSE B]"], 300, HEADED)
    create_model(tmp_path, {"model_type": "llama", **SIZES, "max_position_embeddings": 512}, tokenizer, seed=1)
    config = PairwiseRewardConfig(type="pairwise", path=str(tmp_path), dtype="float32", bos=bos)
    scores = build(config).score(completed([["it", "is it"]], prompts=[QUESTION]))
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path), []
    for a, b in (("it", "is it"), ("is it", "it")):
        content = f"[CONTEXT] \n\n<turn> user\n what is\n [RESPONSE A] {a} [RESPONSE B] {b} \n"
        found.append(after(model, tokenizer, f"{'<s>' if bos else ''}<|user|>{content}</s><|assistant|>"))
    expected = (found[0] + 1 - found[1]) / 2
    assert scores.tolist() == pytest.approx([expected, 1 - expected], abs=1e-5)
    assert abs(expected - 0.5) > 1e-3


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": ("A", "yes")}, r"`yes` is not one token of .*; give choices that are"),
        ({"choices": ("A", "Z")}, "`Z` is not one token of"),
        ({"choices": ("A", "A")}, "are one token of .*; give two different ones"),
    ],
)
def test_choices_are_two_tokens(untrained: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        build(settings(untrained, **changes))


@pytest.mark.parametrize("template", ["{context} {response_a}", "{context} {response_a} {response_b} {response_a}"])
def test_a_template_has_each_part_once(template: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        PairwiseRewardConfig(type="pairwise", path="judge", template=template)


# ------------------------------------------------------------------------------------------------ in the reward worker


def test_workers_share_whole_groups(prefers_longer: Path) -> None:
    """The policy reads the judge's letters: a has id 3."""
    groups = [([3], [[3, 1], [4, 4, 1], [5, 5, 5, 1]]), ([4], [[6, 6, 1], [7, 1]])]
    given = experience(groups, logprobs=[-1.0] * 14)
    shares = []
    for index in range(2):
        worker = Reward(
            ModelConfig(path=str(prefers_longer)), [settings(prefers_longer)], index=index, num_workers=2, num_samples=0
        )
        shares.append(worker.score([given]).rewards.tolist())
    assert shares[0] == pytest.approx([0, 0.5, 1], abs=0.05)
    assert shares[1] == pytest.approx([1, 0], abs=0.05)
