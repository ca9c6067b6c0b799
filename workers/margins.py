"""By how much one completion of a pair is preferred to the other: from numbers per token to a number per pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.types import Experience, PairMargins, Ragged, TokenShard, assemble

NO_MARGINS = PairMargins(groups=np.zeros(0, np.int64), values=np.zeros(0, np.float32), sources=())


def final_scores(share: TokenShard, completions: Ragged) -> NDArray[np.float64]:
    """What a reward model says of each completion of `share`: its number at the last token."""
    return share.values[np.cumsum(completions.lengths[share.completions]) - 1].astype(np.float64)


def implicit_rewards(
    share: TokenShard, reference: Sequence[TokenShard], completions: Ragged, beta: float
) -> NDArray[np.float64]:
    """DPO's reward of each completion of `share`, but for a constant: β Σ_t log(π/π_ref) (arXiv 2305.18290)."""
    others = assemble(reference, completions)[completions.positions(share.completions)]
    ratios = Ragged(
        values=share.values.astype(np.float64) - others,
        offsets=np.cumsum([0, *completions.lengths[share.completions]]),
    )
    return beta * np.asarray([r.sum() for r in ratios], np.float64)


def pair_margins(experience: Experience, completions: NDArray[np.int64], rewards: NDArray[np.float64]) -> PairMargins:
    """Margins of the pairs whose completions are among `completions`, with their rewards.

    No pair is split over ranks, and a dataset's completions stand best first: the first is set against the last.
    """
    of_completion = dict(zip(completions.tolist(), rewards.tolist(), strict=True))
    firsts, lasts = experience.group_offsets[:-1].tolist(), (experience.group_offsets[1:] - 1).tolist()
    mine = [g for g, first in enumerate(firsts) if first in of_completion]
    sources = [experience.prompts[g].columns.get("source") for g in mine]
    return PairMargins(
        groups=np.asarray(mine, np.int64),
        values=np.asarray([of_completion[firsts[g]] - of_completion[lasts[g]] for g in mine], np.float32),
        sources=tuple(None if source is None else str(source) for source in sources),
    )
