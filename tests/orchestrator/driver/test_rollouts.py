"""Stored rollouts: when a chunk is recorded, what is waited for, and what the next attempt reads back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Events, FakeReward, FakeRollout, experience

from orchestrator.cluster.base import Handle, wait
from orchestrator.cluster.local import LocalGang
from orchestrator.driver.rollouts import Rollouts
from orchestrator.errors import ResumeError
from orchestrator.pipeline.sources import Chunk, PendingBatch, RolloutSource
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Ledger
from workers.files.rollout_files import read_experience, read_scores, write_experience, write_scores
from workers.types import Experience, Prompt, Sampling, Scores, merge, merge_scores

PROMPTS = [Prompt(id=f"p{i}", text="") for i in range(5)]
SAMPLING = Sampling(num_generations=2, max_completion_length=4)
ONE = np.ones(1, np.float32)


# ------------------------------------------------------------------------------------------------ one attempt


@dataclass
class Call:
    """Handle of a call that ends when the test says so. The first `late` questions are answered with not yet."""

    name: str
    events: Events = field(default_factory=list)
    ended: bool = False
    late: int = 0

    def has_ended(self) -> bool:
        self.late -= 1
        return self.ended and self.late < 0

    def wait(self) -> None:
        assert self.ended, f"{self.name} has not ended"

    def result(self, timeout_s: float | None = None) -> Any:
        raise AssertionError("the driver reads no tokens here")


class Attempt:
    """Rollouts of an attempt. `script` names the calls that end, in order, each time the driver waits."""

    def __init__(self, path: Path, number: int = 1, *script: str) -> None:
        self.directory, self.notes, self.events = RunDirectory(path), list[str](), Events()
        self.ledger = Ledger.open(self.directory.ledger)
        self.calls: dict[str, Call] = {}
        self._script = list(script)
        self.rollouts = Rollouts(
            self.directory.rollouts,
            self.ledger,
            attempt=number,
            note=self.notes.append,
            wait_first=self._wait_first,
            arrived=lambda role, index, chunk: self.events.append(f"{role} {index}.{chunk.index}"),
        )

    def _wait_first(self, handles: Sequence[Handle[Any]]) -> None:
        assert handles, "there is nothing to wait for"
        waited = [handle.name for handle in handles if isinstance(handle, Call)]
        self.events.append(f"wait for {' or '.join(waited)}")
        self.calls[self._script.pop(0)].ended = True

    def request(self, index: int, chunk: int, *, engines: int = 1, scored: bool = True) -> None:
        """Register a chunk whose files are there, and whose calls have not ended: `generate 0.2 by 0`, `score 0.2`."""
        prefix = self.rollouts.file_prefix(index, chunk)
        for engine in range(engines):
            write_experience(f"{prefix}rollout-{engine}", experience([([7], [[1]])], logprobs=[-1.0], chunk=chunk))
        write_scores(f"{prefix}reward-0", Scores(rewards=ONE, by_scorer={}, chunk=chunk))
        generate = [self._call(f"generate {index}.{chunk} by {engine}") for engine in range(engines)]
        score = [self._call(f"score {index}.{chunk}")] if scored else None
        self.rollouts.register(
            index,
            Chunk(
                index=chunk,
                prompts=engines,
                experience=generate,
                scores=score,
                file_stems=tuple(f"{prefix}rollout-{engine}" for engine in range(engines)),
                score_file_stems=(f"{prefix}reward-0",) if scored else (),
            ),
        )

    def _call(self, name: str) -> Any:
        self.calls[name] = Call(name)
        return self.calls[name]

    def end(self, *names: str) -> None:
        for name in names:
            self.calls[name].ended = True

    def facts(self) -> list[str]:
        return [f"{r.fact} {r.step - 1}.{r.details['chunk']}" for r in self.ledger.records]


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    attempt = Attempt(tmp_path)
    yield attempt
    attempt.ledger.close()


def test_a_chunk_that_is_made_again_while_it_is_recorded_is_recorded_once(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the case of a call that had failed: waiting for it waits for another one, and the cluster is idle."""
    attempt.request(0, 0)
    attempt.request(0, 1)
    attempt.end("generate 0.0 by 0", "generate 0.1 by 0", "score 0.0")
    monkeypatch.setattr(Call, "wait", lambda call: attempt.rollouts.record_ended())
    attempt.rollouts.record_ended()
    assert sorted(attempt.facts()) == ["GENERATED 0.0", "GENERATED 0.1", "SCORED 0.0"]


def test_a_chunk_is_recorded_when_all_its_engines_have_ended(attempt: Attempt) -> None:
    attempt.request(0, 0, engines=2)
    attempt.end("generate 0.0 by 1")
    assert not attempt.rollouts.record_ended()
    attempt.end("generate 0.0 by 0")
    assert attempt.rollouts.record_ended()
    (record,) = attempt.ledger.records
    assert (record.step, record.details["chunk"], record.details["prompts"]) == (1, 0, 2)
    assert [f["path"] for f in record.details["files"]] == [
        "rollouts/step-1/chunk-0-rollout-0.safetensors",
        "rollouts/step-1/chunk-0-rollout-1.safetensors",
    ]
    assert attempt.events == ["rollout 0.0"]


def test_chunks_are_recorded_in_order_whatever_ends_first(attempt: Attempt) -> None:
    for chunk in range(3):
        attempt.request(0, chunk)
    attempt.end("generate 0.1 by 0")
    assert not attempt.rollouts.record_ended()
    attempt.end("generate 0.0 by 0")
    attempt.rollouts.record_ended()
    assert attempt.facts() == ["GENERATED 0.0", "GENERATED 0.1"]
    attempt.end("score 0.1")
    assert not attempt.rollouts.record_ended()
    attempt.end("score 0.0")
    attempt.rollouts.record_ended()
    assert attempt.facts()[2:] == ["SCORED 0.0", "SCORED 0.1"]
    assert attempt.events == ["rollout 0.0", "rollout 0.1", "reward 0.0", "reward 0.1"]


def test_waiting_for_a_chunk_records_what_else_ends_and_no_more(tmp_path: Path) -> None:
    script = ("generate 0.0 by 0", "generate 0.1 by 0", "score 0.0")
    attempt = Attempt(tmp_path, 1, *script)
    for chunk in range(3):
        attempt.request(0, chunk)
    attempt.rollouts.wait_for(0, 0)
    assert attempt.events == [
        "wait for generate 0.0 by 0",
        "rollout 0.0",
        "wait for generate 0.1 by 0 or score 0.0",
        "rollout 0.1",
        "wait for generate 0.2 by 0 or score 0.0",
        "reward 0.0",
    ]
    attempt.rollouts.wait_for(0, 0)
    attempt.rollouts.wait_for(5, 0)
    assert len(attempt.events) == 6, "what is recorded, or was never requested, is not waited for"


def test_a_call_that_ends_while_the_driver_looks_is_not_waited_for(attempt: Attempt) -> None:
    attempt.request(0, 0, scored=False)
    attempt.end("generate 0.0 by 0")
    attempt.calls["generate 0.0 by 0"].late = 1
    attempt.rollouts.wait_for(0, 0)
    assert attempt.facts() == ["GENERATED 0.0", "SCORED 0.0"]


def test_before_a_checkpoint_all_steps_in_flight_are_waited_for(tmp_path: Path) -> None:
    script = ("generate 1.0 by 0", "score 1.0", "generate 2.0 by 0", "generate 2.1 by 0", "score 2.1", "score 2.0")
    attempt = Attempt(tmp_path, 1, *script)
    for index, chunk in ((1, 0), (2, 0), (2, 1)):
        attempt.request(index, chunk)
    attempt.rollouts.settle()
    assert sorted(attempt.facts()) == [
        *(f"GENERATED {place}" for place in ("1.0", "2.0", "2.1")),
        *(f"SCORED {place}" for place in ("1.0", "2.0", "2.1")),
    ]


def test_steps_that_no_checkpoint_needs_are_deleted(attempt: Attempt) -> None:
    for index in range(3):
        attempt.request(index, 0)
    attempt.rollouts.drop(2)
    assert [path.name for path in attempt.directory.rollouts.iterdir()] == ["step-3"]


# ------------------------------------------------------------------------------------------------ the next attempt


class WritingRollout(FakeRollout):
    """Rollout that writes what it samples, and reads it back."""

    def generate(self, *args: Any) -> Experience:
        sampled = super().generate(*args)
        write_experience(f"{args[3]}rollout-{self._index}", sampled)
        return sampled

    def recall(self, files: Sequence[tuple[str, str]], prompts: Sequence[Prompt]) -> Experience:
        self._events.append(f"rollout {self._index}: recall {' '.join(p.id for p in prompts)}")
        return read_experience(files, prompts)


class WritingReward(FakeReward):
    """Reward that writes its scores, and reads them back."""

    def score(self, parts: Sequence[Experience], file_prefix: str | None = None) -> Scores:
        scores = super().score(parts)
        write_scores(f"{file_prefix}reward-0", scores)
        return scores

    def recall(self, files: Sequence[tuple[str, str]]) -> Scores:
        self._events.append("reward: recall")
        return read_scores(files)


class Run:
    """Attempt at a step of five prompts in chunks of `size`, by engines that hold `version`."""

    def __init__(self, path: Path, number: int, *, size: int = 2, version: int = 0, engines: int = 2) -> None:
        self.events, self.notes = Events(), list[str]()
        self.ledger = Ledger.open(RunDirectory(path).ledger)
        workers = [WritingRollout(self.events, index=i) for i in range(engines)]
        for worker in workers:
            worker._version = version
        rollout: Any = LocalGang("rollout", workers)
        reward: Any = LocalGang("reward", [WritingReward(self.events)])
        self.rollouts = Rollouts(
            RunDirectory(path).rollouts,
            self.ledger,
            attempt=number,
            note=self.notes.append,
            wait_first=lambda handles: None,
        )
        self.source = RolloutSource(
            rollout,
            reward,
            PROMPTS,
            SAMPLING,
            prompts_per_step=5,
            prompts_per_chunk=size,
            max_staleness=0,
            max_steps=1,
            on_begin=lambda step, chunk: None,
            store=self.rollouts,
        )

    def step(self, num_chunks: int | None = None) -> PendingBatch:
        """Record the first chunks of the step, and end the attempt."""
        chunks = []
        for chunk in self.source.stream(0):
            chunks.append(chunk)
            if len(chunks) == num_chunks:
                break
        self.rollouts.record(0)
        self.ledger.close()
        return PendingBatch(chunks=chunks)

    def sampled(self) -> list[str]:
        return [event.partition(": ")[2] for event in self.events if "generate" in event or "recall p" in event]


def ids(pending: PendingBatch) -> list[str]:
    return [prompt.id for prompt in merge(wait(pending.experience)).prompts]


def versions(pending: PendingBatch) -> list[int]:
    """Return the version that each prompt was sampled from."""
    return merge(wait(pending.experience)).versions[:: SAMPLING.num_generations].tolist()


def order(path: Path) -> list[str]:
    """Return the prompts of the step, in order."""
    run = Run(path, 1)
    run.ledger.close()
    return [PROMPTS[row].id for row in run.source.rows(0)]


def test_recorded_chunks_are_recalled_and_only_the_rest_is_sampled(tmp_path: Path) -> None:
    a, b, c, d, e = names = order(tmp_path)
    Run(tmp_path, 1, size=1, engines=1).step(num_chunks=3)
    resumed = Run(tmp_path, 2, size=1, engines=1, version=7)
    pending = resumed.step()
    assert resumed.sampled() == [
        f"recall {a}",
        f"recall {b}",
        f"recall {c}",
        f"generate {d} from v7",
        f"generate {e} from v7",
    ]
    assert (ids(pending), versions(pending)) == (names, [0, 0, 0, 7, 7])
    assert pending.scores is not None
    assert merge_scores(wait(pending.scores)).rewards.tolist() == [0, 1] * 5
    recalled = [(r.details["chunk"], r.details["recalled"]) for r in resumed.ledger.records if r.attempt == 2]
    assert sorted(recalled) == [(chunk, chunk < 3) for chunk in range(5) for _ in ("GENERATED", "SCORED")]


@pytest.mark.parametrize(("size", "engines", "rest"), [(1, 2, [1, 1]), (2, 1, [2]), (5, 3, [2])])
def test_recorded_chunks_keep_their_size_whatever_the_next_attempt_uses(
    tmp_path: Path, size: int, engines: int, rest: list[int]
) -> None:
    """A run may resume on other hardware: the size of new chunks depends on the number of engines."""
    names = order(tmp_path)
    Run(tmp_path, 1, size=1).step(num_chunks=3)
    pending = Run(tmp_path, 2, size=size, engines=engines, version=7).step()
    assert [chunk.prompts for chunk in pending.chunks] == [1, 1, 1, *rest]
    assert (ids(pending), versions(pending)) == (names, [0, 0, 0, 7, 7])


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("size", [2, 3])
def test_damage_to_one_chunk_samples_that_chunk_alone_again(tmp_path: Path, size: int) -> None:
    names = order(tmp_path)
    Run(tmp_path, 1).step()
    flip_a_bit(tmp_path / "rollouts" / "step-1" / "chunk-1-rollout-1.safetensors")
    resumed = Run(tmp_path, 2, size=size, version=7)
    pending = resumed.step()
    assert (ids(pending), versions(pending)) == (names, [0, 0, 7, 7, 0])
    (note,) = resumed.notes
    assert note.startswith("step 1, chunk 2 is sampled again: ")


def test_damage_to_scores_scores_that_chunk_alone_again(tmp_path: Path) -> None:
    names = order(tmp_path)
    Run(tmp_path, 1).step()
    flip_a_bit(tmp_path / "rollouts" / "step-1" / "chunk-2-reward-0.safetensors")
    resumed = Run(tmp_path, 2, version=7)
    pending = resumed.step()
    assert versions(pending) == [0] * 5
    assert [event for event in resumed.events if event.startswith("reward")] == [
        "reward: recall",
        "reward: recall",
        f"reward: score {names[-1]}",
    ]
    assert resumed.notes[0].startswith("step 1, chunk 3 is scored again: ")


def lose(name: str) -> Callable[[Path], None]:
    return lambda run: (run / "rollouts" / "step-1" / name).unlink()


@pytest.mark.parametrize("name", ["chunk-0-rollout-0.safetensors", "chunk-2-reward-0.safetensors"])
def test_a_step_that_is_trained_in_part_needs_all_its_chunks(tmp_path: Path, name: str) -> None:
    Run(tmp_path, 1).step()
    Run(tmp_path, 2).rollouts.require(0)
    lose(name)(tmp_path)
    resumed = Run(tmp_path, 3)
    with pytest.raises(ResumeError, match="the rollouts of step 1 are missing or damaged, and part of the step is tra"):
        resumed.rollouts.require(0)
    with pytest.raises(ResumeError, match="the rollouts of step 2"):
        resumed.rollouts.require(1)
