"""Files of experience and scores, written by the workers that made them, so that neither is made twice.

    rollout-0.safetensors   tokens, log-probabilities, versions; no texts: prompts are in the dataset
    reward-0.safetensors    rewards by scorer, and samples as text
    rollout-0.json          manifest for the driver, which reads no tokens

A worker returns only after its file is on disk. The manifest is a message and need not be durable.
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

from workers.files import durable, mirror
from workers.gold import sampled_only
from workers.ragged import Ragged
from workers.types import Experience, Prompt, Sample, Scores, merge, merge_scores

FACTS = "facts"  # key of the safetensors metadata for everything that is not an array


class StoredFileError(RuntimeError):
    """A file does not have the content that its worker wrote, or belongs to other prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """Manifest of a file.

    Example: `StoredFile(path="/runs/a/rollouts/step-3/rollout-0.safetensors", bytes=4096, sha256="9a12…",
    completions=32, versions=(2, 2))`. Scores have no `versions`.
    """

    path: str
    bytes: int
    sha256: str
    completions: int
    versions: tuple[int, int] | None = None  # oldest and newest weights that sampled the completions


def read_manifest(stem: str) -> StoredFile:
    """Read the manifest of the file `stem`.safetensors."""
    return parse_manifest(Path(f"{stem}.json").read_bytes())


def parse_manifest(content: bytes) -> StoredFile:
    """Return the manifest of a file from its text. Raises ValueError if it is damaged."""
    manifest = json.loads(content)
    return StoredFile(**{**manifest, "versions": manifest["versions"] and tuple(manifest["versions"])})


def write_experience(stem: str, experience: Experience) -> None:
    """Write sampled experience to `stem`.safetensors. Raises OSError if the disk fails."""
    assert experience.rewards is None, "the rewards of a dataset are stored in the dataset"
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
        "chunk": experience.chunk,
    }
    versions = sampled_only(experience).versions
    sampled_from = (int(versions.min()), int(versions.max())) if len(versions) else None
    _write(stem, arrays, facts, len(experience.completions), sampled_from)


def read_experience(files: Sequence[tuple[str, str]], prompts: Sequence[Prompt]) -> Experience:
    """Read and merge experience from files of (path, SHA-256). `prompts` are the prompts of the step.

    Raises:
        StoredFileError: a file is corrupt, or contains other prompts.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    return merge([_experience(path, digest, by_id) for path, digest in files])


def write_scores(stem: str, scores: Scores) -> None:
    """Write scores to `stem`.safetensors. Raises OSError if the disk fails."""
    names = list(scores.by_scorer)
    arrays = {"rewards": scores.rewards, **{f"scorer {i}": scores.by_scorer[name] for i, name in enumerate(names)}}
    if scores.normalized is not None:
        arrays["normalized"] = scores.normalized
    facts = {
        "scorers": names,
        "weights": dict(scores.weights),
        "samples": [asdict(s) for s in scores.samples],
        "usage": dict(scores.usage),
        "seconds": scores.seconds,
        "chunk": scores.chunk,
    }
    _write(stem, arrays, facts, len(scores.rewards), None)


def read_scores(files: Sequence[tuple[str, str]]) -> Scores:
    """Read and merge scores from files of (path, SHA-256). Raises StoredFileError if one is corrupt."""
    return merge_scores([_scores(path, digest) for path, digest in files])


def _experience(path: str, digest: str, by_id: Mapping[str, Prompt]) -> Experience:
    arrays, facts = _read(path, digest)
    if unknown := [id for id in facts["prompts"] if id not in by_id]:
        raise StoredFileError(f"{path}: prompt {unknown[0]} is not a prompt of this step")
    return Experience(
        prompts=tuple(by_id[id] for id in facts.pop("prompts")),
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
        chunk=facts["chunk"],
        weights=facts["weights"],
        usage=facts.get("usage", {}),  # not in files of earlier versions
        normalized=arrays.get("normalized"),
    )


def _write(
    stem: str,
    arrays: Mapping[str, NDArray[Any]],
    facts: Mapping[str, Any],
    completions: int,
    versions: tuple[int, int] | None,
) -> None:
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = safetensors.numpy.save(contiguous, metadata={FACTS: json.dumps(facts)})
    path = Path(f"{stem}.safetensors")
    durable.make_directory(path.parent)  # the driver made that of its own machine
    durable.replace(path, data)
    digest = hashlib.sha256(data).hexdigest()
    manifest = StoredFile(path=str(path), bytes=len(data), sha256=digest, completions=completions, versions=versions)
    described = Path(f"{stem}.json")
    described.write_text(json.dumps(asdict(manifest)))
    mirror.upload([path, described], droppable=True)


def _read(path: str, digest: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    mirror.fetch_file(Path(path))
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise StoredFileError(f"{path}: corrupt: its SHA-256 does not match")
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[FACTS])  # noqa: SIM118
