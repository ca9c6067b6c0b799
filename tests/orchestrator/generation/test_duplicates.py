"""Near duplicates and text of evaluations, against exact similarities on random texts."""

from __future__ import annotations

import random

import pytest

from orchestrator.generation.duplicates import SHINGLE, EvaluationText, NearDuplicates, words

WORDS = [f"w{i}" for i in range(2000)]


def text(draw: random.Random, length: int = 100) -> str:
    return " ".join(draw.choices(WORDS, k=length))


def similarity(first: str, second: str) -> float:
    one, other = (
        {tuple(own[i : i + SHINGLE]) for i in range(len(own) - SHINGLE + 1)} for own in (words(first), words(second))
    )
    return len(one & other) / len(one | other)


def edited(source: str, draw: random.Random, changes: int) -> str:
    own = source.split()
    for place in draw.sample(range(len(own)), changes):
        own[place] = "changed"
    return " ".join(own)


@pytest.mark.parametrize("seed", range(3))
def test_texts_that_are_nearly_equal_are_found_and_others_are_not(seed: int) -> None:
    draw, near = random.Random(seed), NearDuplicates(0.8)
    texts = [text(draw) for _ in range(200)]
    assert all(near.add(one) for one in texts)
    copies = [edited(one, draw, 1) for one in texts]  # similarity (96 - 5) / (96 + 5), about 0.9
    far = [edited(one, draw, 12) for one in texts]
    assert min(similarity(a, b) for a, b in zip(texts, copies, strict=True)) > 0.89
    assert max(similarity(a, b) for a, b in zip(texts, far, strict=True)) < 0.65
    assert sum(not near.add(one) for one in copies) >= 198
    assert sum(not near.add(one) for one in far) <= 2


def test_equal_seeds_decide_alike() -> None:
    draw = random.Random(0)
    texts = [text(draw, 30) for _ in range(50)]
    texts += [edited(one, draw, changes) for one, changes in zip(texts, range(50), strict=True) if changes < 4]

    def decisions() -> list[bool]:
        near = NearDuplicates(0.7, seed=4)
        return [near.add(one) for one in texts]

    assert decisions() == decisions()
    assert decisions().count(False) >= 1


def test_short_texts_are_never_nearly_equal() -> None:
    near = NearDuplicates(0.5)
    assert [near.add("it is 42") for _ in range(3)] == [True, True, True]
    assert [near.add("so the answer is 42") for _ in range(2)] == [True, False]


def test_words_of_an_evaluation_are_found_anywhere() -> None:
    draw = random.Random(1)
    question = text(draw, 40)
    seen = EvaluationText([question], length=13)
    inside = " ".join(question.split()[10:23])
    assert seen.is_in("another prompt", f"{text(draw)} {inside.upper()}, {text(draw)}")
    assert not seen.is_in("another prompt", f"{text(draw)} {' '.join(question.split()[10:22])}")
    assert not seen.is_in(text(draw), text(draw))


def test_a_short_prompt_of_an_evaluation_counts_as_a_whole() -> None:
    seen = EvaluationText(["2+2="], length=13)
    assert seen.is_in(" 2+2=\n", "4")
    assert not seen.is_in("2-2=", "0")
    assert not seen.is_in("what is 2+2= now", "2+2=4")


def test_texts_without_spaces_are_compared_by_character() -> None:
    near = NearDuplicates(0.6)
    first = "这个问题的答案是四十二因为六乘以七等于四十二这一点很容易验证请看下面的计算过程"
    assert near.add(first)
    assert not near.add(first.replace("请看", "参见"))
    assert near.add("今天的天气非常好我们决定一起去公园散步然后在湖边的咖啡馆里喝一杯热茶再回家")
    assert EvaluationText([first], length=13).is_in("問", f"前言{first[3:20]}结语")
