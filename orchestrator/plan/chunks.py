"""Chunks of a step: how its prompts are cut, and how long phases take that work on different chunks at once."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.pipeline.sources import completions_per_chunk
from workers.config import RolloutConfig


def prompts_per_chunk(rollout: RolloutConfig, group: int) -> int:
    """Return the prompts of a chunk, each with `group` completions: `rollout.tokens_per_chunk` for every engine.

    >>> prompts_per_chunk(RolloutConfig(num_engines=3, max_prompt_length=1024, max_completion_length=3072), 8)
    384
    """
    return max(1, completions_per_chunk(rollout) // group)


def chunk_sizes(prompts: int, per_chunk: int) -> tuple[int, ...]:
    """Return the prompts of each chunk: all full but the last.

    >>> chunk_sizes(1000, 384)
    (384, 384, 232)
    """
    full, rest = divmod(prompts, per_chunk)
    return (per_chunk,) * full + ((rest,) if rest else ())


def streamed_s(produced: Sequence[float], consumed: Sequence[float], *, ready: float = 0.0) -> float:
    """Return when the last chunk is consumed.

    Args:
        produced: Seconds to produce each chunk, one after another.
        consumed: Seconds to consume each chunk, one after another, each after it was produced.
        ready: When the consumer is ready for the first chunk.

    >>> streamed_s([10.0, 10.0, 10.0], [4.0, 4.0, 4.0])
    34.0
    """
    arrived, end = 0.0, ready
    for making, using in zip(produced, consumed, strict=True):
        arrived += making
        end = max(arrived, end) + using
    return end
