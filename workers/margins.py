"""Margins between the completions of a pair, from per-token outputs of a reward model or a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.ragged import Ragged
from workers.types import Experience, Floats, TokenShard, assemble


@dataclass(frozen=True, kw_only=True, slots=True)
class PairMargins:
    """Margins of some held-out pairs: reward of the chosen minus reward of the rejected completion.

    Example: `PairMargins(groups=[0, 2], values=[1.5, -0.2], sources=("web", None),
    objectives=("safety", "safety"))`: the second pair's row has no `source` column.
    """

    groups: NDArray[np.int64]  # [n] indices of the pairs in the experience
    values: Floats  # [n]
    sources: tuple[str | None, ...]  # [n]
    objectives: tuple[str | None, ...]  # [n] of the recipe's source; None: it has none


def merge_margins(parts: Sequence[PairMargins]) -> PairMargins:
    """Combine the margins of all ranks, in the order of the pairs."""
    groups = np.concatenate([p.groups for p in parts])
    order = np.argsort(groups)
    sources = [source for p in parts for source in p.sources]
    objectives = [objective for p in parts for objective in p.objectives]
    return PairMargins(
        groups=groups[order],
        values=np.concatenate([p.values for p in parts])[order],
        sources=tuple(sources[i] for i in order),
        objectives=tuple(objectives[i] for i in order),
    )


NO_MARGINS = PairMargins(groups=np.zeros(0, np.int64), values=np.zeros(0, np.float32), sources=(), objectives=())


def final_scores(share: TokenShard, completions: Ragged) -> NDArray[np.float64]:
    """Return a reward model's score of each completion of `share`: its output at the last token."""
    return share.values[np.cumsum(completions.lengths[share.completions]) - 1].astype(np.float64)


def implicit_rewards(
    share: TokenShard, reference: Sequence[TokenShard], completions: Ragged, beta: float
) -> NDArray[np.float64]:
    """Return DPO's implicit reward of each completion of `share`: β Σ_t log(π/π_ref) (arXiv 2305.18290).

    The reward is defined up to a constant for each prompt, which cancels in margins.
    """
    reference_logprobs = assemble(reference, completions)[completions.positions(share.completions)]
    ratios = Ragged(
        values=share.values.astype(np.float64) - reference_logprobs,
        offsets=np.cumsum([0, *completions.lengths[share.completions]]),
    )
    return beta * np.asarray([r.sum() for r in ratios], np.float64)


def pair_margins(experience: Experience, completions: NDArray[np.int64], rewards: NDArray[np.float64]) -> PairMargins:
    """Return the margins of the pairs whose completions are in `completions`, given their rewards.

    Completions of a dataset are ordered best first: the margin is that of the first over the last. No pair is split
    over ranks.
    """
    reward_of = dict(zip(completions.tolist(), rewards.tolist(), strict=True))
    firsts, lasts = experience.group_offsets[:-1].tolist(), (experience.group_offsets[1:] - 1).tolist()
    mine = [g for g, first in enumerate(firsts) if first in reward_of]
    sources = [experience.prompts[g].columns.get("source") for g in mine]
    return PairMargins(
        groups=np.asarray(mine, np.int64),
        values=np.asarray([reward_of[firsts[g]] - reward_of[lasts[g]] for g in mine], np.float32),
        sources=tuple(None if source is None else str(source) for source in sources),
        objectives=tuple(experience.prompts[g].objective for g in mine),
    )
