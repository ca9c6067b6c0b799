from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pytest
from fakes import experience
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.algorithms.dpo import prepare
from workers.algorithms.pairs import GOLD_MARGIN, Pairs, make_pairs, penalised
from workers.config import DpoConfig, PairsConfig
from workers.config.pairs import Selection
from workers.gold import with_gold
from workers.types import Experience, Finish, ScoredBatch

SELECTIONS = get_args(Selection)
Groups = Sequence[Sequence[float]]
Tokens = Sequence[Sequence[Sequence[int]]]


def samples(tokens: Tokens, prompts: Sequence[Sequence[int]] | None = None, **fields: Any) -> Experience:
    """Return groups of completions with these tokens; prompt g has the token 100 + g."""
    prompts = prompts or [[100 + g] for g in range(len(tokens))]
    length = sum(len(completion) for group in tokens for completion in group)
    return experience(list(zip(prompts, tokens, strict=True)), logprobs=[-1.0] * length, **fields)


def distinct(scores: Groups) -> Tokens:
    """Return a completion of one token for each score, all different."""
    starts = np.cumsum([0, *(len(group) for group in scores)])
    return [[[int(start) + i] for i in range(len(group))] for start, group in zip(starts, scores, strict=False)]


def paired(batch: Experience, scores: Groups, *, seed: int = 0, **config: Any) -> Pairs:
    flat = np.array([score for group in scores for score in group], np.float32)
    of_config = PairsConfig(**config)
    return make_pairs(batch, penalised(flat, batch, of_config), of_config, seed=seed)


def pair(scores: Groups, *, seed: int = 0, **config: Any) -> list[tuple[int, int, float]]:
    """Return (chosen, rejected, margin) of the pairs made from different completions with these scores."""
    return as_tuples(paired(samples(distinct(scores)), scores, seed=seed, **config))


def as_tuples(pairs: Pairs) -> list[tuple[int, int, float]]:
    return list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), pairs.margins.tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ selections


def test_max_min_pairs_best_with_worst_of_each_group() -> None:
    assert pair([[2, 9, 5], [4, 1]]) == [(1, 0, 7), (3, 4, 3)]


def test_max_min_goes_on_with_second_best_and_second_worst() -> None:
    # From best to worst: 3 (8), 1 (6), 2 (3), 4 (2), 0 (1). The middle one is left over.
    assert pair([[1, 6, 3, 8, 2]], per_prompt=None) == [(3, 0, 7), (1, 4, 4)]


def test_max_random_pairs_the_best_with_any_worse_one() -> None:
    drawn = {pair([[2, 9, 5, 7]], selection="max_random", seed=seed)[0][:2] for seed in range(30)}
    assert drawn == {(1, 0), (1, 2), (1, 3)}


def test_max_max_pairs_the_best_with_the_next_that_scores_less() -> None:
    assert pair([[2, 9, 5, 7]], selection="max_max") == [(1, 3, 2)]
    assert pair([[2, 9, 5, 7]], selection="max_max", per_prompt=None) == [(1, 3, 2), (2, 0, 3)]
    assert pair([[0, 1, 1, -1]], selection="max_max")[0][1:] == (0, 1)  # not with the other of score 1


def test_quantile_draws_from_both_ends_of_a_group() -> None:
    scores = [[float(score) for score in range(8)]]
    drawn = [pair(scores, selection="quantile", quantile=0.25, seed=seed)[0][:2] for seed in range(60)]
    assert set(drawn) == {(7, 0), (7, 1), (6, 0), (6, 1)}
    halves = [pair(scores, selection="quantile", quantile=0.5, seed=seed)[0][:2] for seed in range(300)]
    assert {chosen for chosen, _ in halves} == {4, 5, 6, 7}
    assert {rejected for _, rejected in halves} == {0, 1, 2, 3}


def test_all_pairs_of_a_group() -> None:
    # Of 4, 1, 4, 0 the pairs with a margin: 4 > 1 and 4 > 0 twice each, 1 > 0 once; 4 and 4 are equal.
    every = pair([[4, 1, 4, 0], [5, 6]], per_prompt=6, selection="all")
    assert sorted(every[:5]) == [(0, 1, 3), (0, 3, 4), (1, 3, 1), (2, 1, 3), (2, 3, 4)]
    assert every[5:] == [(5, 4, 1)]
    assert every == pair([[4, 1, 4, 0], [5, 6]], per_prompt=None, selection="all")
    assert len(pair([[4, 1, 4, 0]], per_prompt=6, min_margin=3, selection="all")) == 2  # those of 4 and 0


@pytest.mark.parametrize("selection", ["all", "random"])
def test_all_pairs_are_equally_likely_to_be_drawn(selection: str) -> None:
    drawn = [pair([[4, 1, 4, 0]], selection=selection, seed=seed)[0] for seed in range(1000)]
    counts = [drawn.count(one) for one in set(drawn)]
    assert len(counts) == 5
    assert all(abs(count - 200) < 60 for count in counts)  # 200 each; standard deviation 12.6
    assert pair([[4, 1, 4, 0]], selection=selection, seed=7) == [drawn[7]]


def test_random_pairs_use_no_completion_twice() -> None:
    # A completion of 1 and one of 0, then the others: two pairs, whichever are drawn.
    found = {tuple(pair([[1, 1, 0, 0]], per_prompt=4, selection="random", seed=seed)) for seed in range(20)}
    for pairs in found:
        assert sorted(chosen for chosen, _, _ in pairs) == [0, 1]
        assert sorted(rejected for _, rejected, _ in pairs) == [2, 3]
    assert len({frozenset(pairs) for pairs in found}) == 2


def test_the_seed_decides_between_equal_scores() -> None:
    scores = [[1.0] * 8 + [0.0] * 8]
    drawn = {pair(scores, seed=seed)[0] for seed in range(80)}
    assert len({chosen for chosen, _, _ in drawn}) == 8
    assert len({rejected for _, rejected, _ in drawn}) == 8


# ------------------------------------------------------------------------------------------------ limits


def test_per_prompt_is_the_limit() -> None:
    assert pair([[0, 1, 2, 3, 4, 5]], per_prompt=2) == [(5, 0, 5), (4, 1, 3)]


def test_the_margin_must_exceed_min_margin() -> None:
    assert pair([[0, 2], [0, 3]], min_margin=2) == [(3, 2, 3)]


def test_the_length_penalty_counts_tokens() -> None:
    # 5 − 0.5 · 6 = 2, 4 − 0.5 · 1 = 3.5, 3 − 0.5 · 2 = 2: the longest answer is no longer the best.
    batch = samples([[[1, 2, 3, 4, 5, 6], [7], [8, 9]]])
    assert as_tuples(paired(batch, [[5, 4, 3]])) == [(0, 2, 2)]
    assert as_tuples(paired(batch, [[5, 4, 3]], length_penalty=0.5))[0][0] == 1
    assert as_tuples(paired(batch, [[5, 4, 2]], length_penalty=0.5)) == [(1, 2, 2.5)]
    assert as_tuples(paired(batch, [[5, 4, 3]], length_penalty=0.5, min_margin=1.5)) == []


def test_max_pairs_keeps_a_random_part_of_the_step() -> None:
    scores = [[1.0, 0.0]] * 20
    batch = samples([[[2 * g], [2 * g + 1]] for g in range(20)])
    some = paired(batch, scores, max_pairs=5)
    assert (len(some), some.num_capped) == (5, 15)
    assert some.chosen.tolist() == sorted(some.chosen.tolist())
    kept = {int(chosen) for seed in range(60) for chosen in paired(batch, scores, max_pairs=5, seed=seed).chosen}
    assert len(kept) == 20
    assert paired(batch, scores, max_pairs=20).num_capped == 0


def test_max_pairs_does_not_prefer_prompts_with_many_pairs() -> None:
    # Ten prompts with 1 possible pair, ten with 28: a pair of each is made, and each is kept with probability 1/2.
    scores = [[1.0, 0.0]] * 10 + [[float(i) for i in range(8)]] * 10
    batch = samples(distinct(scores))
    small = 0
    for seed in range(100):
        pairs = paired(batch, scores, selection="random", max_pairs=10, seed=seed)
        small += int((pairs.chosen < 20).sum())
    assert abs(small - 500) < 80  # standard deviation below 16


@pytest.mark.parametrize("selection", SELECTIONS)
def test_small_groups_make_no_pair(selection: str) -> None:
    assert pair([[1], [], [0, 1]], selection=selection) == [(2, 1, 1)]
    assert pair([], selection=selection) == []
    assert pair([[1, 1, 1], [0, 0]], per_prompt=2, selection=selection) == []


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_dataset_pair_stays_as_it_is(selection: str) -> None:
    assert pair([[1, 0], [0.25, 0]], per_prompt=4, selection=selection) == [(0, 1, 1), (2, 3, 0.25)]


def test_scores_must_be_finite() -> None:
    with pytest.raises(AssertionError, match="finite"):
        pair([[1, float("nan")]])


# ------------------------------------------------------------------------------------------------ duplicates

RIGHT, WRONG, OTHER = [1, 2, 0], [2, 1, 0], [3, 3, 0]


def test_equal_answers_are_never_paired() -> None:
    batch = samples([[RIGHT, RIGHT, WRONG]])
    for duplicates in ("drop", "keep"):
        assert as_tuples(paired(batch, [[2, 0, 1]], duplicates=duplicates)) == [(0, 2, 1)]
    assert len(paired(samples([[RIGHT, RIGHT]]), [[1, 0]])) == 0


def test_a_repeated_pair_of_a_group_is_left_out() -> None:
    # Best with worst gives three pairs: twice (RIGHT, WRONG) and once (RIGHT, OTHER).
    batch, scores = samples([[RIGHT, RIGHT, RIGHT, WRONG, WRONG, OTHER]]), [[1, 1, 1, 0, 0, 0]]
    kept = paired(batch, scores, per_prompt=None, duplicates="keep")
    texts = [(batch.completions[i].tolist(), batch.completions[j].tolist()) for i, j, _ in as_tuples(kept)]
    assert sorted(texts) == [(RIGHT, WRONG), (RIGHT, WRONG), (RIGHT, OTHER)]
    assert kept.num_duplicates == 0
    pairs = paired(batch, scores, per_prompt=None)
    texts = [(batch.completions[i].tolist(), batch.completions[j].tolist()) for i, j, _ in as_tuples(pairs)]
    assert sorted(texts) == [(RIGHT, WRONG), (RIGHT, OTHER)]
    assert pairs.num_duplicates == 1


def test_a_repeated_pair_does_not_count_against_per_prompt() -> None:
    batch, scores = samples([[RIGHT, RIGHT, RIGHT, WRONG, WRONG, OTHER]]), [[1, 1, 1, 0, 0, 0]]
    for seed in range(10):
        assert len(paired(batch, scores, per_prompt=2, seed=seed)) == 2


def test_a_pair_is_repeated_in_another_group_of_the_same_prompt_only() -> None:
    tokens = [[RIGHT, WRONG], [RIGHT, WRONG], [RIGHT, WRONG]]
    pairs = paired(samples(tokens, prompts=[[5], [6], [5]]), [[1, 0]] * 3)
    assert (len(pairs), pairs.num_duplicates) == (2, 1)
    assert len(paired(samples(tokens, prompts=[[5], [6], [5]]), [[1, 0]] * 3, duplicates="keep")) == 3


def test_nearly_equal_answers_are_not_paired() -> None:
    # 98 different 3-grams, of which one changed token replaces 3: similarity 95/101 = 0.94.
    answer = list(range(100))
    changed = [*answer[:50], 999, *answer[51:]]
    batch = samples([[answer, changed]])
    assert len(paired(batch, [[1, 0]])) == 0
    assert paired(batch, [[1, 0]]).num_duplicates == 1
    assert len(paired(batch, [[1, 0]], near_duplicate=0.95)) == 1
    assert len(paired(batch, [[1, 0]], near_duplicate=None)) == 1
    assert len(paired(batch, [[1, 0]], duplicates="keep")) == 1


def test_a_nearly_equal_answer_stays_for_another_pair() -> None:
    # Best with worst would pair `answer` with `changed`; the next worst of `answer` is OTHER.
    answer = list(range(100))
    batch = samples([[answer, [*answer[:50], 999, *answer[51:]], OTHER]])
    assert as_tuples(paired(batch, [[2, 0, 1]])) == [(0, 2, 1)]


def test_a_nearly_repeated_pair_is_left_out() -> None:
    good, bad = list(range(100)), list(range(200, 300))
    batch = samples([[good, [*good[:50], 999, *good[51:]], bad, [*bad[:50], 999, *bad[51:]]]])
    pairs = paired(batch, [[1, 1, 0, 0]], per_prompt=None)
    assert (len(pairs), pairs.num_duplicates) == (1, 1)
    assert len(paired(batch, [[1, 1, 0, 0]], per_prompt=None, near_duplicate=None)) == 2


# ------------------------------------------------------------------------------------------------ truncated answers

TRUNCATED = {"finish": np.array([Finish.length, Finish.stop, Finish.stop, Finish.length, Finish.length], np.int32)}


def test_a_truncated_answer_is_only_rejected() -> None:
    batch = samples([[[1], [2], [3]], [[4], [5]]], **TRUNCATED)
    assert as_tuples(paired(batch, [[9, 2, 1], [1, 0]])) == [(1, 2, 1)]
    assert as_tuples(paired(batch, [[0, 2, 1], [1, 0]])) == [(1, 0, 2)]
    assert as_tuples(paired(batch, [[9, 2, 1], [1, 0]], truncated_chosen=True)) == [(0, 2, 8), (3, 4, 1)]


def scored_batch(batch: Experience, rewards: Sequence[float]) -> ScoredBatch:
    tokens = len(batch.completions.values)
    return ScoredBatch(
        experience=batch,
        rewards=np.array(rewards, np.float32),
        reference_logprobs=np.zeros(tokens, np.float32),
        values=None,
    )


def dpo(**pairs: Any) -> DpoConfig:
    return DpoConfig(type="dpo", pairs=PairsConfig(**pairs))


def test_metrics_count_what_is_left_out() -> None:
    batch = samples([[[1], [2], [3]], [[4], [5]]], **TRUNCATED)
    _, metrics = prepare(scored_batch(batch, [9, 2, 1, 1, 0]), dpo())
    assert (metrics["pairs/truncated"], metrics["pairs/truncated_groups"]) == (3, 0.5)
    assert (metrics["pairs/count"], metrics["pairs/saturated_groups"], metrics["pairs/capped"]) == (1, 0.5, 0)
    _, metrics = prepare(scored_batch(batch, [9, 2, 1, 1, 0]), dpo(truncated_chosen=True, max_pairs=1))
    assert (metrics["pairs/truncated"], metrics["pairs/truncated_groups"]) == (0, 0)
    assert (metrics["pairs/count"], metrics["pairs/capped"]) == (1, 1)
    repeated = samples([[RIGHT, RIGHT, WRONG, WRONG]])
    _, metrics = prepare(scored_batch(repeated, [1, 1, 0, 0]), dpo(per_prompt=2))
    assert (metrics["pairs/count"], metrics["pairs/duplicates"]) == (1, 1)


def test_pairs_of_a_dataset_are_taken_as_they_are() -> None:
    given = experience(
        [([100], [RIGHT, WRONG]), ([100], [RIGHT, WRONG])],
        finish=np.full(4, Finish.length, np.int32),
    )
    batch, metrics = prepare(scored_batch(given, [1, 0, 1, 0]), dpo(max_pairs=1))
    assert batch.num_rows == 2
    assert "pairs/duplicates" not in metrics


# ------------------------------------------------------------------------------------------------ gold answers

GOLD = [[50, 51], [], [52]]


def golden() -> Experience:
    """Return three groups, of which the first and the third have a gold answer: completions 2 and 7."""
    return with_gold(samples([[[1], [2]], [[3], [4]], [[5], [6]]]), GOLD)


def test_a_gold_answer_is_a_candidate_with_its_own_score() -> None:
    scores = [[1, 0, 2], [1, 0], [3, 0, 2]]
    assert as_tuples(paired(golden(), scores, gold="add")) == [(2, 1, 2), (3, 4, 1), (5, 6, 3)]
    # It is never rejected: the worst sample is.
    scores = [[1, 0, -1], [1, 0], [3, 2, -1]]
    assert as_tuples(paired(golden(), scores, gold="add")) == [(0, 1, 1), (3, 4, 1), (5, 6, 1)]


def test_gold_chosen_pairs_it_with_every_sample_whatever_the_scores() -> None:
    scores = [[1, 0, -5], [1, 0], [1, 1, 1]]
    pairs = as_tuples(paired(golden(), scores, gold="chosen", per_prompt=None, min_margin=2.0))
    assert sorted(pairs) == [(2, 0, GOLD_MARGIN), (2, 1, GOLD_MARGIN), (7, 5, GOLD_MARGIN), (7, 6, GOLD_MARGIN)]
    assert as_tuples(paired(golden(), scores, gold="chosen"))[0] == (2, 1, GOLD_MARGIN)  # max_min: the worst sample
    assert as_tuples(paired(golden(), scores, gold="chosen", selection="max_max"))[0] == (2, 0, GOLD_MARGIN)


def test_a_sample_that_equals_the_gold_answer_is_not_paired_with_it() -> None:
    batch = with_gold(samples([[[50, 51], [2]]]), [[50, 51]])
    assert as_tuples(paired(batch, [[0, 0, 0]], gold="chosen", per_prompt=None)) == [(2, 1, GOLD_MARGIN)]


def test_the_metrics_of_samples_leave_the_gold_answer_out() -> None:
    given = scored_batch(golden(), [1, 0, 8, 1, 0, 1, 0, 8])
    batch, metrics = prepare(given, dpo(gold="add"))
    assert metrics["reward"] == 0.5  # of the six samples
    assert metrics["objective/kl"] == -1  # log-probabilities −1 against 0; of the gold answer there are none
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["pairs/gold"] == pytest.approx(2 / 3)
    assert batch.reference_logprobs is not None
    assert np.isfinite(batch.reference_logprobs).all()
    assert [batch.completions[i].tolist() for i in (0, 4)] == [[50, 51], [52]]


# ------------------------------------------------------------------------------------------------ what always holds


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[list[int]], list[list[list[int]]], list[list[float]], list[list[int]]]:
    """Draw prompts, completions, scores and finish reasons of groups with many repeats and ties."""
    sizes = draw(st.lists(st.integers(0, 6), max_size=5))
    token = st.integers(0, 2)

    def of_sizes(element: st.SearchStrategy[Any]) -> list[list[Any]]:
        return [draw(st.lists(element, min_size=size, max_size=size)) for size in sizes]

    prompts = [[draw(token)] for _ in sizes]
    completions = of_sizes(st.lists(token, min_size=1, max_size=4))
    return prompts, completions, of_sizes(st.integers(-3, 3).map(float)), of_sizes(st.sampled_from([0, 0, 1]))


CONFIGS = st.builds(
    PairsConfig,
    selection=st.sampled_from(SELECTIONS),
    per_prompt=st.sampled_from([1, 2, None]),
    quantile=st.sampled_from([0.1, 0.3, 0.5]),
    length_penalty=st.sampled_from([0.0, 0.5]),
    min_margin=st.sampled_from([0.0, 1.0, 2.5]),
    max_pairs=st.sampled_from([None, 1, 4]),
    duplicates=st.sampled_from(["drop", "keep"]),
    near_duplicate=st.sampled_from([None, 0.6, 1.0]),
    truncated_chosen=st.booleans(),
)
Step = tuple[list[list[int]], list[list[list[int]]], list[list[float]], list[list[int]]]
Content = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], float]


def contents(
    step: Step, order: Sequence[int], config: PairsConfig, seed: int
) -> tuple[Experience, Pairs, list[Content]]:
    """Make the pairs of a step's groups in `order`, and return their prompts, completions and margins, sorted."""
    prompts, completions, scores, finish = ([part[g] for g in order] for part in step)
    flat = np.array([reason for group in finish for reason in group], np.int32)
    batch = samples(completions, prompts, finish=flat)
    pairs = paired(batch, scores, seed=seed, **dict(config))
    found = [
        (
            tuple(batch.prompt_tokens[int(batch.group_of[i])].tolist()),
            tuple(batch.completions[i].tolist()),
            tuple(batch.completions[j].tolist()),
            margin,
        )
        for i, j, margin in as_tuples(pairs)
    ]
    return batch, pairs, sorted(found)


@settings(max_examples=200)
@given(step=steps(), config=CONFIGS, seed=st.integers(0, 9))
def test_what_holds_for_every_pair(step: Step, config: PairsConfig, seed: int) -> None:
    batch, pairs, found = contents(step, range(len(step[0])), config, seed)
    groups = batch.group_of
    rewards = np.array([score for group in step[2] for score in group])
    scores = rewards - config.length_penalty * batch.completions.lengths
    assert groups[pairs.chosen].tolist() == sorted(groups[pairs.chosen].tolist())
    for i, j, margin in as_tuples(pairs):
        assert groups[i] == groups[j]
        assert scores[i] - scores[j] == margin > config.min_margin
        assert batch.completions[i].tolist() != batch.completions[j].tolist()
        assert config.truncated_chosen or batch.finish[i] == Finish.stop
    assert len(pairs) <= (config.max_pairs or len(pairs))
    for g in range(len(step[0])):
        mine = [(i, j) for i, j, _ in as_tuples(pairs) if groups[i] == g]
        assert len(mine) <= (config.per_prompt or len(mine))
        used = [i for both in mine for i in both]
        assert config.selection == "all" or len(set(used)) == len(used)
    if config.duplicates == "drop":
        triples = [content[:3] for content in found]
        assert len(set(triples)) == len(triples)


@settings(max_examples=200)
@given(step=steps(), config=CONFIGS, seed=st.integers(0, 9), data=st.data())
def test_the_order_of_groups_does_not_matter(step: Step, config: PairsConfig, seed: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(step[0]))))
    _, pairs, found = contents(step, range(len(order)), config, seed)
    _, others, elsewhere = contents(step, order, config, seed)
    assert found == elsewhere
    assert (pairs.num_duplicates, pairs.num_capped) == (others.num_duplicates, others.num_capped)


@given(scores=st.lists(st.lists(st.integers(-3, 3).map(float), max_size=7), max_size=5), limit=st.integers(1, 5))
def test_max_min_makes_the_largest_margins_it_can(scores: list[list[float]], limit: int) -> None:
    pairs = pair(scores, per_prompt=limit)
    starts = np.cumsum([0, *(len(group) for group in scores)])
    for start, end, group in zip(starts, starts[1:], scores, strict=False):
        ranked = sorted(group)
        possible = [high - low for low, high in zip(ranked, ranked[::-1], strict=True)][: len(group) // 2]
        expected = [margin for margin in possible[:limit] if margin > 0]
        assert [margin for i, _, margin in pairs if start <= i < end] == expected


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("gold", ["never", "add", "chosen"])
def test_most_pairs_is_reached_and_not_exceeded(selection: Selection, gold: Any) -> None:
    config = PairsConfig(selection=selection, gold=gold, per_prompt=None, quantile=0.5)
    batch = samples([[[1], [2], [3], [4], [5]]])
    if gold != "never":
        batch = with_gold(batch, [[50]])
    scores = np.arange(len(batch.completions), dtype=np.float32)
    pairs: Callable[[int], int] = lambda seed: len(make_pairs(batch, scores, config, seed=seed))  # noqa: E731
    most = max(pairs(seed) for seed in range(40))
    assert most == config.most_pairs(num_prompts=1, num_generations=5)
