"""The writer role: the completions of a step become rows of a file, as text. It takes the place of a learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from workers.config import ModelConfig
from workers.files.shared_storage import SharesStorage
from workers.ragged import Ragged
from workers.repetition import repeated_tails
from workers.rollout import seeds
from workers.stats import Metrics
from workers.types import Experience, Finish, ScoredBatch, Scores, merge, merge_scores

SCORE = "score_"  # prefix of the column of a scorer


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Completions of a step. Example: `Part(content=b"PAR1…", rows=512, metrics={…})`."""

    content: bytes  # of a parquet file
    rows: int
    metrics: Metrics  # of the samples, under TRL's names


class Writer(SharesStorage):
    """A tokenizer that turns completions into text."""

    def __init__(self, model: ModelConfig) -> None:
        """Load the tokenizer of `model`."""
        # Imported here: the driver imports this module for the names of its methods alone.
        from workers.engines import hf_text

        self._codec = hf_text.TextCodec(model)

    def part(
        self,
        parts: Sequence[Experience],
        scores: Sequence[Scores] | None,
        *,
        seed: int,
        num_generations: int,
    ) -> Part:
        """Return a file with one row per completion, in the order of the prompts.

        Args:
            scores: None: nothing scores the completions.
            seed: seed of the run's sampling, from which each completion's own is derived.
            num_generations: number of completions per prompt.
        """
        from workers.algorithms.metrics import rollout_metrics

        merged, scored = merge(parts), None if scores is None else merge_scores(scores)
        rows = self._rows(merged, scored, seed=seed, num_generations=num_generations)
        batch = ScoredBatch(
            experience=merged,
            rewards=None if scored is None else scored.rewards,
            reference_logprobs=None,
            values=None,
            by_scorer=None if scored is None else scored.by_scorer,
            weights={} if scored is None else scored.weights,
        )
        metrics = rollout_metrics(batch) if len(merged.completions) else {"num_tokens": 0.0}
        return Part(content=as_parquet(rows), rows=len(merged.completions), metrics=metrics)

    def _rows(self, merged: Experience, scored: Scores | None, *, seed: int, num_generations: int) -> Mapping[str, Any]:
        """Return the columns of a part. A text lacks only the token that ends the completion."""
        groups = merged.group_of
        ids = [prompt.id for prompt in merged.prompts]
        # A prompt is sampled once in a run, so that its samples are numbered from 0.
        own = seeds(seed, ids, num_generations=num_generations, version=0)
        sample = np.arange(len(groups)) - merged.group_offsets[groups]
        tokens = [merged.completions[i].tolist() for i in range(len(merged.completions))]
        by_scorer = {} if scored is None else {f"{SCORE}{n}": _nullable(v) for n, v in scored.by_scorer.items()}
        return {
            "prompt_id": [ids[g] for g in groups],
            "sample": sample.tolist(),
            "completion": self._codec.decode_batch(tokens, skip_special_tokens=False),
            "tokens": merged.completions.lengths.tolist(),
            "finish": [Finish(int(finish)).name for finish in merged.finish],
            "repetition": _repetition(merged.completions, merged.finish == Finish.stop).tolist(),
            "version": merged.versions.tolist(),
            "seed": [own[g][i] for g, i in zip(groups, sample, strict=True)],
            "score": [None] * len(groups) if scored is None else scored.rewards.tolist(),
            **by_scorer,
        }


def _repetition(completions: Ragged, terminated: Any) -> Any:
    return repeated_tails(completions, terminated) if len(completions) else np.zeros(0)


def _nullable(values: Any) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def as_parquet(columns: Mapping[str, Any]) -> bytes:
    """Return the content of a parquet file. Columns that hold nulls alone have their type anyway."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"prompt_id": pa.string(), "completion": pa.string(), "finish": pa.string(), "sample": pa.int32()}
    types |= {"tokens": pa.int32(), "version": pa.int32(), "seed": pa.int64(), "repetition": pa.float32()}
    schema = pa.schema([(name, types.get(name, pa.float32())) for name in columns])
    content = BytesIO()
    pq.write_table(pa.table(dict(columns), schema=schema), content)
    return content.getvalue()
