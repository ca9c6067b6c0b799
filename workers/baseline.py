"""What the policy of now says of a batch's baseline: measured before an optimiser update, given to its loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.engines.base import TrainingEngine
from workers.packing import members, pack, shares
from workers.scoring import IDLE
from workers.types import TrainBatch


def mean_log_ratio(
    engine: TrainingEngine, batch: TrainBatch, rows: NDArray[np.int64], *, budget: int, temperature: float
) -> float | None:
    """Mean over the completions of `batch.baseline` in the rows `rows` of log π(y) − log π_ref(y), over all ranks.

    None: the batch has no baseline. Each rank takes its share of the forward passes; all get the same number.
    """
    baseline = batch.baseline
    if baseline is None:
        return None
    assert baseline.reference_logprobs is not None
    prompts, completions, offsets = baseline.prompts, baseline.completions, baseline.row_offsets
    planned = shares(
        prompts, completions, offsets, rows, num_ranks=engine.world_size, budget=budget, apart=engine.apart
    )
    total = 0.0
    for picked in planned[engine.rank]:
        chosen = rows[picked] if len(picked) else rows[IDLE]  # a rank without work computes along, for the collectives
        logprobs = engine.infer(pack(prompts, completions, offsets, chosen), temperature).cpu().numpy()
        if len(picked):
            reference = baseline.reference_logprobs[completions.positions(members(offsets, chosen))]
            total += float((logprobs - reference).sum(dtype=np.float64))
    return engine.sum(total) / len(members(offsets, rows))
