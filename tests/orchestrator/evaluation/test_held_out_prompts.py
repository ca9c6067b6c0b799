"""Held-out prompts: the calls to the workers, and the metrics of each answer, computed by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import Events, FakeReward, FakeRollout

from orchestrator.cluster.local import LocalGang
from orchestrator.config.run import EvaluationConfig
from orchestrator.evaluation.held_out import Answers, CombinedEvaluator, HeldOut
from orchestrator.evaluation.temperatures import AtTemperatures
from workers.reference import Reference
from workers.reward import Measures, Reward
from workers.types import Experience, Prompt, Scores, TokenShard, merge

PROMPTS = [Prompt(id=f"held:{i}", text="") for i in range(3)]


class MeasuringReward(FakeReward):
    """Fake that scores as FakeReward and measures as the real worker, whose method uses no state."""

    def measure(self, parts: Sequence[Experience], shares: Sequence[TokenShard] | None) -> Measures:
        return Reward.measure(self, parts, shares)  # type: ignore[arg-type]


class Half:
    """Base model that gives every token the log-probability −1.5; the fake policy gives −1."""

    def logprobs(self, parts: Sequence[Experience], temperature: float, version: int) -> TokenShard:
        assert (temperature, version) == (1.0, 0)
        completions = merge(parts).completions
        return TokenShard(
            completions=np.arange(len(completions)), values=np.full(len(completions.values), -1.5, np.float32)
        )


def held_out(events: Events, **settings: Any) -> HeldOut:
    rollout = LocalGang("rollout", [FakeRollout(events, index=i) for i in range(2)])
    reward: LocalGang[Any] = LocalGang("reward", [MeasuringReward(events)])
    return HeldOut(answers(rollout, reward), PROMPTS, **settings)


def answers(rollout: Any, reward: Any) -> Answers:
    return Answers(rollout=rollout, reward=reward, max_completion_length=4, seed=0)


def test_a_greedy_answer_to_each_prompt() -> None:
    found = held_out(Events()).evaluate(0)
    assert found.metrics["eval/reward"] == 0.0  # the fake's first token is 0
    assert "eval/kl" not in found.metrics
    assert [(a.mode, a.prompt_id, a.index, a.reward, a.length, a.log_ratio) for a in found.answers] == [
        ("greedy", f"held:{i}", 0, 0.0, 1, None) for i in range(3)
    ]


def test_the_engines_must_hold_the_version_that_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the versions that the engines are asked for: with another one they refuse, and are replaced."""
    asked = []

    def generate(self: FakeRollout, prompts: Any, sampling: Any, versions: Any, *more: Any) -> Experience:
        asked.append(versions)
        return plain(self, prompts, sampling, versions, *more)

    plain = FakeRollout.generate
    monkeypatch.setattr(FakeRollout, "generate", generate)
    held_out(Events(), num_samples=2).evaluate(3)
    assert set(asked) == {(3, 3)}


class SilentReward(MeasuringReward):
    """Fake with a second scorer that abstains, as a pairwise reward does where there is one answer."""

    def score(self, parts: Sequence[Experience], file_prefix: str | None = None) -> Scores:
        scores = super().score(parts, file_prefix)
        return replace(
            scores, by_scorer={**scores.by_scorer, "silent": np.full(len(scores.rewards), np.nan, np.float32)}
        )


@pytest.mark.filterwarnings("error")
def test_a_scorer_that_abstains_on_every_answer_has_no_mean() -> None:
    rollout = LocalGang("rollout", [FakeRollout(Events(), index=i) for i in range(2)])
    reward: LocalGang[Any] = LocalGang("reward", [SilentReward(Events())])
    found = HeldOut(answers(rollout, reward), PROMPTS).evaluate(0)
    assert found.metrics["eval/rewards/first/mean"] == 0.0
    assert not any("silent" in name for name in found.metrics)
    assert found.answers[0].scores["silent"] is None


def test_sampled_answers_and_their_kl_to_the_base() -> None:
    base: LocalGang[Any] = LocalGang("base", [Half()])
    by_base = held_out(Events(), num_samples=2, base=lambda parts: base.all(Reference.logprobs, parts, 1.0, 0))
    found = by_base.evaluate(0)
    sampled = [a for a in found.answers if a.mode == "sampled"]
    assert [(a.prompt_id, a.index, a.reward) for a in sampled] == [
        (f"held:{i}", index, float(index)) for i in range(3) for index in range(2)
    ]
    assert [a.log_ratio for a in sampled] == [0.5] * 6  # -1 - (-1.5), of one token each
    assert found.metrics["eval/kl"] == 0.5
    assert found.metrics["eval/sampled_reward"] == 0.5
    assert found.metrics["eval/reward"] == 0.0, "the greedy answers are unchanged"


def test_answers_at_other_temperatures_are_kept_apart() -> None:
    rollout = LocalGang("rollout", [FakeRollout(Events(), index=i) for i in range(2)])
    reward: LocalGang[Any] = LocalGang("reward", [MeasuringReward(Events())])
    evaluation = EvaluationConfig(num_samples=2, temperatures=(0.5, 0.7))
    evaluator = AtTemperatures(answers(rollout, reward), PROMPTS, evaluation)
    both = CombinedEvaluator([held_out(Events(), num_samples=2), evaluator])
    found = both.evaluate(0)
    by_temperature = Counter((a.mode, a.temperature) for a in found.answers)
    assert by_temperature == {
        ("greedy", 0.0): 3,
        ("sampled", 1.0): 6,
        ("at_temperature", 0.5): 6,
        ("at_temperature", 0.7): 6,
    }
    assert found.metrics["eval/reward_at_temperature_0.7"] == found.metrics["eval/sampled_reward"] == 0.5


def test_without_a_base_there_are_samples_and_no_kl() -> None:
    found = held_out(Events(), num_samples=1).evaluate(0)
    assert {a.log_ratio for a in found.answers} == {None}
    assert "eval/kl" not in found.metrics


def test_a_log_ratio_is_a_sum_over_its_own_tokens() -> None:
    from fakes import experience

    from workers.types import log_ratios

    batch = experience([([7], [[1, 2], [3]])], logprobs=[-1.0, -2.0, -0.5])
    share = TokenShard(completions=np.asarray([1, 0]), values=np.asarray([-1.0, -3.0, -3.0], np.float32))
    np.testing.assert_allclose(log_ratios(batch, [share]), [3.0, 0.5])  # (-1+3) + (-2+3), and -0.5+1
    with pytest.raises(ValueError, match="1 of 3 tokens"):
        log_ratios(batch, [TokenShard(completions=np.asarray([0]), values=np.asarray([-3.0, -3.0], np.float32))])
