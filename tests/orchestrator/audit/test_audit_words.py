"""Words and n-grams of many texts at once, against the same of one text in plain Python."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.audit.words import MAX_WORDS, Words, WordStore, named_words, ngrams, normal, part, words_of

TEXTS = st.lists(st.text(st.sampled_from("abZ09 .,\n-é你好"), max_size=30), max_size=8)


def plain_words(text: str) -> list[str]:
    """Split a text as the module's docstring says."""
    return re.findall(r"[a-z0-9]+|[\u0080-\u1fff]+|[\u2000-\U0010ffff][\u0080-\u1fff]*", normal(text))


@given(TEXTS)
def test_words_are_those_of_each_text_alone(texts: list[str]) -> None:
    found = words_of([normal(text) for text in texts])
    assert found.sizes.tolist() == [len(plain_words(text)) for text in texts]
    by_hash: dict[int, str] = {}
    for hash, word in zip(found.words.tolist(), (w for text in texts for w in plain_words(text)), strict=True):
        assert by_hash.setdefault(hash, word) == word
    assert len(by_hash) == len(set(by_hash.values()))  # equal words have equal hashes


@given(st.text(st.sampled_from("abZ09 .,\n-é你好"), max_size=30))
def test_words_can_be_named(text: str) -> None:
    found, named = named_words(normal(text))
    assert named == plain_words(text)
    assert np.array_equal(found.words, words_of([normal(text)]).words)


@pytest.mark.parametrize("n", [1, 2, 3])
@given(texts=TEXTS)
def test_ngrams_do_not_cross_texts(n: int, texts: list[str]) -> None:
    words = [plain_words(text) for text in texts]
    expected = [[tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in words]
    for padded in (False, True):
        hashes, offsets = ngrams(words_of([normal(text) for text in texts]), n, padded=padded)
        if padded:  # a text that is too short for an n-gram has one of all its words
            expected = [grams or [tuple(w)] * bool(w) for grams, w in zip(expected, words, strict=True)]
        assert np.diff(offsets).tolist() == [len(grams) for grams in expected]
        flat = [gram for grams in expected for gram in grams]
        assert len(set(zip(hashes.tolist(), flat, strict=True))) == len(set(flat)) == len(set(hashes.tolist()))


def test_the_store_returns_what_was_added_and_cuts_long_texts() -> None:
    long = " ".join(f"w{i}" for i in range(MAX_WORDS + 5))
    store = WordStore()
    store.add(["a b", long], ["c", long], ["", "d e f"])
    store.add(["g"], ["h i"], ["j"])
    store.finish()
    assert store.rows(0, 3).sizes.tolist() == [2, 1, 0, MAX_WORDS, MAX_WORDS, 3, 1, 2, 1]
    of_second = store.rows(1, 2)
    ends = words_of(["w5", f"w{MAX_WORDS + 4}", "w0", f"w{MAX_WORDS - 1}"]).words.tolist()
    texts = [part(of_second, which) for which in (0, 1)]
    assert [int(t.words[i]) for t in texts for i in (0, -1)] == ends  # of a prompt the last words, else the first ones
    assert np.array_equal(store.pick(np.array([0, 2])).words, words_of(["a b", "c", "", "g", "h i", "j"]).words)
    assert part(of_second, 1, 2).words.tolist() == words_of(["w0", "w1"]).words.tolist()
    assert part(of_second, 0, 2).words.tolist() == words_of([f"w{MAX_WORDS + 3}", f"w{MAX_WORDS + 4}"]).words.tolist()
    store.close()


def test_an_empty_store_has_no_rows() -> None:
    store = WordStore()
    store.finish()
    assert store.pick(np.zeros(0, np.int64)).sizes.tolist() == []
    grams, offsets = ngrams(Words(words=np.zeros(0, np.uint32), offsets=np.zeros(1, np.int64)))
    assert (len(grams), offsets.tolist()) == (0, [0])
    store.close()
