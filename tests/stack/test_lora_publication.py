"""Publication of adapters: the engine samples from the version it reports, and does not sample after a failure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attempts import recipe

from orchestrator.cluster.base import Gang, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.data import read_prompts
from orchestrator.errors import RlhfError
from orchestrator.pipeline.publishing import AdapterPublisher
from orchestrator.pipeline.roles import gang_plans
from workers.learner import Learner
from workers.rollout import Rollout
from workers.stats import merge_stats
from workers.types import Experience, Prompt, Sampling, Scores, assemble

pytestmark = pytest.mark.stack

TOLERANCE = 1e-4
LORA = "model.lora={r: 4, lora_alpha: 8}"  # vLLM allocates rank 8: the padding must have no effect


@dataclass
class Gangs:
    """Gangs of a run without its loop."""

    policy: Gang[Learner]
    rollout: Gang[Rollout]
    publisher: AdapterPublisher
    prompts: tuple[Prompt, ...]
    directory: Path  # of the adapters
    version: int = field(default=0)

    def sample(self) -> Experience:
        sampling = Sampling(num_generations=4, max_completion_length=12)
        return self.rollout.one(Rollout.generate, self.prompts, sampling).result()

    def train(self, experience: Experience, rewards: Any) -> dict[str, float]:
        reference = self.policy.all(Learner.base_logprobs, [experience], 1.0, False)
        scores = [Scores(rewards=np.asarray(rewards, np.float32), by_scorer={})]
        answers = self.policy.all(Learner.step, self.version, [experience], scores, reference, None)
        return dict(merge_stats(wait(answers)))

    def train_on_random_rewards(self) -> None:
        experience = self.sample()
        rewards = np.random.default_rng(self.version).random(len(experience.completions))
        assert self.train(experience, rewards)["num_updates"] > 0

    def gap(self) -> float:
        """Return the largest difference (nats) between engine and learner.

        A training step reports it. Rewards are equal, so the step makes no update.
        """
        experience = self.sample()
        assert set(experience.versions) == {self.version}
        metrics = self.train(experience, np.zeros(len(experience.completions)))
        assert metrics["num_updates"] == 0
        return metrics["sampling/logp_difference_max"]

    def publish(self) -> None:
        self.version += 1
        self.publisher.publish(self.version)


@pytest.fixture(scope="module")
def gangs(qwen2: Path, head: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gangs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(qwen2)
        config = recipe("agreement", LORA).stages[0]
        cluster = RayCluster(config.cluster)
        plans = gang_plans(config, cuda=False, max_steps=4)
        prompts = read_prompts("long.jsonl")
    assert [p.role for p in plans] == ["policy", "rollout", "reward"], "DPO without a second model"
    try:
        spawned = cluster.spawn([replace(p, restarts=0) for p in plans if p.role != "reward"])
        directory = tmp_path_factory.mktemp("run") / "adapters"
        publisher = AdapterPublisher(spawned["policy"], spawned["rollout"], directory=directory)
        yield Gangs(spawned["policy"], spawned["rollout"], publisher, prompts, directory)
        wait(spawned["policy"].all(Learner.close))
    finally:
        cluster.shutdown()


def test_engine_and_learner_agree_before_and_after_every_publication(gangs: Gangs, qwen2: Path) -> None:
    assert gangs.gap() < TOLERANCE
    first = gangs.sample()
    assert first.logprobs is not None
    for _ in range(3):
        gangs.train_on_random_rewards()
        assert gangs.gap() > 100 * TOLERANCE, "the engine still has the adapters of the version before"
        gangs.publish()
        assert gangs.gap() < TOLERANCE
        # The base model with adapters disabled keeps its first log-probabilities.
        shares = wait(gangs.policy.all(Learner.base_logprobs, [first], 1.0, False))
        np.testing.assert_allclose(assemble(shares, first.completions), first.logprobs, atol=TOLERANCE)
    assert sorted(p.name for p in gangs.directory.iterdir()) == ["version-2", "version-3"]


def test_a_failed_publication_is_noticed_and_nothing_is_sampled_after_it(gangs: Gangs, tmp_path: Path) -> None:
    gangs.publish()
    gangs.sample()
    gangs.train_on_random_rewards()
    newest, next_version = gangs.directory / f"version-{gangs.version}", gangs.version + 1
    with pytest.raises(RlhfError, match=f"holds version {gangs.version}, not version {next_version}"):
        wait(gangs.rollout.all(Rollout.receive_adapter, str(newest), next_version, None))  # a stale directory
    with pytest.raises(RlhfError, match=f"version {next_version} did not arrive whole"):
        gangs.sample()
    with pytest.raises(RlhfError, match="holds no adapter"):
        wait(gangs.rollout.all(Rollout.receive_adapter, str(tmp_path / "nowhere"), next_version, None))
    with pytest.raises(RlhfError, match="already holds adapters of version"):
        wait(gangs.rollout.all(Rollout.receive_adapter, str(newest), gangs.version, None))
    torn = tmp_path / "torn"
    wait(gangs.policy.all(Learner.send_adapter, str(torn), next_version))
    (torn / "adapter_config.json").write_text("{")
    with pytest.raises(RlhfError):
        wait(gangs.rollout.all(Rollout.receive_adapter, str(torn), next_version, None))
    with pytest.raises(RlhfError, match="did not arrive whole"):
        gangs.sample()
    gangs.publish()  # a complete publication makes the engine usable again
    assert gangs.gap() < TOLERANCE
