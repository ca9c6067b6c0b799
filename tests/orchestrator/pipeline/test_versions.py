"""Workers refuse to answer with other weights than the call asks for, whatever publications are broken."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Events, FakeLearner, experience

from configs.quickstart.tiny import character_tokenizer, create_model
from orchestrator.cluster.base import wait
from orchestrator.cluster.local import LocalGang
from orchestrator.pipeline.exports import write_model
from orchestrator.pipeline.publishing import EnginePublisher
from orchestrator.pipeline.reference import ReferenceGang
from orchestrator.pipeline.sources import Chunk, PendingBatch, RolloutSource
from workers.config import ModelConfig, ReferenceConfig, RolloutConfig
from workers.engines.base import Request, Response, VersionMismatch
from workers.reference import Reference
from workers.rollout import Rollout
from workers.types import Finish, Prompt, Sampling, merge
from workers.weights import Manifest

SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
PROMPTS = [Prompt(id=f"p{i}", text="ab>") for i in range(6)]
NUM_ENGINES = 3


class LossySampler:
    """Engine whose next publication may fail: `lost` keeps the old weights, `broken` raises."""

    def __init__(self) -> None:
        self.version, self.next = 0, ""

    def generate(self, requests: Sequence[Request], **_: Any) -> list[Response]:
        return [Response(np.ones(1, np.int32), np.zeros(1, np.float32), Finish.stop) for _ in requests]

    def receive(self, manifest: Manifest, version: int, rank_offset: int = 1) -> None:
        if self.next == "broken":
            raise RuntimeError("the connection was reset")
        if self.next != "lost":
            self.version = version

    def receive_adapter(self, directory: str, version: int) -> None:
        raise AssertionError("whole weights travel here")


class LossyRollout(Rollout):
    """Real rollout worker with a lossy engine."""

    sampler: LossySampler

    def _start(self, model: ModelConfig, max_model_len: int, *, seed: int, cuda: bool) -> Any:
        self.sampler = LossySampler()
        return self.sampler


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    create_model(directory, SHAPE, character_tokenizer("ab>"), seed=0)
    return directory


class Setup:
    """Three engines, a publisher and a source that may run `max_staleness` versions ahead."""

    def __init__(self, model: Path, max_staleness: int = 0) -> None:
        config, origin = RolloutConfig(max_prompt_length=8, max_completion_length=4), ModelConfig(path=str(model))
        self.engines = [LossyRollout(origin, config, index=i, seed=0, cuda=False) for i in range(NUM_ENGINES)]
        rollout: Any = LocalGang("rollout", self.engines)
        policy: Any = LocalGang("policy", [FakeLearner([])])
        self.publisher = EnginePublisher(policy, rollout, cuda=False, segment="segment", tensor_parallel_size=1)
        self.source = RolloutSource(
            rollout,
            None,
            PROMPTS,
            Sampling(num_generations=2, max_completion_length=4),
            prompts_per_step=6,
            max_staleness=max_staleness,
            max_steps=9,
            on_begin=lambda step, chunk: None,
        )

    def versions(self, step: int) -> list[int]:
        """Return the versions that the batch of a step was sampled from."""
        return sorted(set(merge(wait(self.batch(step).experience)).versions.tolist()))

    def batch(self, step: int) -> PendingBatch:
        return PendingBatch(chunks=list(self.source.stream(step)))

    def publish_and_sample(self, version: int) -> None:
        self.publisher.publish(version)
        self.batch(version)


def test_a_batch_is_of_the_version_that_trains_on_it(model: Path) -> None:
    setup = Setup(model)
    assert setup.versions(0) == [0]
    setup.publisher.publish(1)
    assert setup.versions(1) == [1]


def test_a_hundred_publications_that_reach_half_of_the_engines_give_no_batch(model: Path) -> None:
    setup, rng, refused = Setup(model), random.Random(0), 0
    for version in range(1, 101):
        faulty_engine = rng.randrange(NUM_ENGINES)
        setup.engines[faulty_engine].sampler.next = fault = rng.choice(["lost", "broken"])
        # In this process a call has ended when it returns, so a broken publication raises at once.
        with pytest.raises(VersionMismatch, match=r"version \d+ did not arrive|was asked for version \d+"):
            setup.publish_and_sample(version)
        refused += 1
        assert setup.engines[faulty_engine].sampler.version == version - 1, fault
        setup.engines[faulty_engine].sampler.next = ""
        for engine in setup.engines:
            engine.sampler.version = version  # restored
        setup.publisher._under_way = ()
        assert len(wait(setup.batch(version).experience)) == NUM_ENGINES
    assert refused == 100


def test_a_lagging_engine_may_answer_within_the_staleness_and_not_beyond(model: Path) -> None:
    setup = Setup(model, max_staleness=1)
    assert setup.versions(0) == [0]  # the batch of step 1, which was begun ahead, is of version 0 too
    setup.engines[1].sampler.next = "lost"
    setup.publisher.publish(1)
    with pytest.raises(VersionMismatch, match=r"holds version 0 of the policy, .* one of versions 1 to 2"):
        setup.batch(1)
    setup.engines[1].sampler.version, setup.engines[1].sampler.next = 1, ""  # restored
    assert setup.versions(1) == [0]
    setup.publisher.publish(2)
    assert setup.versions(2) == [1]


def test_an_engine_that_is_ahead_is_refused_too(model: Path) -> None:
    setup = Setup(model)
    for engine in setup.engines:
        engine.sampler.version = 5
    with pytest.raises(VersionMismatch, match=r"holds version 5 of the policy, and was asked for version 4$"):
        setup.batch(4)


class TestReference:
    """Real reference worker with one rank."""

    @pytest.fixture
    def reference_policy(self, model: Path) -> ReferenceGang:
        worker = Reference(
            ModelConfig(path=str(model), dtype="float32"),
            ReferenceConfig(),
            rank=0,
            address="",
            port=0,
            cuda=False,
            chunk=4,
        )
        self.reference = worker
        gang: Any = LocalGang("reference", [worker])
        events: Events = []
        policy: Any = LocalGang("policy", [FakeLearner(events)])
        config = ReferenceConfig(refresh="every_round")
        return ReferenceGang(
            gang, partial(write_model, policy), config, temperature=1.0, directory=lambda version: model
        )

    @pytest.fixture
    def sampled(self) -> Chunk:
        gang: Any = LocalGang("rollout", [Ready()])
        return Chunk(index=0, prompts=1, experience=gang.all(Ready.sample), scores=None)

    def test_the_reference_scores_if_it_holds_the_version_of_the_run(
        self, reference_policy: ReferenceGang, sampled: Chunk
    ) -> None:
        (share,) = wait(reference_policy.logprobs(0, sampled))
        assert len(share.values) == 2

    def test_the_reference_refuses_another_version(
        self, reference_policy: ReferenceGang, sampled: Chunk, model: Path
    ) -> None:
        self.reference.load(str(model), version=3)
        with pytest.raises(VersionMismatch, match="the reference holds version 3, and was asked for version 0"):
            reference_policy.logprobs(0, sampled)

    def test_a_refresh_that_fails_leaves_no_version(self, reference_policy: ReferenceGang, sampled: Chunk) -> None:
        with pytest.raises(OSError, match="connect"):
            self.reference.load("no-such-model", version=1)  # no such directory, and tests download nothing
        with pytest.raises(VersionMismatch, match="asked for version 0"):
            reference_policy.logprobs(0, sampled)

    def test_a_new_worker_loads_the_version_of_the_run(
        self, reference_policy: ReferenceGang, sampled: Chunk, model: Path
    ) -> None:
        reference_policy.version = 4
        reference_policy._restore_state(LocalGang("reference", [self.reference]))  # type: ignore[arg-type]
        assert len(wait(reference_policy._score(sampled.experience, 1.0))) == 1


class Ready:
    def sample(self) -> Any:
        return experience([([1, 2], [[1, 2]])], logprobs=[-1.0, -1.0])
