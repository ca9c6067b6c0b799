"""Rounds of iterative DPO, by the settings in `rounds`: prompts, sampling, and what the learners start from.

A round draws the same prompts however often it is begun: they depend on the config, the number of rows and the index.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.cluster.base import Gang, wait
from orchestrator.config import RunConfig
from orchestrator.config.rounds import learner_settings, of_round, prompts_per_round
from orchestrator.data.batches import batch_indices, cut_batches
from orchestrator.pipeline.exports import Uploads, write_model
from orchestrator.pipeline.learning import RoundStart
from orchestrator.pipeline.sources import Draw, completions_per_chunk, retry_seed
from orchestrator.rundir.manifest import WHOLE, require
from workers.config import Sampled
from workers.learner import Learner
from workers.types import Sampling


def sampling_of(config: RunConfig, *, rollbacks: int = 0) -> Sampling:
    """Return the sampling parameters of a config, which may be that of one round."""
    assert isinstance(config.algorithm, Sampled)
    rollout = config.rollout
    return Sampling(
        num_generations=config.algorithm.num_generations,
        max_completion_length=rollout.max_completion_length,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        ignore_eos=rollout.ignore_eos,
        seed=retry_seed(config.seed, rollbacks),
    )


def chunk_size(config: RunConfig) -> int:
    """Return how many prompts the engines of a config sample together, at most."""
    assert isinstance(config.algorithm, Sampled)
    return max(1, completions_per_chunk(config.rollout) // config.algorithm.num_generations)


def draws(config: RunConfig, files: Sequence[int], *, rollbacks: int) -> Callable[[int], Draw]:
    """Return the function that returns what each round draws.

    After a rollback rounds sample anew. Only the prompts of a stream are then others: a fixed pool stays the same, and
    no prompt of a disjoint part may come into another one.

    Args:
        files: number of prompts of each file of `data.prompts`, in their order.
        rollbacks: how often the run was rolled back.
    """
    seed = retry_seed(config.seed, rollbacks if config.rounds.prompts == "stream" else 0)

    def draw(index: int) -> Draw:
        own = of_round(config, index)
        sampling = sampling_of(own, rollbacks=rollbacks)
        return Draw(
            rows=rows_of_round(config, files, index, seed=seed), sampling=sampling, prompts_per_chunk=chunk_size(own)
        )

    return draw


def in_order(config: RunConfig, num_prompts: int) -> Callable[[int], Draw]:
    """Return the function that returns what each step draws of prompts that are sampled once, in their order."""
    assert isinstance(config.algorithm, Sampled)
    size, sampling, chunk = config.algorithm.prompts_per_step, sampling_of(config), chunk_size(config)

    def draw(index: int) -> Draw:
        rows = range(index * size, min((index + 1) * size, num_prompts))
        return Draw(rows=rows, sampling=sampling, prompts_per_chunk=chunk)

    return draw


def keep_initial(
    config: RunConfig, policy: Gang[Learner], *, base: Path, reference: Path, uploads: Uploads | None = None
) -> None:
    """Keep the initial policy where later rounds need it. The policy gang must hold it.

    Args:
        base: directory of the learners' state, written anew by every attempt, where rounds start from it.
        reference: directory of the reference's first version, where the reference is a moving average.
        uploads: storage of the run; None: it has none.
    """
    if config.rounds.policy == "base":
        shutil.rmtree(base, ignore_errors=True)
        require(base, {WHOLE: wait(policy.all(Learner.save, str(base), {}))}, is_shared=uploads is None)
    if config.reference.refresh == "ema" and not reference.is_dir():
        write_model(policy, reference, uploads=uploads)


def round_starts(config: RunConfig, *, base: Path) -> Callable[[int], RoundStart] | None:
    """Return the function that returns the start of each round in the learners; None: all rounds are alike."""
    starts_anew = config.rounds.policy == "base"
    if not learner_settings(config, 0):
        return None
    return lambda index: RoundStart(settings=learner_settings(config, index), base=str(base) if starts_anew else None)


def rows_of_round(config: RunConfig, files: Sequence[int], index: int, *, seed: int) -> list[int]:
    """Return the prompts of the round `index`: indices into the prompts of all files. None occurs twice in a round."""
    sizes, kind, count = prompts_per_round(config), config.rounds.prompts, sum(files)
    if kind == "fixed":
        return as_list(batch_indices(count, count, 0, seed)[: sizes[index]])
    if kind in ("stream", "disjoint"):
        return _of_stream(count, sizes, index, seed)
    file, visit = index % len(files), index // len(files)
    first = sum(files[:file])
    return [first + row for row in _of_stream(files[file], sizes[file :: len(files)], visit, seed)]


def _of_stream(count: int, sizes: tuple[int, ...], index: int, seed: int) -> list[int]:
    if len(set(sizes)) == 1:
        return as_list(batch_indices(count, min(sizes[0], count), index, seed))
    return as_list(cut_batches(count, sizes, seed)[index])


def as_list(rows: NDArray[np.int64]) -> list[int]:
    return [int(row) for row in rows]
