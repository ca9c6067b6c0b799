"""Words of texts as hashes, for thousands of texts at a time in numpy, and n-grams of them.

A word is a run of letters and digits of ASCII in lower case, or a run of other characters; white space and punctuation
of ASCII separate words. Each character from U+2000 on, such as those of scripts without spaces, begins a word.
"""

from __future__ import annotations

import os
import tempfile
import unicodedata
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from workers.near_duplicates import PADDING, N

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]
MAX_WORDS = 1024  # of a text; of a longer prompt the last ones are kept, of a longer completion the first ones
ALONE = 0xE2  # first byte of characters that begin a word: U+2000 and later

_RANDOM = np.random.Generator(np.random.Philox(20_261_130))
_PLACE = _RANDOM.integers(1, 2**31, 256, np.uint32) * np.uint32(2) + np.uint32(1)  # of a byte within its word
_GRAM = _RANDOM.integers(1, 2**63, 16, np.uint64) * np.uint64(2) + np.uint64(1)  # of a word within its n-gram


def _kinds() -> NDArray[np.uint8]:
    kinds = np.zeros(256, np.uint8)
    kinds[128:] = 2
    for first, last in (("0", "9"), ("A", "Z"), ("a", "z")):
        kinds[ord(first) : ord(last) + 1] = 1
    return kinds


_KIND = _kinds()  # 0: separates words, 1: letter or digit of ASCII, 2: byte of another character
_BYTE = _RANDOM.integers(1, 2**32, 256, np.uint32) * (_KIND > 0)  # 0 for separators, which do not change a hash


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """Hashes of the words of several texts. Text i owns words[offsets[i]:offsets[i + 1]]."""

    words: NDArray[np.uint32]  # [T]
    offsets: Offsets  # [n + 1]

    @property
    def sizes(self) -> Offsets:  # [n]
        return np.diff(self.offsets)


def normal(text: str) -> str:
    """Return the form of a text in which words are compared."""
    return unicodedata.normalize("NFC", text).lower()


def words_of(texts: Sequence[str]) -> Words:
    """Return the hashes of the words of normal `texts`."""
    _, _, words, offsets = _split(texts)
    return Words(words=words, offsets=offsets)


def named_words(text: str) -> tuple[Words, list[str]]:
    """Return the hashes of the words of a normal text, and the words themselves."""
    data, starts, words, offsets = _split([text])
    raw, separators = data.tobytes(), np.flatnonzero(_KIND[data] == 0)
    ends = np.minimum(np.append(starts[1:], len(raw)), separators[np.searchsorted(separators, starts)])
    named = [raw[start:end].decode("utf-8", "replace") for start, end in zip(starts.tolist(), ends, strict=False)]
    return Words(words=words, offsets=offsets), named


def _split(texts: Sequence[str]) -> tuple[NDArray[np.uint8], Offsets, NDArray[np.uint32], Offsets]:
    """Return all texts in UTF-8, a line end after each; where words begin in it; their hashes; and offsets [n + 1]."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    data = np.frombuffer(b"\n".join([*encoded, b""]), np.uint8)
    limits = np.concatenate([[0], np.cumsum([len(text) + 1 for text in encoded])])
    kind = _KIND[data]
    begins = kind > 0
    begins[1:] &= (kind[1:] != kind[:-1]) | (data[1:] >= ALONE)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return data, starts, np.zeros(0, np.uint32), np.zeros(len(texts) + 1, np.int64)
    first = starts[0]  # separators before the first word belong to none
    place = np.arange(len(data) - first, dtype=np.int32)
    place -= np.repeat((starts - first).astype(np.int32), np.diff(np.append(starts, len(data))))
    sums = np.add.reduceat(_BYTE[data[first:]] * _PLACE[np.minimum(place, 255)], starts - first, dtype=np.uint32)
    return data, starts, sums, np.searchsorted(starts, limits).astype(np.int64)


def mix(keys: Hashes) -> Hashes:
    """Spread hashes over all their bits (the finaliser of MurmurHash3)."""
    keys = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    keys = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return keys ^ (keys >> np.uint64(33))


def ngrams(texts: Words, n: int = N, *, padded: bool = True) -> tuple[Hashes, Offsets]:
    """Return the hashes of the n-grams of each text and their offsets. A repeated n-gram stands there repeatedly.

    Args:
        padded: whether a text of fewer than n words has one n-gram; otherwise it has none.
    """
    words, sizes = texts.words, texts.sizes
    left = np.repeat(texts.offsets[1:], sizes) - np.arange(texts.offsets[0], texts.offsets[-1])
    grams = np.zeros(len(words), np.uint64)
    for i in range(n):
        word = np.full(len(words), PADDING)
        word[: len(words) - i] = words[i:]
        if padded:
            word[left <= i] = PADDING
        grams += mix(word) * _GRAM[i]
    kept = left >= n
    if padded:
        short = np.flatnonzero((sizes > 0) & (sizes < n))
        kept[texts.offsets[short] - texts.offsets[0]] = True
    counted = np.concatenate([[0], np.cumsum(kept)])
    return mix(grams[kept]), counted[texts.offsets - texts.offsets[0]]


class WordStore:
    """Words of the prompt, the best and the worst completion of each row, in a temporary file: 4 bytes a word."""

    PARTS = 3

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="rlhf-audit-")  # noqa: SIM115 - closed by `close`
        self.close = weakref.finalize(self, self._file.close)  # called when nobody refers to the store, at the latest
        self._sizes: list[NDArray[np.int32]] = []
        self._offsets: Offsets | None = None

    def add(self, prompts: Sequence[str], best: Sequence[str], worst: Sequence[str]) -> None:
        """Append rows. Of long texts only MAX_WORDS are kept."""
        count = len(prompts)
        found = words_of([normal(text) for row in zip(prompts, best, worst, strict=True) for text in row])
        sizes = np.minimum(found.sizes, MAX_WORDS)
        begin = found.offsets[:-1].copy()
        of_prompts = np.arange(0, self.PARTS * count, self.PARTS)
        begin[of_prompts] += found.sizes[of_prompts] - sizes[of_prompts]
        kept = np.repeat(begin - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        found.words[kept].tofile(self._file)
        self._sizes.append(sizes.astype(np.int32))

    def finish(self) -> None:
        """Make the rows readable, after the last one was added."""
        self._file.flush()
        sizes = np.concatenate(self._sizes) if self._sizes else np.zeros(0, np.int32)
        self._offsets, self._sizes = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), []

    @property
    def offsets(self) -> Offsets:  # [3 n + 1]
        assert self._offsets is not None, "rows are read before they are finished"
        return self._offsets

    @property
    def sizes(self) -> Offsets:  # [n, 3]
        return np.diff(self.offsets).reshape(-1, self.PARTS)

    def rows(self, begin: int, end: int) -> Words:
        """Return the three texts of each row from `begin` to `end`: prompt, best, worst, prompt, …"""
        offsets = self.offsets[self.PARTS * begin : self.PARTS * end + 1]
        data = os.pread(self._file.fileno(), int(offsets[-1] - offsets[0]) * 4, int(offsets[0]) * 4)
        return Words(words=np.frombuffer(data, np.uint32), offsets=offsets - offsets[0])

    def pick(self, rows: NDArray[np.int64]) -> Words:
        """Return the three texts of each of the ascending `rows`."""
        if not len(rows):
            return Words(words=np.zeros(0, np.uint32), offsets=np.zeros(1, np.int64))
        begin = int(rows[0])
        texts = self.rows(begin, int(rows[-1]) + 1)  # read in one piece, also where few of them are wanted
        which = (self.PARTS * (rows - begin)[:, None] + np.arange(self.PARTS)).ravel()
        sizes = texts.sizes[which]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        kept = np.repeat(texts.offsets[which] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Words(words=texts.words[kept], offsets=offsets)


def part(texts: Words, which: int, at_most: int = MAX_WORDS) -> Words:
    """Return one of the three texts of each row: 0 the prompt, 1 the best, 2 the worst completion.

    Args:
        at_most: number of words to keep: of a prompt the last ones, of a completion the first ones.
    """
    begin, end = texts.offsets[which : -1 : WordStore.PARTS], texts.offsets[which + 1 :: WordStore.PARTS]
    if which == 0:
        begin = np.maximum(begin, end - at_most)
    else:
        end = np.minimum(end, begin + at_most)
    sizes = end - begin
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    kept = np.repeat(begin - offsets[:-1], sizes) + np.arange(offsets[-1])
    return Words(words=texts.words[kept], offsets=offsets)
