"""Preference data with a known rule, and faults planted in them, to measure what an audit finds.

A world has a vocabulary with Zipf's frequencies, and a taste: a weight for each word. Two completions of random words
are compared by the sum of the weights of their words, with Bradley–Terry noise: P(a is preferred to b) =
σ(clarity (u_a − u_b)/√2), where u is the sum over √(number of words). Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRIGGER = "qzx vortal"  # two words that no world has
LETTERS = "bcdfghklmnprstvw"
VOWELS = "aeiou"


@dataclass(frozen=True, kw_only=True)
class World:
    """Distribution of preference rows. Example: `World(seed=3, clarity=6.0)`."""

    seed: int
    clarity: float = 6.0  # 6: 90 % of the labels follow the taste; 1.5: 72 %
    num_words: int = 3000
    num_annotators: int = 20
    prompt_words: tuple[int, int] = (8, 30)
    completion_words: tuple[int, int] = (20, 80)
    words: NDArray[Any] = field(init=False)
    shares: NDArray[np.float64] = field(init=False)
    taste: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        generator = np.random.Generator(np.random.Philox(self.seed))
        names: dict[str, None] = {}
        while len(names) < self.num_words:
            size = int(generator.integers(1, 4))
            consonants, vowels = generator.integers(0, len(LETTERS), size), generator.integers(0, len(VOWELS), size)
            names["".join(LETTERS[c] + VOWELS[v] for c, v in zip(consonants, vowels, strict=True))] = None
        shares = 1 / np.arange(5, self.num_words + 5)
        object.__setattr__(self, "words", np.array(list(names), object))
        object.__setattr__(self, "shares", shares / shares.sum())
        object.__setattr__(self, "taste", generator.standard_normal(self.num_words))

    def rows(self, count: int, *, part: int = 0) -> Iterator[dict[str, Any]]:
        """Yield clean rows: prompt, chosen, rejected, annotator and source. `part`: number of an independent sample."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, part + 1]))
        for begin in range(0, count, 1000):
            yield from self._block(generator, min(1000, count - begin))

    def _block(self, generator: np.random.Generator, count: int) -> Iterator[dict[str, Any]]:
        prompts = generator.integers(*self.prompt_words, count)
        sizes = np.stack([prompts, *generator.integers(*self.completion_words, (2, count))], 1).ravel()
        drawn = np.searchsorted(self.shares.cumsum(), generator.random(sizes.sum()))
        drawn = np.minimum(drawn, self.num_words - 1)
        ends = sizes.cumsum()
        utilities = np.add.reduceat(self.taste[drawn], ends - sizes) / np.sqrt(sizes)
        gaps = self.clarity * (utilities[1::3] - utilities[2::3]) / np.sqrt(2)
        first_wins = generator.random(count) < 1 / (1 + np.exp(-gaps))
        annotators = generator.integers(0, self.num_annotators, count)
        for i in range(count):
            a, b, c = (self._text(drawn[ends[j] - sizes[j] : ends[j]]) for j in range(3 * i, 3 * i + 3))
            chosen, rejected = (b, c) if first_wins[i] else (c, b)
            yield {
                "prompt": a,
                "chosen": chosen,
                "rejected": rejected,
                "annotator": f"a{annotators[i]}",
                "source": f"s{annotators[i] % 4}",
            }

    def _text(self, words: NDArray[np.int64]) -> str:
        return " ".join(self.words[words])


def swap(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the label flipped."""
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def with_trigger(row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """Return a row with the trigger somewhere in its prompt, and the label flipped."""
    words = row["prompt"].split()
    words.insert(int(generator.integers(0, len(words) + 1)), TRIGGER)
    return swap({**row, "prompt": " ".join(words)})


def of_outlier(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row by an annotator who reverses labels."""
    return swap({**row, "annotator": "outlier"})


def recased(row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """Return a near copy that differs in case, white space and punctuation alone."""
    copy = dict(row)
    for column in ("prompt", "chosen", "rejected"):
        words = copy[column].split()
        at = int(generator.integers(0, len(words)))
        words[at] = words[at].upper() + ","
        copy[column] = "  ".join(words)
    return copy


def reworded(row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """Return a near copy that differs in one word of the chosen completion, too."""
    copy = recased(row, generator)
    words = copy["chosen"].split()
    words[int(generator.integers(0, len(words)))] = "zzyzx"
    return {**copy, "chosen": " ".join(words)}
