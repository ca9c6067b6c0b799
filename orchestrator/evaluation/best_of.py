"""Best of n: expected gold score of the answer that a ranking chooses among n samples, for every n from one sampling.

    scores of a prompt's N samples ──► chance of each to be the best of n of them ──► Σ chance × gold score

The chance is over all C(N, n) subsets of n samples, so that the mean over prompts is the unbiased estimate of best of n
(order statistics; for gold scores of 0 and 1, ranked by themselves, it is pass@n of arXiv 2107.03374). Nothing is
resampled. Equal scores share their chance. A NaN is a sample without a score: it is chosen only if the others of the
subset have none either.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from orchestrator.evaluation.statistics import Values


def sizes(num_samples: int) -> tuple[int, ...]:
    """Return the n of a curve: powers of two below `num_samples`, and `num_samples` itself.

    >>> sizes(12)
    (1, 2, 4, 8, 12)
    """
    return (*takewhile(lambda n: n < num_samples, (2**i for i in range(num_samples))), num_samples)


def chances(scores: Values, n: int) -> Values:
    """Return the chance of each sample to have the largest score among n of the N samples.

    The sample of rank i (0 is the best) is the best of C(N − 1 − i, n − 1) of the C(N, n) subsets. Samples of equal
    score share the chances of their ranks.

    Args:
        scores: [N], a prompt's scores; NaN: no score.
        n: size of the subsets, from 1 to N.
    """
    assert scores.ndim == 1, scores.shape
    assert 1 <= n <= len(scores), (n, len(scores))
    num_samples = len(scores)
    ranked = [math.comb(num_samples - 1 - i, n - 1) / math.comb(num_samples, n) for i in range(num_samples)]
    _, level = np.unique(-np.where(np.isnan(scores), -np.inf, scores), return_inverse=True)  # 0: the best
    counts = np.bincount(level)
    shared: Values = np.bincount(np.sort(level), weights=ranked) / counts
    return shared[level]


def majority_chances(answers: Sequence[Hashable], n: int) -> Values:
    """Return the chance of each sample to be the one chosen by majority (arXiv 2203.11171) among n of the N samples.

    The most frequent answer of a subset wins; answers that are equally frequent win equally often, and so do the
    samples that give the winning answer.

    Args:
        answers: [N], a prompt's answers; equal answers vote together.
        n: size of the subsets, from 1 to N.
    """
    assert 1 <= n <= len(answers), (n, len(answers))
    counts = votes(answers)
    if (counts == counts[0]).all():
        return np.full(len(answers), 1 / len(answers))
    distinct, wins = _wins(tuple(sorted(counts.tolist())))
    found: Values = wins[n, np.searchsorted(distinct, counts)]
    return found


def votes(answers: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return the number of samples that give the same answer as each sample [N].

    >>> votes(["a", "b", "a"]).tolist()
    [2, 1, 2]
    """
    ids = {answer: i for i, answer in enumerate(dict.fromkeys(answers))}
    level = np.asarray([ids[answer] for answer in answers], np.int64)
    return np.bincount(level)[level]


@lru_cache(maxsize=4096)
def _wins(counts: tuple[int, ...]) -> tuple[NDArray[np.int64], Values]:
    """Count the subsets in which an answer is the most frequent one, exactly, for every n at once.

    Args:
        counts: [N], for each sample, the number of samples with its answer, ascending.

    Returns:
        The distinct counts [C], and the chance [N + 1, C] that a given sample of an answer of that count is chosen
        among n samples.
    """
    num_samples = len(counts)
    distinct, frequencies = np.unique(np.asarray(counts, np.int64), return_counts=True)
    classes = np.repeat(distinct, frequencies // distinct)  # number of votes of each answer
    won = np.zeros((num_samples + 1, len(distinct)))
    for most in range(1, int(distinct[-1]) + 1):
        won += _won_with(most, classes, distinct, num_samples)
    subsets = np.asarray([float(math.comb(num_samples, n)) for n in range(num_samples + 1)])
    return distinct, won / subsets[:, None] / frequencies


def _won_with(most: int, classes: NDArray[np.int64], distinct: NDArray[np.int64], num_samples: int) -> Values:
    """Count the subsets [N + 1, C] by size and by the count of the winner, of those whose winner has `most` votes.

    Answers of fewer votes cannot win, and any of their samples may be in a subset. The others are added one after the
    other: `ways[n, t]` counts the subsets of n samples so far in which t answers have `most` votes and none has more;
    `winners[n, t, c]` sums over them how many of the t have the count `distinct[c]`. A subset with t winners counts 1/t
    for each.
    """
    able = classes[classes >= most]
    num_others, num_tied = num_samples - int(able.sum()), min(num_samples // most, len(able))
    ways = np.zeros((num_samples + 1, num_tied + 1))
    ways[: num_others + 1, 0] = [float(math.comb(num_others, n)) for n in range(num_others + 1)]
    winners = np.zeros((num_samples + 1, num_tied + 1, len(distinct)))
    for count in able.tolist():
        earlier_ways, earlier_winners = ways, winners
        ways, winners = np.zeros_like(ways), np.zeros_like(winners)
        for taken in range(min(count, most) + 1):
            tied = int(taken == most)
            before = np.s_[: num_samples + 1 - taken, : num_tied + 1 - tied]
            combinations = float(math.comb(count, taken))
            ways[taken:, tied:] += combinations * earlier_ways[before]
            winners[taken:, tied:] += combinations * earlier_winners[before]
            if tied:
                winners[taken:, 1:, np.searchsorted(distinct, count)] += combinations * earlier_ways[before]
    won: Values = (winners[:, 1:] / np.arange(1, num_tied + 1)[:, None]).sum(1)
    return won
