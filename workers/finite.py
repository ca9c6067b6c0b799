"""Numbers that went bad while learning: found before anything of them is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.types import Experience, TrainBatch

NUM_NAMED = 5  # prompts


class NotFinite(Exception):
    """A loss or a gradient is NaN or infinite: these weights are good for nothing more."""


def require(
    norm: float,
    bad: Sequence[int],
    rows: NDArray[np.int64],
    batch: TrainBatch,
    experience: Experience,
    *,
    place: str,
) -> None:
    """Of an update that has learned from `rows`: `norm` is that of its gradient over all ranks, `bad` are the rows of
    this rank's micro-batches whose loss was NaN or infinite. `place`: which update it was, in words.

    Raises:
        NotFinite: there is such a loss, or the norm is no finite number.
    """
    if not bad and math.isfinite(norm):
        return
    what = "a loss that is NaN or infinite" if bad else f"a gradient of norm {norm}"
    first = [int(batch.row_offsets[row]) for row in (bad or rows.tolist())]  # of a row's completions
    origins = first if batch.sources is None else batch.sources[first].tolist()
    prompts = list(dict.fromkeys(experience.prompts[experience.group_of[i]].id for i in origins))
    more = f" and {len(prompts) - NUM_NAMED} more" if len(prompts) > NUM_NAMED else ""
    raise NotFinite(f"{place}: {what}, on prompts {', '.join(prompts[:NUM_NAMED])}{more}")
