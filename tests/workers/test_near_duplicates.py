from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.near_duplicates import NearDuplicates, ngrams
from workers.ragged import Ragged


def similar(one: Sequence[int], other: Sequence[int], threshold: float) -> bool:
    return NearDuplicates(Ragged.of([one, other]), threshold)(0, 1)


@pytest.mark.parametrize(("length", "expected"), [(58, False), (59, True)])
def test_one_changed_token_is_a_near_duplicate_from_59_tokens_on(length: int, expected: bool) -> None:
    answer = list(range(length))
    changed = [*answer[:20], 999, *answer[21:]]
    assert similar(answer, changed, 0.9) == expected


def test_a_block_repeated_once_more_is_a_near_duplicate() -> None:
    assert similar([1, 2, 3] * 4, [1, 2, 3] * 9, 1.0)
    assert not similar([1, 2, 3] * 4, [3, 2, 1] * 4, 0.1)


def test_answers_shorter_than_a_3_gram_are_compared_as_a_whole() -> None:
    assert similar([1], [1], 1.0)
    assert similar([1, 2], [1, 2], 1.0)
    assert not similar([1], [1, 1], 0.1)
    assert not similar([1, 2], [2, 1], 0.1)


tokens = st.lists(st.integers(0, 3), min_size=3, max_size=12)


@given(one=tokens, other=tokens, threshold=st.sampled_from([0.2, 0.5, 0.9, 1.0]))
def test_the_similarity_is_jaccard_s(one: list[int], other: list[int], threshold: float) -> None:
    first, second = (set(zip(t, t[1:], t[2:], strict=False)) for t in (one, other))
    expected = len(first & second) / len(first | second)
    assert similar(one, other, threshold) == similar(other, one, threshold) == (expected >= threshold)
    assert len(ngrams(np.array(one, np.int32))) == len(first)
