"""Every figure of an evaluation, on rows whose result is computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BadInput
from orchestrator.evaluation.figures import (
    BootstrapConfig,
    Figure,
    differences,
    distinct,
    figures,
    mean,
    outcomes,
    per_prompt,
    win_rates,
)
from orchestrator.evaluation.rows import Row, read_rows, write_rows

FEW_DRAWS = BootstrapConfig(num_draws=200)


def row(prompt_id: str, tokens: Sequence[int] = (5, 6, 1), **changes: Any) -> Row:
    """Build a greedy completion that ended with the end-of-sequence token."""
    defaults: dict[str, Any] = {
        "model": "model",
        "prompt_set": "prompts",
        "mode": "greedy",
        "prompt_id": prompt_id,
        "prompt": prompt_id,
        "index": 0,
        "completion": "ab",
        "tokens": tuple(tokens),
        "finish": "stop",
    }
    return Row(**defaults | changes)


def samples(prompt: str, scores: Sequence[float | None], **changes: Any) -> list[Row]:
    return [
        row(prompt, mode="sampled", index=i, reward=score, scores={"exact": score}, **changes)
        for i, score in enumerate(scores)
    ]


def values(rows: Sequence[Row], name: str, model: str = "model") -> dict[str, float]:
    return dict(per_prompt(rows, model).get(name, {}))


# ------------------------------------------------------------------------------------------------ of one model


def test_completions_of_a_prompt_are_averaged_before_prompts_are() -> None:
    # p: (1 + 0 + 0 + 0) / 4 = ¼; q has one completion, of 1. Over completions it would be 2 of 5; over prompts it is ⅝.
    rows = [*samples("p", [1, 0, 0, 0]), *samples("q", [1])]
    assert values(rows, "sampled/rewards/exact") == values(rows, "sampled/reward") == {"p": 0.25, "q": 1.0}
    assert figures(rows, "model", FEW_DRAWS)["sampled/rewards/exact"].value == 0.625


def test_a_scorer_that_abstained_does_not_count() -> None:
    rows = [*samples("p", [1, None]), *samples("q", [None, None])]
    assert values(rows, "sampled/rewards/exact") == {"p": 1.0}
    assert values(rows, "sampled/best/exact") == {"p": 1.0}


def test_the_best_of_several() -> None:
    # One of four is correct: pass@4 is 1. A single completion has no best-of-n.
    rows = [*samples("p", [0, 0, 1, 0]), *samples("q", [0, 0, 0, 0]), *samples("r", [1])]
    assert values(rows, "sampled/best/exact") == {"p": 1.0, "q": 0.0}


def test_lengths_truncation_and_tails() -> None:
    rows = [
        row("p", (5, 6, 7, 1)),  # three letters and the end-of-sequence token
        row("q", (5, 9, 9, 9), finish="length"),  # one token three times: 3 of 4
    ]
    assert values(rows, "greedy/length") == {"p": 4.0, "q": 4.0}
    assert values(rows, "greedy/truncated") == {"p": 0.0, "q": 1.0}
    assert values(rows, "greedy/repeated_tail") == {"p": 0.0, "q": 0.75}


def test_distinct_n_by_hand() -> None:
    # a b a and a b: unigrams a b a a b, two of five; bigrams ab ba ab, two of three.
    assert distinct([(1, 2, 1), (1, 2)], 1) == 2 / 5
    assert distinct([(1, 2, 1), (1, 2)], 2) == 2 / 3
    assert distinct([(1,), ()], 2) is None


def test_diversity_leaves_out_the_token_that_ends() -> None:
    rows = [
        row("p", tokens, mode="sampled", index=i, finish=finish)
        for i, (tokens, finish) in enumerate([((5, 6, 1), "stop"), ((5, 6, 1), "stop"), ((5, 7), "length")])
    ]
    # 5 6, 5 6, 5 7: three different of six tokens, two different of three pairs, two different of three completions.
    assert values(rows, "sampled/distinct_1") == {"p": 3 / 6}
    assert values(rows, "sampled/distinct_2") == {"p": 2 / 3}
    assert values(rows, "sampled/unique") == {"p": 2 / 3}


def test_diversity_of_one_completion_is_no_figure() -> None:
    names = per_prompt([*samples("p", [1]), row("p")], "model").keys()
    assert not {"sampled/unique", "sampled/distinct_1", "sampled/best/exact"} & names


def test_kl_is_the_mean_log_ratio_of_samples_alone() -> None:
    rows = [
        row("p", mode="sampled", log_ratios={"base": 2.0, "reference": 0.5}),
        row("p", mode="sampled", index=1, log_ratios={"base": -1.0, "reference": 0.1}),
        row("q", mode="sampled", log_ratios={"base": 1.5, "reference": 0.0}),
        row("q", log_ratios={"base": 100.0}),  # greedy: not a sample of the policy
    ]
    assert values(rows, "kl/base") == {"p": 0.5, "q": 1.5}
    assert figures(rows, "model", FEW_DRAWS)["kl/base"].value == 1.0
    assert values(rows, "kl/reference") == {"p": pytest.approx(0.3), "q": 0.0}


def test_refusals_are_counted_where_they_belong() -> None:
    rows = [
        row("h1", prompt_set="harmful", reward=1.0, scores={"refusal": 1.0}),
        row("h2", prompt_set="harmful", reward=0.0, scores={"refusal": 0.0}),
        row("b1", prompt_set="benign", reward=1.0, scores={"refusal": 1.0}),
        row("b2", prompt_set="benign", reward=0.0, scores={"refusal": 0.0}),
        row("b3", prompt_set="benign", reward=0.0, scores={"refusal": 0.0}),
        row("b4", prompt_set="benign", reward=0.0, scores={"refusal": 0.0}),
    ]
    found = figures(rows, "model", FEW_DRAWS)
    assert (found["refusal"].value, found["over_refusal"].value) == (0.5, 0.25)
    assert found.keys() == {"refusal", "over_refusal"}, "refusal prompts are not part of the task: no reward, no length"


def test_another_models_rows_are_left_out() -> None:
    rows = [row("p", reward=1.0), row("p", reward=0.0, model="against")]
    assert values(rows, "greedy/reward") == {"p": 1.0}
    assert values(rows, "greedy/reward", "against") == {"p": 0.0}
    assert per_prompt(rows, "nobody") == {}


# ------------------------------------------------------------------------------------------------ intervals


def test_a_proportion_has_wilsons_interval() -> None:
    # 10 of 10: z² / (n + z²) = 3.8415 / 13.8415 below 1, where the bootstrap would say [1, 1].
    found = mean([1.0] * 10, FEW_DRAWS)
    assert found == Figure(value=1.0, low=pytest.approx(1 - 3.8415 / 13.8415, abs=1e-4), high=1.0, num_prompts=10,
                           interval="wilson")  # fmt: skip


def test_other_means_have_the_bootstraps() -> None:
    # 0 and ½, two draws: both 0 (¼), both ½ (¼): the 95 % interval includes both.
    assert mean([0.0, 0.5], FEW_DRAWS) == Figure(value=0.25, low=0.0, high=0.5, num_prompts=2, interval="bootstrap")


def test_one_prompt_has_no_interval() -> None:
    assert mean([0.5], FEW_DRAWS) == Figure(value=0.5, low=None, high=None, num_prompts=1, interval=None)
    assert not mean([0.5], FEW_DRAWS).excludes_zero


def test_a_wider_confidence_is_wider() -> None:
    half, most = (mean([0.1 * i for i in range(20)], BootstrapConfig(confidence=c)) for c in (0.5, 0.99))
    assert half.low is not None
    assert most.low is not None
    assert most.low < half.low < half.value


# ------------------------------------------------------------------------------------------------ of two models


def test_differences_are_of_the_prompts_in_common() -> None:
    ours = [row("p", reward=1.0), row("q", reward=0.5), row("r", reward=0.0)]
    theirs = [row(p, reward=r, model="against") for p, r in (("q", 0.25), ("p", 0.75), ("s", 1.0))]
    # p: +¼, q: +¼; r and s have no partner. Both draws are ¼ whatever is drawn.
    found = differences([*ours, *theirs], "model", "against", FEW_DRAWS)["greedy/reward"]
    assert found == Figure(value=0.25, low=0.25, high=0.25, num_prompts=2, interval="bootstrap")
    assert found.excludes_zero


def test_win_rates_by_a_scorer() -> None:
    # p: better; q: equal, half a win; r: worse; s: no score for the other completion.
    ours = [row(p, scores={"gold": s}) for p, s in (("p", 2.0), ("q", 1.0), ("r", 0.0), ("s", 3.0))]
    theirs = [row(p, scores={"gold": s}, model="against") for p, s in (("p", 1.0), ("q", 1.0), ("r", 1.0), ("s", None))]
    rows = [*ours, *theirs]
    assert outcomes(rows, "model", "against", "gold") == {"p": 1.0, "q": 0.5, "r": 0.0}
    assert outcomes(rows, "against", "model", "gold") == {"p": 0.0, "q": 0.5, "r": 1.0}
    found = win_rates(rows, "model", "against", FEW_DRAWS)
    assert found["greedy/win_rate/gold"].value == 0.5
    assert found["greedy/ties/gold"].value == pytest.approx(1 / 3)
    assert found["greedy/win_rate/gold"].num_prompts == 3


def test_sampled_completions_are_compared_by_index() -> None:
    ours, theirs = samples("p", [1, 0]), samples("p", [0, 0], model="against")
    # index 0 is won, index 1 is a tie: ¾.
    assert outcomes([*ours, *theirs], "model", "against", "exact", "sampled") == {"p": 0.75}


def test_equal_lengths_leave_the_win_rate_and_length_alone_explains_it_away() -> None:
    wins = [1.0] * 30 + [0.0] * 10

    def models(length: int) -> list[Row]:
        return [
            row(f"p{i}", completion="a" * (1 + (length if won else 0)), scores={"gold": won})
            for i, won in enumerate(wins)
        ] + [row(f"p{i}", completion="b", scores={"gold": 0.5}, model="against") for i in range(40)]

    equal = win_rates(models(0), "model", "against", FEW_DRAWS)
    assert equal["greedy/length_controlled_win_rate/gold"].value == pytest.approx(0.75, abs=1e-3)
    longer = win_rates(models(20), "model", "against", FEW_DRAWS)
    assert longer["greedy/win_rate/gold"].value == 0.75
    assert longer["greedy/length_controlled_win_rate/gold"].value < 0.55, "only longer answers won"


def test_win_rates_by_a_judge_that_compared_in_both_orders() -> None:
    ours = [
        row("p", outcomes={"judge": (1.0, 1.0)}),  # better in both orders
        row("q", outcomes={"judge": (1.0, 0.0)}),  # the first one shown: a tie, and no agreement
        row("r", outcomes={"judge": (0.5, 0.0)}),  # ¼
        row("s", outcomes={"judge": (0.0, 0.0)}),
        row("t"),  # not judged
    ]
    rows = [*ours, *(row(p, model="against") for p in "pqrst")]
    assert outcomes(rows, "model", "against", "judge") == {"p": 1.0, "q": 0.5, "r": 0.25, "s": 0.0}
    found = win_rates(rows, "model", "against", FEW_DRAWS)
    assert found["greedy/win_rate/judge"].value == 0.4375
    assert found["greedy/order_consistency/judge"].value == 0.5


def test_without_the_other_model_there_is_no_win_rate() -> None:
    assert win_rates([row("p", scores={"gold": 1.0})], "model", "against", FEW_DRAWS) == {}
    assert differences([row("p", reward=1.0)], "model", "against", FEW_DRAWS) == {}


def test_the_same_seed_gives_the_same_intervals() -> None:
    rows = [row(f"p{i}", reward=math.sin(i), scores={"gold": math.sin(i)}) for i in range(20)]
    assert figures(rows, "model", BootstrapConfig(seed=3)) == figures(rows, "model", BootstrapConfig(seed=3))
    assert figures(rows, "model", BootstrapConfig(seed=3)) != figures(rows, "model", BootstrapConfig(seed=4))


# ------------------------------------------------------------------------------------------------ files


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        row("p", reward=1.0, scores={"a": 1.0, "b": None}, log_ratios={"base": -0.5}, outcomes={"judge": (1.0, 0.5)}),
        row("q", completion="é\u2028x\n", prompt=[{"role": "user", "content": "hi"}], mode="sampled"),
    ]
    write_rows(tmp_path / "samples.jsonl", rows)
    assert read_rows(tmp_path / "samples.jsonl") == rows


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "samples.jsonl:1"), ("[]", "samples.jsonl:1"), ('{"model": "model"}', "samples.jsonl:1"), (None, "cannot")],
)
def test_invalid_rows_are_refused(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "samples.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=why):
        read_rows(path)


def test_a_number_that_json_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_rows(tmp_path / "samples.jsonl", [row("p", reward=math.nan)])
