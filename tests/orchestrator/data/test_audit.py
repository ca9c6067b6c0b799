"""Suspicious rows, checked against a comparison of every row with every other one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data import lengths
from orchestrator.data.audit import (
    RowKeys,
    comparisons,
    contradicting,
    distinct_prompts,
    listed,
    prompt_keys,
    repeated,
    trained_on,
)
from orchestrator.data.tokens import TokenCounter
from workers.types import Example, Prompt

TEXTS = st.sampled_from(["a", "a ", "b", "é", "e\u0301", "c"])


def prompt(text: str, row: int = 1) -> Prompt:
    return Prompt(id=f"x.jsonl:{row}", text=text)


PAIRS = st.lists(
    st.builds(
        lambda p, chosen, rejected: Example(prompt=prompt(p), completions=(chosen, rejected), scores=(1.0, 0.0)),
        st.sampled_from(["p", "q"]),
        TEXTS,
        TEXTS,
    ).filter(lambda example: seen(example)[1] != seen(example)[2]),
    max_size=12,
)


def seen(example: Example) -> tuple[str, ...]:
    """Return the texts as a reader sees them, for the texts in TEXTS."""
    return tuple(str(t).strip().replace("e\u0301", "é") for t in (example.prompt.text, *example.completions))


@given(PAIRS)
def test_repeated_rows_name_the_first_of_their_kind(examples: list[Example]) -> None:
    kinds = [seen(example) for example in examples]
    assert repeated(RowKeys.of(examples)) == [(i, kinds.index(k)) for i, k in enumerate(kinds) if kinds.index(k) < i]


@given(PAIRS)
def test_contradicting_rows_name_the_first_that_says_the_opposite(examples: list[Example]) -> None:
    comparison_keys = [seen(example) for example in examples]
    opposites = [(p, rejected, chosen) for p, chosen, rejected in comparison_keys]
    expected = [(i, comparison_keys.index(o)) for i, o in enumerate(opposites) if o in comparison_keys[:i]]
    assert contradicting(RowKeys.of(examples)) == expected


@given(PAIRS)
def test_each_comparison_counts_once_with_its_votes(examples: list[Example]) -> None:
    comparison_keys = {seen(example) for example in examples}
    both = {claim for claim in comparison_keys if (claim[0], claim[2], claim[1]) in comparison_keys}
    votes = comparisons(examples)
    assert len(votes) == len(comparison_keys) - len(both) / 2
    assert sorted(map(sum, votes.values())) == [1] * (len(comparison_keys) - len(both)) + [2] * (len(both) // 2)
    assert distinct_prompts([e.prompt for e in examples]) == len({claim[0] for claim in comparison_keys})


def test_each_voter_has_one_vote() -> None:
    def by(voter: object, first: str, second: str) -> Example:
        owner = Prompt(id="x.jsonl:1", text="p", columns={"who": voter})
        return Example(prompt=owner, completions=(first, second), scores=(1.0, 0.0))

    rows = [by(1, "a", "b"), by(1, "a", "b"), by(2, "a", "b "), by(3, "b", "a")]
    assert [sorted(votes) for votes in comparisons(rows, voter="who").values()] == [[1, 2]]


def test_of_several_completions_each_two_are_compared() -> None:
    rated = Example(prompt=prompt("p"), completions=("a", "b", "c"), scores=(3.0, 2.0, 2.0))

    def pair(*completions: str) -> Example:
        return Example(prompt=prompt("p"), completions=completions, scores=(1.0, 0.0))

    assert contradicting(
        RowKeys.of([rated, Example(prompt=prompt("p"), completions=("c", "a"), scores=(1.0, 0.0))])
    ) == [(1, 0)]
    assert (
        contradicting(RowKeys.of([rated, Example(prompt=prompt("p"), completions=("c", "b"), scores=(1.0, 0.0))])) == []
    )


def test_held_out_prompts_are_found_among_those_trained_on() -> None:
    chat = [{"role": "user", "content": "a"}]
    held_out = [prompt("b"), prompt("a\n"), Prompt(id="x:3", text=chat)]
    keys, others = prompt_keys(held_out), [prompt_keys([prompt("c")]), prompt_keys([prompt("a"), prompt("d")])]
    assert trained_on(keys, others) == [1]
    same_chat = Prompt(id="y:1", text=[{"role": "user", "content": "a ", "name": None}])
    assert trained_on(keys, [prompt_keys([same_chat])]) == [2]


def test_a_long_list_of_rows_is_short() -> None:
    assert listed([prompt("a", row) for row in range(1, 12)]) == "rows 1, 2, 3, 4, 5, 6, 7, 8 and 3 more"
    assert listed([prompt("a", 7)]) == "row 7"


@pytest.fixture
def tokens(tmp_path: Path) -> TokenCounter:
    """Tokenizer with one token per character and one more at the start of a prompt; the model takes 40."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", *"abc"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.add_special_tokens(["<s>", "<unk>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 40}))
    found = TokenCounter.of(tmp_path)
    assert found is not None
    return found


def test_tokens_are_counted_and_special_ones_recognised(tokens: TokenCounter) -> None:
    assert tokens.prompt("abc") == [0, 2, 3, 4]
    assert tokens.completion("abc") == [2, 3, 4]
    chat = [{"role": "user", "content": "ab<s>"}, {"role": "assistant", "content": None, "tool_calls": [{}]}]
    assert tokens.prompt(chat) == [2, 3, 0]  # without what a chat template would add
    assert tokens.special_in(chat) == {"<s>"}
    assert tokens.special_in("<unk") == set()
    assert tokens.max_positions == 40


@pytest.mark.parametrize("content", [None, "{}", "[", '{"added_tokens": 3}'])
def test_there_is_no_token_counter_without_a_valid_tokenizer(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    assert TokenCounter.of(tmp_path) is None


def test_only_a_few_seconds_of_text_are_measured(tokens: TokenCounter) -> None:
    found = lengths.measure_prompts([prompt("a" * 60)] * 5, tokens, max_tokens=50, max_bytes=100)
    assert (found.measured, found.dropped) == (2, [0, 1])
    found = lengths.measure_prompts([prompt("a" * 20)] * 5, tokens, max_tokens=50)
    assert found.measured == 5  # too short to be tokenised


def test_truncation_leaves_room_for_the_end_of_sequence(tokens: TokenCounter) -> None:
    """Leave 16 of 20 tokens after a prompt of 4; the end of the sequence takes one of them."""
    rows = [("a" * 15, "b"), ("a" * 16, "b"), ("a" * 16 + "b", "a" * 16 + "c"), ("a" * 15 + "b", "a" * 15 + "c")]
    examples = [Example(prompt=prompt("abc"), completions=row, scores=(1.0, 0.0)) for row in rows]
    found = lengths.measure_examples(examples, tokens, max_tokens=20)
    assert (found.dropped, found.truncated, found.equal) == ([], [1, 2, 3], [2])
