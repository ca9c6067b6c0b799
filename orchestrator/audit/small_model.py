"""Small models that predict the preferred completion: from the words of both, or from their lengths alone.

A row is always predicted by a model that was not trained on it, nor on another row with its prompt (cross-fitting in
NUM_FOLDS parts). The only module that uses scikit-learn and scipy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.audit.finding import Numbers
from orchestrator.audit.reading import Columns
from orchestrator.audit.words import ngrams, part
from orchestrator.data.audit import mixed

NUM_FOLDS = 5
DIMENSIONS = 2**18  # hashed words and pairs of words; the first one is the length
WORDS = 128  # first words of a completion that count
MAX_TRAINED = 100_000  # rows that the models are trained on, fewer if they are long; all rows are predicted
MAX_TRAINED_WORDS = 15_000_000  # of all these rows, in 120 MB for words and pairs of words each
CHUNK = 4096  # rows
RIDGE, EPOCHS = 1e-5, 10  # of the model on words, which averages the weights of all its steps
SEED = 0

Margins = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthModel:
    """Preferences as predicted from the two lengths. Example: `LengthModel(accuracy=0.71, explained=0.14)`."""

    accuracy: float  # share of held-out pairs in which it predicts the chosen completion
    explained: float  # McFadden's R² of held-out pairs: share of log 2 that the predictions save


def folds_of(columns: Columns) -> NDArray[np.int64]:
    """Return the fold [n] of each row, which depends on its prompt alone."""
    return (mixed(columns.keys.prompts) % np.uint64(NUM_FOLDS)).astype(np.int64)


def margins_by_words(columns: Columns, rows: Numbers) -> Margins:
    """Return the log-odds [k] with which a model on words predicts the preference of each of `rows`, held out."""
    from scipy import sparse
    from sklearn.linear_model import SGDClassifier

    generator = np.random.Generator(np.random.Philox(SEED))
    trained = generator.permutation(rows)[:MAX_TRAINED]
    sizes = np.minimum(columns.words.sizes, WORDS)[trained, 1:].sum(1)
    trained = np.sort(trained[np.cumsum(sizes) <= MAX_TRAINED_WORDS])
    parts = [_features(columns, trained[begin : begin + CHUNK], sparse) for begin in range(0, len(trained), CHUNK)]
    features, folds = sparse.vstack(parts, "csr"), folds_of(columns)
    del parts
    sides = generator.integers(0, 2, len(trained)) * 2 - 1  # half of the pairs are shown in reverse
    features.data *= np.repeat(sides, np.diff(features.indptr)).astype(np.float32)
    weights = np.zeros((DIMENSIONS, NUM_FOLDS), np.float32)
    for fold in range(NUM_FOLDS):
        used = folds[trained] != fold
        if len(np.unique(sides[used])) == 2:
            model = SGDClassifier(
                loss="log_loss",
                alpha=RIDGE,
                max_iter=EPOCHS,
                tol=None,
                fit_intercept=False,
                average=True,
                random_state=SEED,
            )
            weights[:, fold] = model.fit(features[used], sides[used]).coef_[0]
    del features
    margins = np.zeros(len(rows))
    for begin in range(0, len(rows), CHUNK):
        some = rows[begin : begin + CHUNK]
        predicted = _features(columns, some, sparse) @ weights
        margins[begin : begin + CHUNK] = predicted[np.arange(len(some)), folds[some]]
    return margins


def _features(columns: Columns, rows: Numbers, sparse: Any) -> Any:
    """Return a sparse matrix [k, DIMENSIONS]: words of the best completion minus those of the worst, and lengths."""
    texts = columns.words.pick(rows)
    places, features, signs = [], [], []
    for which, sign in ((1, 1.0), (2, -1.0)):
        words = part(texts, which, WORDS)
        for hashes, offsets in (ngrams(words, 1), ngrams(words, 2, padded=False)):
            places.append(np.repeat(np.arange(len(rows)), np.diff(offsets)))
            features.append(1 + (hashes % np.uint64(DIMENSIONS - 1)).astype(np.int64))
            signs.append(np.full(len(hashes), sign, np.float32))
    shape = (len(rows), DIMENSIONS)
    at = np.concatenate(places), np.concatenate(features)
    matrix = sparse.csr_matrix((np.concatenate(signs), at), shape, dtype=np.float32)
    matrix.sum_duplicates()
    matrix.data = np.sign(matrix.data) * np.sqrt(np.abs(matrix.data))  # a word that is repeated counts less each time
    matrix.eliminate_zeros()
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1))[:, 0])
    matrix.data /= np.repeat(np.maximum(norms, 1e-6), np.diff(matrix.indptr)).astype(np.float32)
    ratio = np.log((columns.best_bytes[rows] + 1) / (columns.worst_bytes[rows] + 1))
    length = sparse.csr_matrix((np.tanh(ratio), (np.arange(len(rows)), np.zeros(len(rows), np.int64))), shape)
    return (matrix + length.astype(np.float32)).tocsr()


def length_model(columns: Columns, rows: Numbers) -> LengthModel:
    """Predict the preference of each of `rows` from the lengths of both completions in bytes, held out."""
    from sklearn.linear_model import LogisticRegression

    best, worst = columns.best_bytes[rows].astype(np.float64), columns.worst_bytes[rows].astype(np.float64)
    gap, ratio = best - worst, np.log((best + 1) / (worst + 1))
    squares = np.log(best + 1) ** 2 - np.log(worst + 1) ** 2  # neither the longest nor the shortest may be the best
    features = np.stack([np.tanh(gap / (gap.std() + 1e-9)), ratio, squares / 10], 1)
    sides = np.random.Generator(np.random.Philox(SEED)).integers(0, 2, len(rows)) * 2 - 1
    folds, margins = folds_of(columns)[rows], np.zeros(len(rows))
    for fold in range(NUM_FOLDS):
        used = folds != fold
        if len(np.unique(sides[used])) == 2:
            model = LogisticRegression(fit_intercept=False).fit(features[used] * sides[used, None], sides[used])
            margins[~used] = features[~used] @ model.coef_[0]
    accuracy = float((margins > 0).mean() + (margins == 0).mean() / 2)
    return LengthModel(accuracy=accuracy, explained=float(1 - np.logaddexp(0, -margins).mean() / np.log(2)))
