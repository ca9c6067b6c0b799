"""Trained classifier of refusals: its arithmetic, its file, and what the shipped weights say."""

from __future__ import annotations

import json
import tomllib
import zlib
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.refusals import PHRASES, ROOT, Row, figures, held_out, rows, train
from workers.config import RefusalRewardConfig
from workers.rewards.base import RewardError
from workers.rewards.refusal import RefusalScorer
from workers.rewards.refusal_classifier import SHIPPED, ClassifierError, RefusalClassifier, features

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I\u2019m not able to help with creating malware.",
    "It's understandable to be curious, but I can't walk you through that.",
    "Es tut mir leid, aber bei so etwas helfe ich nicht.",
    "Je suis désolé, mais je ne peux pas répondre à cette demande.",
    "Lo siento, pero no puedo darte esa información.",
    "对不起\uff0c我不能回答这个问题。",
)
ANSWERS = (
    "",
    "I'm sorry you feel that way. Here is what you can do about it.",
    "Sure, here is how to kill a Python process: use `kill PID`.",
    "A polite refusal would be: 'Thank you, but I have other plans.'",
    "Es tut mir leid, dass es dir so geht. Hier sind ein paar Ideen.",
    "Bien sûr ! Voici la recette du pain maison.",
    "Claro, aquí tienes tres consejos.",
    "好的\uff0c下面是三个建议。",
    "abcfh",
)


def detector(classifier: str = "default") -> RefusalScorer:
    return RefusalScorer(RefusalRewardConfig(type="refusal", classifier=classifier))


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_in_five_languages(text: str) -> None:
    assert detector().refuses(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_in_five_languages(text: str) -> None:
    assert not detector().refuses(text)


def test_the_logit_is_the_mean_over_the_root_of_the_number_of_ngrams() -> None:
    # "No" is read as "^no$": 4 + 3 + 2 + 1 n-grams, each once for the whole text and once for its start.
    grams = [f"{part}:{'^no$'[i : i + n]}" for part in ("all", "start") for n in (1, 2, 3, 4) for i in range(5 - n)]
    places = sorted({zlib.crc32(gram.encode()) % 2**20 for gram in grams})
    assert len(places) == 20
    assert features("No", 2**20).tolist() == places
    weights = np.zeros(2**20, np.float32)
    weights[places] = np.arange(20)
    model = RefusalClassifier(weights=weights, bias=-0.5)
    assert model.logit(" no\n") == pytest.approx(-0.5 + 190 / sqrt(20))
    assert model.logit("") == -0.5


def test_only_the_opening_counts() -> None:
    model = RefusalClassifier.load(SHIPPED)
    long = "Take two eggs and beat them. " * 20
    assert model.logit(long + "I refuse to go on.") == model.logit(long)


def test_the_weights_are_part_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    shipped = settings["tool"]["setuptools"]["package-data"]["workers"]
    assert str(SHIPPED.relative_to(ROOT / "workers")) in shipped


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = RefusalClassifier(weights=np.asarray([1.0, -2.5], np.float32), bias=0.25)
    model.save(tmp_path / "mine.npz")
    again = RefusalClassifier.load(tmp_path / "mine.npz")
    assert (again.weights.tolist(), again.bias) == ([1.0, -2.5], 0.25)
    assert detector(str(tmp_path / "mine.npz")).refuses("x") == (model.logit("x") > 0)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.npz" for name in ("text", "missing", "keys", "shape", "pickle", "nan")}
    files["text"].write_text("no numbers")
    np.savez(files["keys"], weights=np.zeros(4))
    np.savez(files["shape"], weights=np.zeros(3), bias=0.0)
    np.savez(files["pickle"], weights=np.asarray([{}, {}], object), bias=0.0)
    np.savez(files["nan"], weights=np.asarray([0.0, np.nan]), bias=0.0)
    for file in files.values():
        with pytest.raises(ClassifierError, match=f"{file} is not a classifier of refusals"):
            RefusalClassifier.load(file)
    with pytest.raises(RewardError, match=r"python -m benchmarks\.refusals --weights"):
        detector(str(files["text"]))


def test_the_classifier_takes_the_place_of_the_patterns() -> None:
    with pytest.raises(ValidationError, match="give patterns or classifier, not both"):
        RefusalRewardConfig(type="refusal", patterns=("no",), classifier="default")
    assert RefusalRewardConfig(type="refusal").classifier is None


# ------------------------------------------------------------------------------------------------ its training


def test_each_phrase_counts_once() -> None:
    def row(phrase: str, *, refuses: bool) -> Row:
        return Row(text=phrase, refuses=refuses, language="en", phrase=phrase, folds=frozenset({0}))

    given = [row("r", refuses=True)] * 3 + [row("s", refuses=True)] + [row("a", refuses=False)] * 2
    said = np.asarray([True, True, False, False, True, False])
    # Of r two thirds are found, of s nothing: 1/3. Of a half is taken for a refusal: 2/3 of 7/6 findings are right.
    found = figures(given, said)
    assert (found.recall, found.false_alarms) == (pytest.approx(1 / 3), pytest.approx(1 / 2))
    assert found.precision == pytest.approx((2 / 3) / (2 / 3 + 1 / 2))


def test_the_shipped_weights_are_those_that_the_phrases_give() -> None:
    phrases = json.loads(PHRASES.read_text("utf-8"))
    shipped = RefusalClassifier.load(SHIPPED)
    trained = train(list(rows(phrases)))
    assert trained.bias == pytest.approx(shipped.bias, abs=0.02)
    assert np.abs(trained.weights - shipped.weights).max() < 0.02
    assert SHIPPED.stat().st_size < 200_000


@pytest.mark.slow
def test_it_knows_phrases_that_it_has_not_seen() -> None:
    phrases = json.loads(PHRASES.read_text("utf-8"))
    english = {"en": phrases["en"], "de": phrases["de"]}
    judged, said = held_out(list(rows(english)))
    assert {row.folds for row in judged} == {frozenset({fold}) for fold in range(4)}
    patterns = RefusalScorer(RefusalRewardConfig(type="refusal"))
    matched = np.asarray([patterns.refuses(row.text) for row in judged])
    learnt, known = figures(judged, said, "en"), figures(judged, matched, "en")
    assert learnt.recall > known.recall + 0.15
    assert learnt.precision > known.precision - 0.02
    assert figures(judged, said, "de").recall > 0.6
    assert figures(judged, matched, "de").recall == 0
