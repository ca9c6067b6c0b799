"""Trained classifier of refusals: logistic regression on the character n-grams of a text's opening. Pure numpy.

    p(refusal | x) = σ(b + w · φ(x)),   φ(x)_j = 1/√n where one of the n distinct n-grams of x has the hash j

n-grams are hashed (CRC-32) to 2^k places, with the end of the text marked, so that no vocabulary is stored and any
language can be trained. Texts are compared without case, accents of apostrophes and repeated blanks. The weights are
those of `python -m benchmarks.refusals`, which trains on phrases in several languages and writes such a file.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

OPENING = 300  # characters; a phrase further down is mostly a quotation or a caveat
START = 48  # characters whose n-grams count once more, as those of the start
SHORTEST, LONGEST = 1, 5  # characters of an n-gram
SHIPPED = Path(__file__).with_name("refusals.npz")


class ClassifierError(Exception):
    """A file is not a classifier of refusals. The message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusalClassifier:
    """Weights of the classifier. Example: `RefusalClassifier(weights=zeros(2**14), bias=-0.3)`."""

    weights: NDArray[np.float32]  # [2^k]
    bias: float

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` has written.

        Raises:
            ClassifierError: it cannot be read, or is another kind of file.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                weights, bias = stored["weights"].astype(np.float32), float(stored["bias"])
        except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
            raise ClassifierError(f"{path} is not a classifier of refusals: {error}") from None
        size = weights.size
        if weights.ndim != 1 or size < 2 or size & (size - 1) or not np.isfinite([*weights, bias]).all():
            raise ClassifierError(f"{path} is not a classifier of refusals: weights of shape {weights.shape}")
        return cls(weights=weights, bias=bias)

    def save(self, path: Path) -> None:
        """Write the weights in float16, without pickle."""
        with open(path, "wb") as file:
            np.savez_compressed(file, weights=self.weights.astype(np.float16), bias=np.float64(self.bias))

    def refuses(self, text: str) -> bool:
        """Return whether a text is more likely a refusal than an answer."""
        return self.logit(text) > 0

    def logit(self, text: str) -> float:
        """Return the log-odds of a refusal. Of an empty text they are the bias."""
        places = features(text, self.weights.size)
        return self.bias + float(self.weights[places].sum(dtype=np.float64) / np.sqrt(max(1, len(places))))


def opening(text: str) -> str:
    """Return the first characters of a text: one kind of apostrophe, single blanks."""
    return " ".join(text.replace("\u2019", "'").replace("\u2018", "'").split())[:OPENING]


def features(text: str, dimensions: int) -> NDArray[np.int64]:
    """Return the places [n] of a text's n-grams among `dimensions`, in ascending order."""
    line = f"^{opening(text).lower()}$" if text.strip() else ""
    found = set()
    for part, name in ((line, "all"), (line[:START], "start")):
        for n in range(SHORTEST, LONGEST + 1):
            found |= {f"{name}:{part[i : i + n]}" for i in range(len(part) - n + 1)}
    return np.unique(np.asarray([zlib.crc32(gram.encode()) % dimensions for gram in found], np.int64))
