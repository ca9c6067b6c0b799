"""Stored experience and scores are read back unchanged; other files are refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import experience

from workers.files import quarantine
from workers.files.rollout_files import (
    StoredFileError,
    read_experience,
    read_manifest,
    read_scores,
    write_experience,
    write_scores,
)
from workers.ragged import Ragged
from workers.types import Experience, Prompt, Sample, Scores, merge

PROMPTS = [Prompt(id=f"p{i}", text="2+2=", columns={"solution": i}) for i in range(4)]
SAMPLE = Sample(prompt_id="p0", prompt="2+2=", completion="4 ✓", reward=1.0, version=3, finish="stop", length=2)


def sampled(first: int, version: int) -> Experience:
    """Return experience of two prompts, starting at number `first`, with three completions. It is of chunk 5."""
    return experience(
        [([3, 4, 5], [[6, 7, 1], [8]]), ([9], [[5, 1]])],
        logprobs=[-0.5, -1.25, -0.1, -3.0, -0.7, -0.2],
        prompts=tuple(PROMPTS[first : first + 2]),
        version=version,
        temperature=0.7,
        num_dropped=1,
        seconds=0.125,
        chunk=5,
    )


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, Experience | Ragged):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other


def test_experience_of_several_engines_comes_back_as_one(tmp_path: Path) -> None:
    parts = [sampled(0, version=3), sampled(2, version=4)]
    stems = [str(tmp_path / f"rollout-{i}") for i in range(2)]
    for stem, part in zip(stems, parts, strict=True):
        write_experience(stem, part)
    stored = [read_manifest(stem) for stem in stems]
    assert [(t.completions, t.versions) for t in stored] == [(3, (3, 3)), (3, (4, 4))]
    assert [Path(t.path).stat().st_size for t in stored] == [t.bytes for t in stored]
    assert_equal(read_experience([(t.path, t.sha256) for t in stored], PROMPTS), merge(parts))


def test_a_machine_that_does_not_see_the_driver_s_disk_makes_the_directory(tmp_path: Path) -> None:
    stem = str(tmp_path / "rollouts" / "step-1" / "chunk-0-rollout-0")
    with quarantine.trial(stem.removesuffix("rollout-0"), 0):
        write_experience(stem, sampled(0, version=3))
    assert read_manifest(stem).completions == 3
    other = str(tmp_path / "rollouts" / "step-2" / "chunk-0-reward-0")  # nothing was sampled there
    write_scores(other, Scores(rewards=np.array([1.5], np.float32), by_scorer={}))
    assert read_manifest(other).completions == 1


def test_samples_without_logprobs_and_engines_without_prompts_come_back(tmp_path: Path) -> None:
    for name, original in {
        "foreign": experience([([3], [[4]])], prompts=(PROMPTS[0],)),
        "idle": experience([], logprobs=[], prompts=()),
    }.items():
        write_experience(str(tmp_path / name), original)
        stored = read_manifest(str(tmp_path / name))
        assert_equal(read_experience([(stored.path, stored.sha256)], PROMPTS), original)


def test_scores_come_back_with_their_scorers_in_order(tmp_path: Path) -> None:
    by_scorer = {"math": np.array([1, np.nan], np.float32), "a length": np.array([0.5, 0.25], np.float32)}
    scores = Scores(
        rewards=np.array([1.5, 0.25], np.float32),
        by_scorer=by_scorer,
        samples=(SAMPLE,),
        seconds=0.5,
        chunk=2,
        weights={"math": 1.0, "a length": -0.1},
        normalized=np.array([0.5, -0.5], np.float32),
    )
    write_scores(str(tmp_path / "reward-0"), scores)
    stored = read_manifest(str(tmp_path / "reward-0"))
    assert (stored.completions, stored.versions) == (2, None)
    found = read_scores([(stored.path, stored.sha256)])
    assert list(found.by_scorer) == ["math", "a length"]
    for name, values in by_scorer.items():
        np.testing.assert_array_equal(found.by_scorer[name], values)
    assert (found.rewards.tolist(), found.samples) == ([1.5, 0.25], (SAMPLE,))
    assert (found.seconds, found.chunk, found.weights) == (0.5, 2, {"math": 1.0, "a length": -0.1})
    assert found.normalized is not None
    assert found.normalized.tolist() == [0.5, -0.5]


def test_another_file_is_refused(tmp_path: Path) -> None:
    write_experience(str(tmp_path / "rollout-0"), sampled(0, version=3))
    stored = read_manifest(str(tmp_path / "rollout-0"))
    write_experience(str(tmp_path / "rollout-0"), sampled(0, version=4))
    with pytest.raises(StoredFileError, match=r"rollout-0\.safetensors: corrupt: its SHA-256 does not match"):
        read_experience([(stored.path, stored.sha256)], PROMPTS)


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    write_experience(str(tmp_path / "rollout-0"), sampled(2, version=3))
    stored = read_manifest(str(tmp_path / "rollout-0"))
    with pytest.raises(StoredFileError, match="prompt p2 is not a prompt of this step"):
        read_experience([(stored.path, stored.sha256)], PROMPTS[:2])
