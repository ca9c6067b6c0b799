"""The chunk of given pairs: after the samples of a round, from the rounds before it and from the dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeReward, FakeRollout, experience
from recipe_dir import RecipeDir

from orchestrator.cluster.base import wait
from orchestrator.cluster.local import LocalGang
from orchestrator.config import RunConfig, load
from orchestrator.pipeline.mixing import MixedSource
from orchestrator.pipeline.roles import gang_plans
from orchestrator.pipeline.rounds import draws
from orchestrator.pipeline.sources import Chunk, PendingBatch, RolloutSource
from workers.given import GIVEN
from workers.mixing import Mix
from workers.types import Example, Experience, Prompt, Sampling

COUNT = 4
PROMPTS = [Prompt(id=f"p{i}", text="") for i in range(20)]
ROWS = [Example(prompt=Prompt(id=f"d{i}", text=""), completions=("a", "b"), scores=(1.0, 0.0)) for i in range(9)]
Configured = Callable[..., RunConfig]


@pytest.fixture
def configured(recipe_dir: RecipeDir) -> Configured:
    def run(rounds: str, **changes: str) -> RunConfig:
        algorithm = f"{{type: dpo, prompts_per_step: 4, num_generations: 2, max_steps: {COUNT}}}"
        data = f"{{prompts: ./prompts.jsonl{', dataset: ./pairs.jsonl' if 'dataset' in rounds else ''}}}"
        return load(recipe_dir.recipe({"algorithm": algorithm, "rounds": rounds, "data": data, **changes})).stages[0]

    return run


class Mixer:
    """Encoder that keeps what it is asked to mix in."""

    def __init__(self) -> None:
        self.asked: list[Mix] = []

    def mix(self, mix: Mix) -> Experience:
        self.asked.append(mix)
        return experience([([7], [[1], [2]])], logprobs=[0.0] * 2, rewards=[1, 0], version=GIVEN, chunk=mix.chunk)


def streamed(run: RunConfig, *, seed: int = 0) -> tuple[list[list[Chunk]], list[Mix]]:
    """Return the chunks of every round, and what was mixed in."""
    mixer, rollout, reward = Mixer(), LocalGang("rollout", [FakeRollout([])]), LocalGang("reward", [FakeReward([])])
    source = RolloutSource(
        rollout,  # type: ignore[arg-type]
        reward,  # type: ignore[arg-type]
        PROMPTS,
        Sampling(num_generations=2, max_completion_length=4),
        prompts_per_step=4,
        max_staleness=0,
        max_steps=COUNT,
        on_begin=lambda step, chunk: None,
        rounds=draws(run, (20,), rollbacks=0),
    )
    encoder: Any = LocalGang("dataset", [mixer])
    rows = ROWS if run.data.dataset is not None else []
    mixed = MixedSource(source, encoder, run, rows, directory=lambda n: Path("rounds") / str(n), seed=seed)
    return [list(mixed.stream(step)) for step in range(COUNT)], mixer.asked


@pytest.mark.parametrize(("last", "expected"), [("1", [[1], [2], [3]]), ("2", [[1], [1, 2], [2, 3]])])
def test_pairs_are_of_the_rounds_before(configured: Configured, last: str, expected: list[list[int]]) -> None:
    chunks, asked = streamed(configured(f"{{mix: {{earlier_rounds: 1.5, last: {last}}}}}"))
    assert not any(chunk.given for chunk in chunks[0]), "there is no round before the first"
    assert [list(mix.rounds) for mix in asked] == expected
    assert asked[0].rounds == {1: "rounds/1"}
    assert [mix.num_earlier for mix in asked] == [6, 6, 6]


def test_all_rounds_so_far(configured: Configured) -> None:
    _, asked = streamed(configured("{mix: {earlier_rounds: 1.0, last: null}, prompts_per_step: [4, 6]}"))
    assert [list(mix.rounds) for mix in asked] == [[1], [1, 2], [1, 2, 3]]
    assert [mix.num_earlier for mix in asked] == [6, 6, 6]


def test_rows_of_the_dataset_are_others_in_each_round_until_all_have_come(configured: Configured) -> None:
    _, asked = streamed(configured("{mix: {dataset: 0.75}, prompts_per_step: [4, 4, 4, 2]}"))
    ids = [[row.prompt.id for row in mix.examples] for mix in asked]
    assert [len(own) for own in ids] == [3, 3, 3, 2]
    assert sorted(id for own in ids[:3] for id in own) == [f"d{i}" for i in range(9)]


def test_what_is_mixed_in_depends_on_the_seed_and_the_round_alone(configured: Configured) -> None:
    run = configured("{mix: {dataset: 1.0, earlier_rounds: 1.0}}")
    first, again, other = (streamed(run, seed=seed)[1] for seed in (0, 0, 1))
    assert first == again
    assert len({mix.seed for mix in first}) == COUNT
    assert [mix.seed for mix in first] != [mix.seed for mix in other]
    assert [mix.examples for mix in first] != [mix.examples for mix in other]


def test_the_chunk_is_the_last_and_has_no_prompts_to_sample_and_nothing_to_score(configured: Configured) -> None:
    rollout = "{max_prompt_length: 4, max_completion_length: 4, tokens_per_chunk: 32}"
    chunks, _ = streamed(configured("{mix: {dataset: 1.0}}", rollout=rollout))
    for of_round in chunks:
        *sampled, given = of_round
        assert [chunk.index for chunk in of_round] == [0, 1, 2]
        assert (given.given, given.prompts, given.scores) == (True, 0, None)
        assert [part.chunk for part in wait(given.experience)] == [2]
        pending = PendingBatch(chunks=of_round)
        assert pending.sampled == sampled
        assert pending.scores is not None
        assert len(wait(pending.scores)) == len(sampled)
        assert len(wait(pending.experience)) == len(of_round)


def test_the_role_that_mixes_is_started(configured: Configured) -> None:
    for rounds, wanted in (("{mix: {earlier_rounds: 1.0}}", True), ("{mix: {dataset: 0.5}}", True), ("{}", False)):
        roles = [plan.role for plan in gang_plans(configured(rounds), cuda=False, max_steps=COUNT)]
        assert ("dataset" in roles) == wanted
