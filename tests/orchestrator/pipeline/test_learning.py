"""Training on a step's chunks, update by update: calls, metrics of each update, pauses and continuation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fakes import Events, FakeLearner, FakeReward, FakeRollout

from orchestrator.cluster.local import LocalGang
from orchestrator.errors import FilesLost
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.sources import Chunk, PendingBatch
from workers.spans import Progress
from workers.stats import Metrics, StepStats
from workers.types import Prompt, Sampling

SAMPLING = Sampling(num_generations=2, max_completion_length=4)


def batch(num_chunks: int = 1) -> PendingBatch:
    rollout: Any = LocalGang("rollout", [FakeRollout([])])
    reward: Any = LocalGang("reward", [FakeReward([])])
    chunks = []
    for index in range(num_chunks):
        prompts = [Prompt(id=f"p{index}", text="")]
        experience = [rollout.one(FakeRollout.generate, prompts, SAMPLING, None, None, index)]
        scores = reward.all(FakeReward.score, experience)
        chunks.append(Chunk(index=index, prompts=1, experience=experience, scores=scores))
    return PendingBatch(chunks=chunks)


class Learning:
    """Learners of fakes, with everything that a step calls back."""

    def __init__(
        self,
        num_updates: int = 1,
        *,
        ranks: int = 1,
        critic: bool = False,
        learner: Callable[..., FakeLearner] = FakeLearner,
        **settings: Any,
    ) -> None:
        self.events: Events = []
        self.progress: list[Progress] = []
        self.updates: list[tuple[int, int, Metrics]] = []
        policy: Any = LocalGang(
            "policy", [learner(self.events, rank=rank, num_updates=num_updates) for rank in range(ranks)]
        )
        critics: Any = LocalGang("critic", [FakeLearner(self.events, head="values", num_updates=num_updates)])
        self.learners = Learners(policy, critics if critic else None, **settings)

    def learn(self, step: int = 3, pending: PendingBatch | None = None, **more: Any) -> Metrics:
        return self.learners.learn(step, pending or batch(), None, "pairs.parquet", self._pause, self._updated, **more)

    def _pause(self, progress: Progress) -> None:
        self.events.append(f"pause after {progress.updates}")
        self.progress.append(progress)

    def _updated(self, update: int, num_updates: int, metrics: Metrics) -> None:
        self.events.append(f"update {update} is recorded")
        self.updates.append((update, num_updates, metrics))


# ------------------------------------------------------------------------------------------------ calls


def test_policy_and_critic_train_on_the_same_batch() -> None:
    learning = Learning(2, ranks=2, critic=True)
    metrics = learning.learn()
    assert learning.events == [
        "critic 0: infer",
        "policy 0: learn step 3 from v0 with scores values",
        "policy 1: learn step 3 from v0 with scores values",
        "critic 0: learn step 3 from v0 with scores values",
        "critic 0: update 2 of step 3",
        "policy 0: update 2 of step 3",
        "policy 1: update 2 of step 3",
        "update 1 is recorded",
        "update 2 is recorded",
    ]
    # The ranks' shares are summed, and the critic's metrics have a prefix: (0.5 + 1) / 2 each.
    assert metrics.pop("timing/learn") == metrics.pop("critic/timing/learn") == 0
    assert metrics == {
        "loss": 1.5,
        "num_tokens": 8.0,
        "num_updates": 2.0,
        "grad_norm": 1.5,
        "critic/loss": 0.75,
        "critic/num_tokens": 8.0,
        "critic/num_updates": 2.0,
        "critic/grad_norm": 1.5,
    }


def test_what_learners_compute_themselves_comes_chunk_by_chunk_before_the_first_update() -> None:
    learning = Learning(critic=True, needs_old=True)
    learning.learn(pending=batch(num_chunks=2))
    assert learning.events == [
        "critic 0: infer",
        "critic 0: infer",
        "policy 0: infer as sampled",
        "policy 0: infer as sampled",
        "policy 0: learn step 3 from v0 with scores values old",
        "critic 0: learn step 3 from v0 with scores values old",
        "update 1 is recorded",
    ]


# ------------------------------------------------------------------------------------------------ updates


def test_each_update_has_its_own_means() -> None:
    """The n-th update has loss 0.5 n on each of two ranks, and gradient norm n. The step has their means."""
    learning = Learning(4, ranks=2)
    metrics = learning.learn()
    assert [(update, count) for update, count, _ in learning.updates] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [row for *_, row in learning.updates] == [{"loss": float(n), "grad_norm": float(n)} for n in (1, 2, 3, 4)]
    assert metrics["loss"] == sum(row["loss"] for *_, row in learning.updates) / 4
    assert metrics["grad_norm"] == 2.5


def test_a_step_without_updates_has_no_row() -> None:
    learning = Learning(0)
    assert learning.learn()["num_updates"] == 0
    assert learning.updates == []
    assert len(learning.events) == 1


def test_a_step_that_is_cut_short_requests_no_further_update_and_has_the_means_of_those_made() -> None:
    learning, answers = Learning(5), iter([False, True])
    metrics = learning.learn(stop=lambda: next(answers))
    assert learning.events == [
        "policy 0: learn step 3 from v0 with scores",
        "policy 0: update 2 of step 3",
        "update 1 is recorded",
        "update 2 is recorded",
    ]
    assert (metrics["loss"], metrics["num_updates"], metrics["grad_norm"]) == (pytest.approx(0.75), 2, 1.5)


class MeasuredLearner(FakeLearner):
    """Learner with a metric of the step's experience, and extremes of each update."""

    def step(self, *args: Any, **kwargs: Any) -> StepStats:
        stats = super().step(*args, **kwargs)
        stats.facts.update({"reward": 0.5, "sampling/reward": 0.5})
        return StepStats(
            sums={**stats.sums, "sampling/logp_difference": 0.25},
            maxima={"max_ratio": 3.0, "sampling/logp_difference_max": 0.5},
            minima={"min_ratio": 0.5},
            facts={**stats.facts, "learning_rate": 1e-6},
            left=stats.left,
        )


def test_metrics_of_the_experience_belong_to_the_step_and_not_to_its_first_update() -> None:
    learning = Learning(2, learner=MeasuredLearner)
    metrics = learning.learn()
    first, second = (row for *_, row in learning.updates)
    assert first == {"loss": 0.5, "grad_norm": 1.0, "learning_rate": 1e-6, "max_ratio": 3.0, "min_ratio": 0.5}
    assert second == {"loss": 1.0, "grad_norm": 2.0}
    assert (metrics["reward"], metrics["sampling/logp_difference"], metrics["max_ratio"]) == (0.5, 0.25, 3.0)


# ------------------------------------------------------------------------------------------------ pauses


def test_while_a_step_pauses_no_update_is_under_way() -> None:
    learning = Learning(5, every_updates=2)
    learning.learn()
    assert learning.events == [
        "policy 0: learn step 3 from v0 with scores",
        "policy 0: update 2 of step 3",
        "update 1 is recorded",
        "update 2 is recorded",
        "pause after 2",
        "policy 0: update 3 of step 3",
        "policy 0: update 4 of step 3",
        "update 3 is recorded",
        "update 4 is recorded",
        "pause after 4",
        "policy 0: update 5 of step 3",
        "update 5 is recorded",
    ]
    assert [progress.stats.left for progress in learning.progress] == [3, 1]


def test_a_step_that_halts_pauses_after_its_update_and_returns_nothing() -> None:
    learning, answers = Learning(5, critic=True), iter([False, True])
    assert learning.learn(halts=lambda: next(answers)) is None
    assert learning.events[-4:] == [
        "policy 0: update 2 of step 3",
        "update 1 is recorded",
        "update 2 is recorded",
        "pause after 2",
    ]
    (progress,) = learning.progress
    assert (progress.updates, progress.stats.left) == (2, 3)
    assert progress.critic is not None
    assert progress.critic.sums == {"loss": pytest.approx(0.3)}  # (0.5 + 1) / 5


def test_a_step_that_an_earlier_attempt_has_begun_computes_nothing_from_the_updated_weights() -> None:
    stats = StepStats(sums={"loss": 0.25}, maxima={}, facts={"num_updates": 1.0, "grad_norm": 1.0}, left=1)
    begun = Progress(updates=1, stats=stats, critic=stats)
    learning = Learning(2, critic=True, needs_old=True, progress=begun)
    metrics = learning.learn()
    assert learning.events == [
        "policy 0: learn step 3 from v0 with scores",
        "critic 0: learn step 3 from v0 with scores",
        "update 2 is recorded",
    ]
    assert metrics is not None
    assert metrics["critic/loss"] == 0.25 + 0.5


class UnevenLearner(FakeLearner):
    """Learner whose losses and norms are not exact in binary, so that another order of sums gives another result."""

    def _updates(self, span: Any) -> StepStats:
        stats = super()._updates(span)
        n = span.first + 1
        return StepStats(
            sums={"loss": 0.1 * n / 7},
            maxima={"max_ratio": 1 + 0.1 * n},
            minima={"min_ratio": 1 - 0.1 * n},
            facts={**stats.facts, "grad_norm": 0.1 / n},
            left=stats.left,
        )


@pytest.mark.parametrize("every", [1, 3])
def test_a_step_that_is_resumed_after_any_pause_has_the_metrics_of_an_uninterrupted_one(every: int) -> None:
    """Compare to the bit, after the statistics so far went through the JSON of a checkpoint."""
    whole = Learning(20, every_updates=every, learner=UnevenLearner)
    expected = whole.learn()
    assert whole.progress
    for progress in whole.progress:
        stats = StepStats(**json.loads(json.dumps(asdict(progress.stats))))
        resumed = Learning(
            20,
            every_updates=every,
            learner=UnevenLearner,
            progress=Progress(updates=progress.updates, stats=stats),
        )
        assert resumed.learn() == expected
        assert [update for update, *_ in resumed.updates] == list(range(progress.updates + 1, 21))
        assert resumed.updates == whole.updates[progress.updates :]


def test_progress_counts_for_the_first_step_alone() -> None:
    stats = StepStats(sums={"loss": 0.25}, maxima={}, facts={"num_updates": 1.0, "grad_norm": 1.0}, left=1)
    learning = Learning(2, progress=Progress(updates=1, stats=stats))
    first, second = learning.learn(3), learning.learn(4)
    assert (first["num_updates"], second["num_updates"]) == (2, 2)
    assert [update for update, *_ in learning.updates] == [2, 1, 2]


def test_pairs_that_only_the_policy_sees_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Far(FakeLearner):
        def sizes_in(self, directory: str, pattern: str) -> Mapping[str, int]:
            assert (directory, pattern) == (str(tmp_path), "*.parquet")
            return {"pairs.parquet": 9}

    monkeypatch.setattr("workers.files.shared_storage.LAG_S", 0.0)
    learners = Learning(learner=Far).learners
    with pytest.raises(FilesLost, match=r"policy rank 0 wrote pairs\.parquet, not seen from here"):
        learners.learn(3, batch(), None, f"{tmp_path}/pairs.parquet")
    (tmp_path / "pairs.parquet").write_bytes(b"123456789")
    learners.learn(4, batch(), None, f"{tmp_path}/pairs.parquet")
