"""Preference pairs of a step as a parquet file for people to read: texts, scores and provenance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.conversation import as_text
from workers.types import ScoredBatch, TrainBatch

if TYPE_CHECKING:
    from workers.engines.hf_text import TextCodec


def write_pairs(path: Path, batch: TrainBatch, scored: ScoredBatch, codec: TextCodec) -> None:
    """Write one row per pair: texts, scores, margin, lengths, and the weights version that sampled each side."""
    assert batch.sources is not None
    experience = scored.experience
    chosen, rejected = batch.sources[0::2], batch.sources[1::2]
    groups = experience.group_of
    prompts = [experience.prompts[groups[i]] for i in chosen]
    rewards = scored.rewards if scored.rewards is not None else np.full(len(experience.completions), np.nan)
    columns = {"prompt_id": [p.id for p in prompts], "prompt": [as_text(p.text) for p in prompts]}
    for side, picked in (("chosen", chosen), ("rejected", rejected)):
        columns |= {
            side: codec.decode_batch(experience.completions[i].tolist() for i in picked),
            f"{side}_score": rewards[picked].tolist(),
            f"{side}_version": experience.versions[picked].tolist(),
            f"{side}_tokens": experience.completions.lengths[picked].tolist(),
        }
    columns["margin"] = (rewards[chosen] - rewards[rejected]).tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
