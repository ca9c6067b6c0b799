"""Agreement of a judge with labels: figures by hand, and `rlhf judge` against a real HTTP server on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from judge_endpoint import Answer, endpoint, longer, score, shown, verdict

from orchestrator.cli.main import main
from orchestrator.errors import BadInput
from orchestrator.evaluation.agreement import JudgedPair, Verdict, agreement, read_pairs
from orchestrator.evaluation.agreement_show import lines
from orchestrator.evaluation.figures import BootstrapConfig, Figure

BOOTSTRAP = BootstrapConfig(num_draws=500)


def pair(prompt: str, first: float, second: float, *, chosen: str = "yes", rejected: str = "no") -> JudgedPair:
    """Return a pair with the outcomes of its chosen completion, shown first and shown second."""
    verdicts = (Verdict(outcome=first, chosen_first=True), Verdict(outcome=second, chosen_first=False))
    return JudgedPair(id=prompt, prompt=prompt, chosen=chosen, rejected=rejected, verdicts=verdicts)


def values(pairs: Sequence[JudgedPair]) -> dict[str, float]:
    return {name: figure.value for name, figure in agreement(pairs, BOOTSTRAP).items()}


def test_figures_of_four_pairs() -> None:
    right, first, wrong = pair("a", 1, 1), pair("b", 1, 0), pair("c", 0, 0, chosen="no", rejected="yes")
    half = pair("d", 1, 0.5, chosen="abc", rejected="def")
    assert values([right, first, wrong, half]) == pytest.approx(
        {
            "accuracy": (1 + 0.5 + 0 + 0.75) / 4,
            # 4 of 8 verdicts are right and one is a tie: p = 1/2, t = 1/8, kappa = (1 − 7/8) / (1 + 1/8)
            "kappa": 1 / 9,
            "decided": 2 / 3,
            "ties": 1 / 4,
            "consistency": 2 / 4,
            "first": (0.5 + 1 + 0.5 + 1) / 4,
            "longer": 2 / 2,  # `yes` is preferred to `no` in both pairs of unequal length that are decided
            "longer/labels": 1 / 2,
        }
    )


def test_a_judge_that_is_always_right_and_one_that_follows_the_order() -> None:
    right, biased = ([pair(str(i), 1, outcome) for i in range(30)] for outcome in (1, 0))
    found = values(right)
    assert (found["accuracy"], found["kappa"], found["ties"], found["first"]) == (1, 1, 0, 0.5)
    found = values(biased)
    assert (found["accuracy"], found["kappa"], found["ties"], found["first"]) == (0.5, 0, 1, 1)
    assert "decided" not in found


def test_pairs_of_one_prompt_are_one_unit() -> None:
    pairs = [pair("a", 1, 1), pair("a", 1, 1), pair("a", 0, 0), pair("b", 0, 0)]
    found = agreement(pairs, BOOTSTRAP)["accuracy"]
    assert (found.value, found.num_prompts) == (pytest.approx((2 / 3 + 0) / 2), 2)


def test_a_pair_without_a_verdict_is_left_out() -> None:
    none = JudgedPair(id="c", prompt="c", chosen="x", rejected="y", verdicts=())
    assert values([pair("a", 1, 1), pair("b", 0, 0), none]) == values([pair("a", 1, 1), pair("b", 0, 0)])


@pytest.mark.parametrize(
    ("low", "high", "num", "expected"),
    [
        (0.6, 0.8, 100, []),
        (0.4, 0.8, 100, ["WARNING: the judge is not shown to be better than chance"]),
        (0.2, 0.4, 100, ["WARNING: the judge disagrees with the labels more often than not"]),
        (0.6, 0.8, 19, ["WARNING: 19 prompts show nothing; give 20 or more"]),
    ],
)
def test_what_is_not_shown_is_said(low: float, high: float, num: int, expected: list[str]) -> None:
    figure = Figure(value=(low + high) / 2, low=low, high=high, num_prompts=num, interval="bootstrap")
    assert [line for line in lines({"accuracy": figure}) if line.startswith("WARNING")] == expected


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write 24 pairs. In every fourth one, the shorter completion is the chosen one."""
    rows = [
        {"prompt": f"question {i}", "chosen": "x" * (3 + i), "rejected": "y" * (3 + i + (1 if i % 4 == 0 else -1))}
        for i in range(24)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(data: Path, url: str, *values: str, code: int = 0) -> dict[str, Any]:
    """Run `rlhf judge` and return what it wrote."""
    (data.parent / "judge.yaml").write_text(f"url: {url}\nmodel: gold\nprice: [1.0, 1.0]\nmax_retries: 0\n")
    out = data.parent / f"out-{len(list(data.parent.iterdir()))}"
    assert main(["judge", str(data), "--judge", str(data.parent / "judge.yaml"), "--output", str(out), *values]) == code
    if code:
        return {}
    rows = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    return {**json.loads((out / "agreement.json").read_text()), "rows": rows}


def test_a_judge_that_compares(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(longer) as server:
        found = run(data, server.url, "compare=true")
        assert len(server.requests) == 2 * 24
        assert run(data, server.url, "compare=true")["cost"]["num_requests"] == 0
        assert len(server.requests) == 2 * 24, "no verdict is paid twice"
    figures = found["agreement"]
    assert figures["accuracy"]["value"] == 0.75
    assert figures["accuracy"]["interval"] == "wilson"
    assert figures["kappa"]["value"] == pytest.approx(0.5)
    assert figures["kappa"]["low"] < 0.5 < figures["kappa"]["high"]
    assert (figures["longer"]["value"], figures["longer/labels"]["value"]) == (1, 0.75)
    assert (figures["first"]["value"], figures["consistency"]["value"]) == (0.5, 1)
    assert found["cost"]["cost"] == pytest.approx(48 * 7 / 1e6)
    assert [len(row["verdicts"]) for row in found["rows"]] == [2] * 24
    printed = capsys.readouterr().out
    assert "accuracy       75 % [55.1, 88" in printed
    assert "WARNING: the judge prefers longer completions more often than the labels do" in printed
    assert "cost: 0 requests, 48 answered before" in printed


def test_a_judge_that_follows_the_order(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(lambda body, _: (200, verdict("A"))) as server:
        both, one = (run(data, server.url, "compare=true", f"both_orders={order}") for order in ("true", "false"))
    assert (both["agreement"]["accuracy"]["value"], both["agreement"]["first"]["value"]) == (0.5, 1)
    assert "WARNING: the judge prefers what is shown first" in capsys.readouterr().out
    # In one order, which completion comes first is drawn: otherwise this judge would always be right, or wrong.
    assert 0.2 < one["agreement"]["accuracy"]["value"] < 0.8
    assert one["agreement"]["first"]["value"] == 1
    assert "consistency" not in one["agreement"]


def test_a_judge_that_grades(data: Path) -> None:
    def length(body: dict[str, Any], _: int) -> Answer:
        return 200, score(min(10, len(shown(body)["answer"])))

    with endpoint(length) as server:
        found = run(data, server.url)["agreement"]
    # The first 8 pairs have grades that differ: 2 of them (i = 0, 4) wrongly; those of at least 10 letters are ties.
    # Pair 8 has lengths of 11 and 12, pair 7 of 10 and 9.
    assert found["ties"]["value"] == pytest.approx(16 / 24)
    assert found["accuracy"]["value"] == pytest.approx((6 + 16 / 2) / 24)
    assert "first" not in found


def test_too_many_failures_and_a_budget(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(lambda body, _: (200, "well")) as server:
        run(data, server.url, "compare=true", code=1)
        assert "24 of 24 pairs got no verdict" in capsys.readouterr().err
    with endpoint(longer) as server:
        run(data, server.url, "compare=true", "max_requests=10", "concurrency=4", code=1)
        assert "the budget of the judge is used up" in capsys.readouterr().err
        assert len(server.requests) == 10
        assert run(data, server.url, "compare=true")["cost"]["num_requests"] == 38


def test_all_problems_are_reported_before_a_request(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_text('{"prompt": "q", "chosen": 3, "rejected": "b"}\n')
    (data.parent / "agreement.json").write_text("{}")
    (data.parent / "judge.yaml").write_text("url: http://localhost:1/v1\nmodel: gold\napi_key_env: NOT_SET_ANYWHERE\n")
    given = ["judge", str(data), "--judge", str(data.parent / "judge.yaml"), "--output", str(data.parent)]
    assert main(given) == 2
    printed = capsys.readouterr().err
    for part in ("pairs.jsonl:1", "export NOT_SET_ANYWHERE", "the directory has a result already"):
        assert part in printed


def test_of_rated_completions_the_best_and_the_worst_are_a_pair(data: Path) -> None:
    rows = [
        {"prompt": "a", "completions": ["mid", "best", "worst"], "ratings": [2, 3, 1]},
        {"prompt": "b", "completions": ["one", "other"], "ratings": [2, 2]},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (example,) = read_pairs(str(data), split="train", max_rows=None)
    assert (example.completions[0], example.completions[-1]) == ("best", "worst")
    data.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(BadInput, match="there is no preference"):
        read_pairs(str(data), split="train", max_rows=None)
