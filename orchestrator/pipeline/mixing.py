"""Pairs of earlier rounds and of a dataset, mixed into each round of iterative DPO as its last chunk.

consumes   the scored groups that earlier rounds have stored, rows of the dataset, chosen by (seed, step) alone
produces   one more chunk after those that are sampled: handles to given pairs, which nothing scores but the reference
waits for  nothing
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from orchestrator.cluster.base import Gang
from orchestrator.config import RunConfig
from orchestrator.config.rounds import mixed_per_round
from orchestrator.data.batches import cut_batches
from orchestrator.pipeline.sources import Chunk, Source
from workers.config import DpoConfig
from workers.encoder import Encoder
from workers.mixing import Mix
from workers.types import Example

MIXING = 2  # key of the random streams of mixed pairs, apart from those of prompts


class MixedSource:
    """Source of rounds with given pairs after their samples.

    What is mixed into a round depends on the config, the dataset and the groups of earlier rounds. Those are stored
    before a round is committed, so that a resumed run mixes in the same pairs.
    """

    def __init__(
        self,
        source: Source,
        encoder: Gang[Encoder],
        config: RunConfig,
        examples: Sequence[Example],
        *,
        directory: Callable[[int], Path],
        seed: int,
    ) -> None:
        """Mix pairs into the rounds of `source`.

        Args:
            examples: rows of the dataset; empty: none are mixed in.
            directory: returns the directory of a round, by its number from 1.
            seed: seed of the run, another one after a rollback.
        """
        self._source, self._encoder, self._examples = source, encoder, examples
        self._config, self._directory, self._seed = config, directory, seed

    def stream(self, step: int) -> Iterator[Chunk]:
        index = -1
        for chunk in self._source.stream(step):
            yield chunk
            index = chunk.index
        mix = self._mix(step, index + 1)
        if mix.rounds or mix.examples:
            handle = self._encoder.one(Encoder.mix, mix)
            yield Chunk(index=mix.chunk, prompts=0, experience=[handle], scores=None, given=True)

    def _mix(self, step: int, chunk: int) -> Mix:
        algorithm, own = self._config.algorithm, self._config.rounds.mix
        assert isinstance(algorithm, DpoConfig)
        counts = mixed_per_round(self._config)
        first = 1 if own.last is None else max(1, step + 1 - own.last)
        numbers = range(first, step + 1) if counts[step].earlier else ()
        return Mix(
            rounds={number: str(self._directory(number)) for number in numbers},
            num_earlier=counts[step].earlier,
            examples=self._rows(step, tuple(count.dataset for count in counts)),
            pairs=algorithm.pairs,
            seed=int(np.random.SeedSequence([self._seed, MIXING, step]).generate_state(1)[0]),
            chunk=chunk,
        )

    def _rows(self, step: int, sizes: tuple[int, ...]) -> list[Example]:
        """Return the rows of a round: the next ones of one stream of shuffled rows."""
        if not self._examples:
            return []
        seed = int(np.random.SeedSequence([self._seed, MIXING]).generate_state(1)[0])
        return [self._examples[row] for row in cut_batches(len(self._examples), sizes, seed)[step]]
