"""Agreement of the log-probabilities of engine, learner and reference, before and after every publication."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attempts import recipe
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from orchestrator.cluster.base import Gang, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.data import read_prompts
from orchestrator.pipeline.exports import write_model
from orchestrator.pipeline.publishing import EnginePublisher
from orchestrator.pipeline.reference import ReferenceGang
from orchestrator.pipeline.roles import gang_plans
from orchestrator.pipeline.sources import Chunk
from workers.config import ReferenceConfig
from workers.learner import Learner
from workers.reference import Reference
from workers.rollout import Rollout
from workers.stats import Metrics, merge_stats
from workers.types import Experience, Finish, Prompt, Sampling, Scores, assemble
from workers.weights import segment_path

pytestmark = pytest.mark.stack

TOLERANCE = 1e-4
REFERENCES = {"qwen2": "{num_ranks: 1, zero_stage: 0}", "llama": "{num_ranks: 2, zero_stage: 3}"}


@dataclass
class Gangs:
    """Gangs of a run without its loop."""

    policy: Gang[Learner]
    reference: Gang[Reference]
    rollout: Gang[Rollout]
    publisher: EnginePublisher
    prompts: tuple[Prompt, ...]
    directory: Path
    version: int = field(default=0)

    def sample(self, temperature: float = 1.0, seed: int = 0) -> Experience:
        sampling = Sampling(num_generations=4, max_completion_length=12, temperature=temperature, seed=seed)
        return self.rollout.one(Rollout.generate, self.prompts, sampling).result()

    def train_on_random_rewards(self) -> None:
        """Train one step on random rewards, so that the weights change."""
        experience = self.sample()
        rewards = np.random.default_rng(self.version).random(len(experience.completions), np.float32)
        assert self._step(experience, rewards)["num_updates"] > 0

    def publish(self) -> None:
        self.version += 1
        self.publisher.publish(self.version)

    def gap(self, experience: Experience) -> float:
        """Return the largest difference (nats) between engine and learner.

        A training step reports it. Rewards are equal, so the step makes no update.
        """
        metrics = self._step(experience, np.zeros(len(experience.completions), np.float32))
        assert metrics["num_updates"] == 0
        return metrics["sampling/logp_difference_max"]

    def refresh(self) -> Path:
        """Load the policy's weights into the reference through a directory, and return that directory."""
        directory = self.directory / f"version-{self.version}"
        wait(self.policy.all(Learner.export, str(directory)))
        wait(self.reference.all(Reference.load, str(directory)))
        return directory

    def reference_logprobs(self, experience: Experience) -> NDArray[np.float32]:
        shares = wait(self.reference.all(Reference.logprobs, [experience], experience.temperature))
        return assemble(shares, experience.completions)

    def _step(self, experience: Experience, rewards: NDArray[np.float32]) -> Metrics:
        reference = self.reference.all(Reference.logprobs, [experience])
        scores = [Scores(rewards=rewards, by_scorer={})]
        return merge_stats(wait(self.policy.all(Learner.step, self.version, [experience], scores, reference, None)))


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def gangs(request: pytest.FixtureRequest, head: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gangs]:
    family: Path = request.getfixturevalue(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(family)
        config = recipe("agreement", f"reference={REFERENCES[request.param]}").stages[0]
        cluster = RayCluster(config.cluster)
        plans = [p for p in gang_plans(config, cuda=False, max_steps=4) if p.role != "reward"]
        prompts = read_prompts("long.jsonl")
    try:
        spawned = cluster.spawn(plans)
        policy, reference, rollout = spawned["policy"], spawned["reference"], spawned["rollout"]
        segment = segment_path(f"agreement-{request.param}")
        publisher = EnginePublisher(policy, rollout, cuda=False, segment=segment, tensor_parallel_size=1)
        directory = tmp_path_factory.mktemp(f"agreement-{request.param}")
        yield Gangs(policy, reference, rollout, publisher, prompts, directory)
        wait(policy.all(Learner.close))
        assert not Path(segment).exists()
    finally:
        cluster.shutdown()


def test_engine_learner_and_reference_agree_before_and_after_every_publication(gangs: Gangs) -> None:
    for version in range(3):
        if version:
            gangs.train_on_random_rewards()
            assert gangs.gap(gangs.sample()) > 100 * TOLERANCE, "the engine still has the old weights"
            gangs.publish()
        directory = gangs.refresh()
        for temperature in (1.0, 0.7):
            experience = gangs.sample(temperature)
            assert set(experience.versions) == {version}
            assert experience.logprobs is not None
            assert gangs.gap(experience) < TOLERANCE
            np.testing.assert_allclose(gangs.reference_logprobs(experience), experience.logprobs, atol=TOLERANCE)
            np.testing.assert_allclose(_by_transformers(directory, experience), experience.logprobs, atol=TOLERANCE)


def test_equal_seeds_draw_equal_completions(gangs: Gangs) -> None:
    first, repeated, other = gangs.sample(seed=1), gangs.sample(seed=1), gangs.sample(seed=2)
    assert _texts(first) == _texts(repeated)
    assert _texts(first) != _texts(other)


def test_another_version_of_equal_weights_draws_other_completions(gangs: Gangs) -> None:
    before = gangs.sample()
    gangs.publish()
    after = gangs.sample()
    assert _texts(before) != _texts(after)
    assert gangs.gap(after) < TOLERANCE


def test_a_policy_that_is_its_reference_has_not_drifted_at_any_temperature(gangs: Gangs) -> None:
    gangs.refresh()
    config = ReferenceConfig(refresh="when_drifted")
    for sampled_at in (1.0, 0.7):
        reference_policy = ReferenceGang(
            gangs.reference,
            partial(write_model, gangs.policy),
            config,
            temperature=1.0,
            drift_temperature=lambda step, at=sampled_at: at,
            directory=lambda version: gangs.directory,
        )
        experience: Any = gangs.sample(sampled_at)
        reference_policy.logprobs(1, Chunk(index=0, prompts=1, experience=[experience], scores=None))
        decision = reference_policy.decision()
        assert decision is not None
        assert decision.drift is not None
        assert decision.drift.kl == pytest.approx(0, abs=TOLERANCE)


def test_an_ignored_end_token_does_not_end_a_completion(gangs: Gangs) -> None:
    sampling = Sampling(num_generations=32, max_completion_length=40)
    ended = gangs.rollout.one(Rollout.generate, gangs.prompts, sampling).result()
    assert (ended.finish == Finish.stop).any()
    whole = gangs.rollout.one(Rollout.generate, gangs.prompts, replace(sampling, ignore_eos=True)).result()
    assert (whole.finish == Finish.length).all()
    assert (whole.completions.lengths == 40).all()


@pytest.mark.long
def test_more_completions_than_the_cache_holds_agree_as_well(gangs: Gangs) -> None:
    """Check requests that wait, or are preempted and prefilled again with their own random generators."""
    sampling = Sampling(num_generations=48, max_completion_length=100, ignore_eos=True)
    sampled = gangs.rollout.one(Rollout.generate, gangs.prompts, sampling).result()
    repeated = gangs.rollout.one(Rollout.generate, gangs.prompts, sampling).result()
    assert _texts(sampled) == _texts(repeated)
    assert gangs.gap(sampled) < TOLERANCE


def _texts(experience: Experience) -> list[list[int]]:
    return [tokens.tolist() for tokens in experience.completions]


def _by_transformers(directory: Path, experience: Experience) -> NDArray[np.float32]:
    """Return log-probabilities of the exported weights by plain transformers, one forward pass per completion."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    parts = []
    for prompt, tokens in zip(experience.group_of, experience.completions, strict=True):
        inputs = torch.from_numpy(np.concatenate([experience.prompt_tokens[prompt], tokens]).astype(np.int64))
        with torch.no_grad():
            logits = model(inputs[None]).logits[0, -len(tokens) - 1 : -1] / experience.temperature
        parts.append(logits.log_softmax(-1).gather(1, inputs[-len(tokens) :, None])[:, 0].numpy())
    return np.concatenate(parts)
