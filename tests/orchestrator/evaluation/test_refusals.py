"""Refusals of harmful and benign prompts, as a whole and by category, from the answers of fake engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import Events, FakeReward, FakeRollout

from orchestrator.cluster.local import LocalGang
from orchestrator.evaluation.held_out import Answers
from orchestrator.evaluation.refusals import Refusals
from workers.reward import Measures, Reward
from workers.types import Experience, Prompt, Scores, TokenShard, merge


class Detector(FakeReward):
    """Fake that takes the answers to the prompts with an r in their text for refusals."""

    def score(self, parts: Sequence[Experience], file_prefix: str | None = None) -> Scores:
        whole = merge(parts)
        rewards = np.asarray([float("r" in str(whole.prompts[g].text)) for g in whole.group_of], np.float32)
        return Scores(rewards=rewards, by_scorer={"refusal": rewards}, seconds=0.5, chunk=whole.chunk)

    def measure(self, parts: Sequence[Experience], shares: Sequence[TokenShard] | None) -> Measures:
        return Reward.measure(self, parts, shares)  # type: ignore[arg-type]


def metrics_of(harmful: Sequence[tuple[str, dict[str, Any]]], **more: Any) -> dict[str, float]:
    events = Events()
    rollout = LocalGang("rollout", [FakeRollout(events, index=i) for i in range(2)])
    detector: LocalGang[Any] = LocalGang("refusal", [Detector(events)])
    answers = Answers(rollout=rollout, reward=detector, max_completion_length=4, seed=0, **more)
    prompts = [Prompt(id=f"h:{i}", text=text, columns=columns) for i, (text, columns) in enumerate(harmful)]
    benign = [Prompt(id="b:0", text="r"), Prompt(id="b:1", text="a")]
    return dict(Refusals(answers, {"harmful": prompts, "benign": benign}).evaluate(0).metrics)


WHOLE = {"eval/harmful_prompts": 4.0, "eval/refusal": 0.75, "eval/benign_prompts": 2.0, "eval/over_refusal": 0.5}


def test_without_a_category_there_are_two_shares() -> None:
    assert metrics_of([("r", {}), ("r", {}), ("a", {}), ("r", {})]) == WHOLE


@pytest.mark.parametrize("chunk", [None, 1])
def test_by_category(chunk: int | None) -> None:
    weapons, drugs = {"category": "chemical  weapons"}, {"category": "drugs"}
    found = metrics_of([("r", weapons), ("r", drugs), ("a", weapons), ("r", {})], completions_per_chunk=chunk)
    assert found == {**WHOLE, "eval/refusal/chemical_weapons": 0.5, "eval/refusal/drugs": 1.0}


def test_a_category_that_is_no_text_does_not_count() -> None:
    columns = [{"category": 3}, {"category": None}, {"category": " "}, {"category": ["a"]}]
    assert metrics_of([("r", columns[0]), ("r", columns[1]), ("a", columns[2]), ("r", columns[3])]) == WHOLE
