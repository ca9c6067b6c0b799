"""Labels from scores and votes, with the arithmetic written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from workers.algorithms.dpo import prepare
from workers.algorithms.soft_labels import by_votes
from workers.config import DpoConfig
from workers.types import ScoredBatch, TrainBatch

MakeScored = Callable[..., ScoredBatch]
NAN = float("nan")


def labels_of(scored: ScoredBatch, **settings: Any) -> list[float] | None:
    batch, _ = prepare(scored, DpoConfig.model_validate({"type": "dpo", **settings}))
    assert isinstance(batch, TrainBatch)
    return None if batch.soft_labels is None else batch.soft_labels.tolist()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_labels_are_hard_by_default(scored: MakeScored) -> None:
    assert labels_of(scored([[1, 2]], rewards=[3, 1], reference=[0] * 3)) is None


def test_labels_of_a_margin(scored: MakeScored) -> None:
    # The first group's chosen is its second completion, by 2; the second group's its first, by 0.5.
    given = scored([[1, 2], [1, 1]], rewards=[1, 3, 0.5, 0], reference=[0] * 5)
    expected = [sigmoid(2), sigmoid(-2), sigmoid(0.5), sigmoid(-0.5)]
    assert labels_of(given, soft_labels="margin") == pytest.approx(expected)
    cooler = [sigmoid(4), sigmoid(-4), sigmoid(1), sigmoid(-1)]
    assert labels_of(given, soft_labels="margin", label_temperature=0.5) == pytest.approx(cooler)


def test_a_huge_margin_is_certain(scored: MakeScored) -> None:
    given = scored([[1, 2]], rewards=[1e30, -1e30], reference=[0] * 3)
    assert labels_of(given, soft_labels="margin", label_temperature=1e-3) == [1, 0]


def test_labels_of_votes(scored: MakeScored) -> None:
    given = scored([[1, 2], [1, 1]], rewards=[2, 1, 0, 1], reference=[0] * 5)
    by_scorer = {
        "a": np.float32([1, 0, 0, 9]),  # for the chosen of both pairs
        "b": np.float32([0, 5, 1, 0]),  # for the rejected of both
        "c": np.float32([7, 7, NAN, 1]),  # a tie counts half, an abstention not at all
    }
    assert labels_of(replace(given, by_scorer=by_scorer), soft_labels="votes") == pytest.approx(
        [(1 + 0 + 0.5) / 3, (0 + 1 + 0.5) / 3, 1 / 2, 1 / 2]
    )


def test_nobody_votes() -> None:
    preference = by_votes({"a": np.float32([NAN, 1]), "b": np.float32([0, NAN]), "c": np.float32([1, 0])}, {"c": 0})
    assert preference(np.array([0]), np.array([1])).tolist() == [0.5]


def test_votes_need_scorers(scored: MakeScored) -> None:
    with pytest.raises(AssertionError, match="no scorers"):
        labels_of(scored([[1, 2]], rewards=[1, 0], reference=[0] * 3, logprobs=[0] * 3), soft_labels="votes")


def test_win_rates_of_sppo_are_against_the_rest_of_the_group(scored: MakeScored) -> None:
    # Scores 3, 0, 1 and then 2, 0: the best and the worst of each group are paired.
    given = scored([[1, 1, 1], [1, 1]], rewards=[3, 0, 1, 2, 0], reference=[0] * 5)
    expected = [
        (sigmoid(3) + sigmoid(2)) / 2,
        (sigmoid(-3) + sigmoid(-1)) / 2,
        sigmoid(2),
        sigmoid(-2),
    ]
    assert labels_of(given, loss_type="sppo", soft_labels="margin") == pytest.approx(expected)
    votes = replace(given, by_scorer={"a": np.float32([3, 0, 1, 2, 0]), "b": np.float32([0, 1, 1, 5, 0])})
    # Of the best: a wins both, b loses both; of the worst: a loses both, b wins one and ties one.
    assert labels_of(votes, loss_type="sppo", soft_labels="votes") == pytest.approx([0.5, 0.375, 1, 0])


def test_a_step_without_pairs_has_no_labels(scored: MakeScored) -> None:
    given = scored([[1, 2], [1, 1]], rewards=[1] * 4, reference=[0] * 5)
    assert labels_of(given, soft_labels="margin") == []
    assert labels_of(given, soft_labels="margin", loss_type="sppo") == []


def test_votes_count_by_weight() -> None:
    """A negative weight prefers the lower score, a weight of 0 does not vote, and one that is not given is 1."""
    by_scorer = {
        "a": np.float32([1, 0]),
        "b": np.float32([0, 1]),
        "negative": np.float32([0, 1]),
        "silent": np.float32([0, 1]),
    }
    preference = by_votes(by_scorer, {"a": 2.0, "negative": -0.5, "silent": 0.0})
    assert preference(np.array([0, 1]), np.array([1, 0])) == pytest.approx([2.5 / 3.5, 1 / 3.5])


def test_win_rates_of_a_pairwise_reward_are_the_labels_of_sppo(scored: MakeScored) -> None:
    given = scored([[1, 1, 1], [1, 1]], rewards=[0.9, 0.2, 0.4, 0.75, 0.25], reference=[0] * 5)
    assert labels_of(given, loss_type="sppo", soft_labels="win_rate") == pytest.approx([0.9, 0.2, 0.75, 0.25])


# ------------------------------------------------------------------------------------------------ votes of a dataset


def voted(scored: MakeScored, *votes: Any) -> ScoredBatch:
    """Return a dataset's pairs, a row each, with their column `votes`."""
    made = scored([[1, 2]] * len(votes), rewards=[1, 0] * len(votes), reference=[0] * 3 * len(votes))
    prompts = tuple(replace(p, columns={"votes": v}) for p, v in zip(made.experience.prompts, votes, strict=True))
    return replace(made, experience=replace(made.experience, prompts=prompts))


UNANIMOUS, DIVIDED = {"for": 3, "against": 0, "tie": 0}, {"for": 2, "against": 1, "tie": 1}


def test_votes_of_a_row_are_its_labels_by_default(scored: MakeScored) -> None:
    rows = voted(scored, UNANIMOUS, DIVIDED, None)
    expected = [1, 0, 2.5 / 4, 1.5 / 4, 1, 0]
    assert labels_of(rows) == expected
    assert labels_of(rows, soft_labels="votes") == expected
    assert labels_of(rows, soft_labels="hard") is None
    assert labels_of(rows, soft_labels="margin") == pytest.approx([sigmoid(1), sigmoid(-1)] * 3)
    assert labels_of(rows, loss_type="robust") is None, "the loss takes no labels"
    assert labels_of(rows, dpop_lambda=1.0) is None, "the penalty is of a completion that is certainly preferred"


def test_rows_without_votes_have_no_labels(scored: MakeScored) -> None:
    assert labels_of(voted(scored, None, 7, {"yes": 3})) is None
    assert labels_of(voted(scored, None), soft_labels="votes") is None


def test_votes_change_sides_with_the_completion_they_are_for(scored: MakeScored) -> None:
    """Choose the second completion, as a length penalty can: the votes for the first one are against it."""
    made = scored([[2, 1]], rewards=[1, 0.5], reference=[0] * 3)
    (prompt,) = made.experience.prompts
    row = replace(made.experience, prompts=(replace(prompt, columns={"votes": {"for": 3, "against": 1}}),))
    # A penalty of 1 per token: 1 − 2 < 0.5 − 1, so that the second completion is chosen.
    assert labels_of(replace(made, experience=row), pairs={"length_penalty": 1.0}) == [0.25, 0.75]


def test_samples_are_not_labelled_by_a_column_of_their_prompt(scored: MakeScored) -> None:
    rows = voted(scored, DIVIDED)
    assert labels_of(replace(rows, by_scorer={"a": np.float32([1, 0])})) is None
