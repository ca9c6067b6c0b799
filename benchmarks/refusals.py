"""Train the classifier of refusals, and compare it with the patterns on phrases that it was not trained on.

    python -m benchmarks.refusals               (`make refusals`; half a minute) writes workers/rewards/refusals.npz and
                                                the tables of docs/evidence/refusals.md
    python -m benchmarks.refusals --phrases mine.json --weights mine.npz
                                                trains on phrases of your own and prints the table

The phrases are templates by language (refusal_phrases.json): `{x}` is a topic, `[a|b]` one of several words, and half
of the texts go on with a further sentence. Phrases, topics and further sentences are divided into NUM_FOLDS parts. A
text is judged by a model that was trained on no text with any of its parts, so that nothing of it has been seen. The
weights that are written are trained on all texts.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.config import RefusalRewardConfig
from workers.rewards.refusal import RefusalScorer
from workers.rewards.refusal_classifier import SHIPPED, RefusalClassifier, features

ROOT = Path(__file__).parents[1]
PHRASES = ROOT / "benchmarks" / "refusal_phrases.json"
PAGE = ROOT / "docs" / "evidence" / "refusals.md"
BEGIN, END = "<!-- tables: make refusals -->", "<!-- end of the tables -->"
KINDS = {"refusals": True, "answers": False}
NUM_FOLDS = 4
MIXED, OWN = 16, 8  # texts of a phrase with parts of any fold, and with parts of its own
DIMENSIONS = 2**15
C = 30.0  # inverse strength of the L2 penalty
SEED = 0
CHOICE = re.compile(r"\[([^\]]*)\]")
NO_SPACES = ("zh", "ja", "th")  # languages whose sentences follow one another without a blank

Phrases = Mapping[str, Mapping[str, Sequence[str]]]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A text. Example: `Row(text="Sorry, no.", refuses=True, language="en", phrase="en refusals 2", folds={2})`."""

    text: str
    refuses: bool
    language: str
    phrase: str  # its template
    folds: frozenset[int]  # of its phrase, its topic and its further sentence


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Quality of a detector on some rows; each phrase counts once, whatever the number of its texts."""

    precision: float
    recall: float
    false_alarms: float  # share of answers that are taken for refusals


def rows(phrases: Phrases) -> Iterator[Row]:
    """Yield the texts of all phrases, each once."""
    generator = np.random.Generator(np.random.Philox(SEED))
    for language, of_language in phrases.items():
        for kind, refuses in KINDS.items():
            for i in range(len(of_language[kind])):
                drawn = (
                    _text(of_language, kind, i, generator, own=own, blank="" if language in NO_SPACES else " ")
                    for own in [False] * MIXED + [True] * OWN
                )
                for text, folds in dict(drawn).items():
                    name = f"{language} {kind} {i}"
                    yield Row(text=text, refuses=refuses, language=language, phrase=name, folds=folds)


def _text(
    of_language: Mapping[str, Sequence[str]], kind: str, index: int, generator: Any, *, own: bool, blank: str
) -> tuple[str, frozenset[int]]:
    """Return a text of a phrase and the folds of its parts. `own`: all of them are of the phrase's fold."""
    fold, parts = index % NUM_FOLDS, {index % NUM_FOLDS}

    def drawn(key: str) -> str:
        given = range(fold, len(of_language[key]), NUM_FOLDS) if own else range(len(of_language[key]))
        chosen = given[int(generator.integers(len(given)))]
        parts.add(chosen % NUM_FOLDS)
        return of_language[key][chosen]

    template = of_language[kind][index]
    text = CHOICE.sub(lambda found: str(generator.choice(found[1].split("|"))), template)
    text = text.replace("{x}", drawn("topics")) if "{x}" in text else text
    text = text[:1].upper() + text[1:]
    if generator.integers(2):
        text += blank + drawn(f"{kind}_go_on")
    return text, frozenset(parts)


def train(given: Sequence[Row]) -> RefusalClassifier:
    """Fit the classifier to rows; every phrase has the same weight."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    places = [features(row.text, DIMENSIONS) for row in given]
    sizes = np.asarray([len(p) for p in places])
    matrix = sparse.csr_matrix(
        (np.repeat(sizes**-0.5, sizes), np.concatenate(places), np.concatenate([[0], np.cumsum(sizes)])),
        shape=(len(given), DIMENSIONS),
    )
    model = LogisticRegression(C=C, max_iter=2000, tol=1e-6)
    model.fit(matrix, [row.refuses for row in given], sample_weight=_weights(given))
    return RefusalClassifier(weights=model.coef_[0].astype(np.float32), bias=float(model.intercept_[0]))


def held_out(given: Sequence[Row]) -> tuple[list[Row], Booleans]:
    """Return the rows whose parts are all of one fold, and what models that have seen none of them say."""
    judged: list[Row] = []
    said: list[bool] = []
    for fold in range(NUM_FOLDS):
        model = train([row for row in given if fold not in row.folds])
        mine = [row for row in given if row.folds == {fold}]
        judged += mine
        said += [model.refuses(row.text) for row in mine]
    return judged, np.asarray(said)


def figures(given: Sequence[Row], said: Booleans, language: str | None = None) -> Figures:
    """Compare what a detector says with the labels. `language`: rows in this one only."""
    chosen = np.asarray([language in (None, row.language) for row in given])
    is_refusal = np.asarray([row.refuses for row in given])
    weights = _weights(given) * chosen
    right, false = float(weights[said & is_refusal].sum()), float(weights[said & ~is_refusal].sum())
    return Figures(
        precision=right / (right + false) if right + false else float("nan"),
        recall=right / float(weights[is_refusal].sum()),
        false_alarms=false / float(weights[~is_refusal].sum()),
    )


def _weights(given: Sequence[Row]) -> NDArray[np.float64]:
    counts = Counter(row.phrase for row in given)
    return np.asarray([1 / counts[row.phrase] for row in given])


def paragraphs() -> list[str]:
    """Return the paragraphs of this documentation: English, full of `cannot` and `refuse`, and no refusals."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    found = [part for page in pages for part in page.read_text("utf-8").split("\n\n")]
    return [part for part in found if part[:1].isalpha() and len(part) > 40]


def table(given: Sequence[Row]) -> str:
    """Return the table of both detectors and of the two together, by language."""
    judged, learnt = held_out(given)
    scorer = RefusalScorer(RefusalRewardConfig(type="refusal"))
    matched = np.asarray([scorer.refuses(row.text) for row in judged])
    detectors = {"patterns": matched, "classifier": learnt, "either of them": matched | learnt}
    languages = list(dict.fromkeys(row.language for row in judged))
    lines = [
        "| language | phrases: refusals, answers | detector | precision | recall | answers taken for refusals |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for language in [*languages, None]:
        counted = {row.phrase: row.refuses for row in judged if language in (None, row.language)}
        refusals = sum(counted.values())
        for name, said in detectors.items():
            f = figures(judged, said, language)
            precision = "–" if np.isnan(f.precision) else f"{f.precision:.1%}"
            head = f"| {language or 'all'} | {refusals}, {len(counted) - refusals} | {name} "
            lines.append(f"{head}| {precision} | {f.recall:.1%} | {f.false_alarms:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phrases", type=Path, default=PHRASES, help="JSON file of phrases by language")
    parser.add_argument("--weights", type=Path, default=SHIPPED, help="file to write")
    asked = parser.parse_args()
    given = list(rows(json.loads(asked.phrases.read_text("utf-8"))))
    measured = table(given)
    train(given).save(asked.weights)
    print(f"{measured}\n\n{asked.weights}: {asked.weights.stat().st_size:,} bytes, from {len(given):,} texts")
    if asked.phrases != PHRASES or asked.weights != SHIPPED:
        return
    scorer, classifier = RefusalScorer(RefusalRewardConfig(type="refusal")), RefusalClassifier.load(SHIPPED)
    texts = paragraphs()
    false = {"patterns": sum(map(scorer.refuses, texts)), "classifier": sum(map(classifier.refuses, texts))}
    share = ", ".join(f"{name} {count} ({count / len(texts):.1%})" for name, count in false.items())
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    after = (
        f"Of the {len(texts)} paragraphs of this documentation, no refusal among them, are taken for one: {share}.\n"
    )
    PAGE.write_text(f"{before}{BEGIN}\n{measured}\n\n{after}{END}{rest.split(END)[1]}", "utf-8")
    print(after)


if __name__ == "__main__":
    main()
