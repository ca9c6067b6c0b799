"""Experience and its scores as files, written by the worker that made them, so that neither is ever made twice.

    rollout-0.safetensors   tokens, log-probabilities, versions; no texts: prompts are the dataset's
    reward-0.safetensors    rewards by scorer, and the samples to read
    rollout-0.json          the receipt: what was written, for the driver, which reads no tokens

A file is on disk under its name before its worker answers; its receipt is a message and need not last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import safe_open

from workers.files import durable
from workers.types import Experience, Prompt, Ragged, Sample, Scores, merge, merge_scores

FACTS = "facts"  # where safetensors' own metadata keeps what is no array


class StoredFileError(RuntimeError):
    """A file is not what its worker wrote, or belongs to other prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """What a worker wrote. Example: `StoredFile(path="/runs/a/rollouts/step-3/rollout-0.safetensors", bytes=4096,
    sha256="9a12…", completions=32, versions=(2, 2))`; scores have no `versions`."""

    path: str
    bytes: int
    sha256: str
    completions: int
    versions: tuple[int, int] | None = None  # the oldest and the newest weights that sampled them


def receipt(stem: str) -> StoredFile:
    """What the worker that was told to write `stem` wrote."""
    told = json.loads(Path(f"{stem}.json").read_bytes())
    return StoredFile(**{**told, "versions": told["versions"] and tuple(told["versions"])})


def write_experience(stem: str, experience: Experience) -> None:
    """Keep what was sampled as `stem`.safetensors. Raises OSError when the disk refuses it."""
    assert experience.rewards is None, "rewards of a dataset are the dataset's"
    arrays = {
        "prompt_tokens": experience.prompt_tokens.values,
        "prompt_offsets": experience.prompt_tokens.offsets,
        "completions": experience.completions.values,
        "completion_offsets": experience.completions.offsets,
        "group_offsets": experience.group_offsets,
        "versions": experience.versions,
        "finish": experience.finish,
    }
    if experience.logprobs is not None:
        arrays["logprobs"] = experience.logprobs
    facts = {
        "prompts": [prompt.id for prompt in experience.prompts],
        "temperature": experience.temperature,
        "num_dropped": experience.num_dropped,
        "num_truncated": experience.num_truncated,
        "seconds": experience.seconds,
    }
    versions = experience.versions
    sampled_from = (int(versions.min()), int(versions.max())) if len(versions) else None
    _write(stem, arrays, facts, len(experience.completions), sampled_from)


def read_experience(files: Sequence[tuple[str, str]], prompts: Sequence[Prompt]) -> Experience:
    """What was kept in files of (path, SHA-256), as one; `prompts` are those that were asked.

    Raises:
        KeptError: a file is not what was written, or speaks of other prompts.
    """
    asked = {prompt.id: prompt for prompt in prompts}
    return merge([_experience(path, digest, asked) for path, digest in files])


def write_scores(stem: str, scores: Scores) -> None:
    """Keep what was scored as `stem`.safetensors. Raises OSError when the disk refuses it."""
    names = list(scores.by_scorer)
    arrays = {"rewards": scores.rewards, **{f"scorer {i}": scores.by_scorer[name] for i, name in enumerate(names)}}
    facts = {"scorers": names, "samples": [asdict(s) for s in scores.samples], "seconds": scores.seconds}
    _write(stem, arrays, facts, len(scores.rewards), None)


def read_scores(files: Sequence[tuple[str, str]]) -> Scores:
    """What was kept in files of (path, SHA-256), as one. Raises KeptError as `read_experience` does."""
    return merge_scores([_scores(path, digest) for path, digest in files])


def _experience(path: str, digest: str, asked: Mapping[str, Prompt]) -> Experience:
    arrays, facts = _read(path, digest)
    if strange := [id for id in facts["prompts"] if id not in asked]:
        raise StoredFileError(f"{path}: prompt {strange[0]} is none of those that this step asks")
    return Experience(
        prompts=tuple(asked[id] for id in facts.pop("prompts")),
        prompt_tokens=Ragged(values=arrays["prompt_tokens"], offsets=arrays["prompt_offsets"]),
        completions=Ragged(values=arrays["completions"], offsets=arrays["completion_offsets"]),
        group_offsets=arrays["group_offsets"],
        logprobs=arrays.get("logprobs"),
        versions=arrays["versions"],
        finish=arrays["finish"],
        **facts,
    )


def _scores(path: str, digest: str) -> Scores:
    arrays, facts = _read(path, digest)
    return Scores(
        rewards=arrays["rewards"],
        by_scorer={name: arrays[f"scorer {i}"] for i, name in enumerate(facts["scorers"])},
        samples=tuple(Sample(**sample) for sample in facts["samples"]),
        seconds=facts["seconds"],
    )


def _write(
    stem: str,
    arrays: Mapping[str, NDArray[Any]],
    facts: Mapping[str, Any],
    completions: int,
    versions: tuple[int, int] | None,
) -> None:
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = safetensors.numpy.save(whole, metadata={FACTS: json.dumps(facts)})
    path = Path(f"{stem}.safetensors")
    durable.replace(path, data)
    digest = hashlib.sha256(data).hexdigest()
    told = StoredFile(path=str(path), bytes=len(data), sha256=digest, completions=completions, versions=versions)
    Path(f"{stem}.json").write_text(json.dumps(asdict(told)))


def _read(path: str, digest: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise StoredFileError(f"{path}: not what was written")
    with safe_open(path, framework="numpy") as kept:
        return {name: kept.get_tensor(name) for name in kept.keys()}, json.loads(kept.metadata()[FACTS])  # noqa: SIM118
