"""Detection of completions that end in repetition, by their tokens alone. Numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.ragged import Ragged

MAX_PERIOD, MIN_REPEATS = 8, 3


def repeated_tails(completions: Ragged, terminated: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of each completion's tokens that are in a repeated tail: [N].

    A repeated tail is a block of up to 8 tokens that occurs at least three times in a row at the end. `a b c b c b c`
    ends in three times `b c`: 6 of 7 tokens. A tail of period p extends back as far as each token equals the one p
    before it. The end-of-sequence token of a `terminated` completion is not counted.
    """
    lengths = completions.lengths - terminated
    ends = completions.offsets[:-1] + lengths  # end of each completion, without its end-of-sequence token
    tokens, places = completions.values, np.arange(len(completions.values))
    begins = np.repeat(completions.offsets[:-1], completions.lengths)
    longest = np.zeros(len(lengths), np.int64)
    for period in range(1, MAX_PERIOD + 1):
        equal = np.zeros(len(tokens), bool)
        equal[period:] = tokens[period:] == tokens[:-period]
        equal &= places - begins >= period
        broken = np.maximum.accumulate(np.where(equal, -1, places))  # the last place that breaks a tail
        last = np.maximum(ends - 1, 0)
        run = np.where(lengths > 0, last - broken[last] if len(tokens) else 0, 0)
        longest = np.maximum(longest, np.where(run >= (MIN_REPEATS - 1) * period, run + period, 0))
    shares: NDArray[np.float64] = longest / np.maximum(lengths, 1)
    return shares
