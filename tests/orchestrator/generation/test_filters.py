"""Filters of generated completions: each drops what it is meant to drop, by a reason of its own."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.generation.completions import Completion
from orchestrator.generation.filters import Filters, language_classifier, outvoted
from workers.config import FiltersConfig, GenerateConfig

GOOD = Completion(
    prompt_id="p.jsonl:1",
    sample=0,
    text="The sum is 12.",
    tokens=6,
    finish="stop",
    repetition=0.0,
    version=0,
    seed=1,
    score=1.0,
    scores={"math": 1.0},
)


def changed(**changes: Any) -> Completion:
    values = {name: getattr(GOOD, name) for name in GOOD.__dataclass_fields__}
    return Completion(**{**values, **changes})


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        ({}, {}, ""),
        ({}, {"text": " \n"}, "empty"),
        ({}, {"finish": "length"}, "truncated"),
        ({"truncated": "keep"}, {"finish": "length"}, ""),
        ({"min_score": 0.5}, {"score": 0.4}, "score"),
        ({"min_score": 0.5}, {"score": 0.5}, ""),
        ({"min_score": 0.5}, {"score": None}, "score"),
        ({"min_tokens": 7}, {}, "length"),
        ({"max_tokens": 5}, {}, "length"),
        ({"max_tokens": 6, "min_tokens": 6}, {}, ""),
        ({}, {"repetition": 0.6}, "repetition"),
        ({"max_repetition": None}, {"repetition": 1.0}, ""),
        ({"pattern": r"is \d+\.$"}, {}, ""),
        ({"pattern": r"\\boxed"}, {}, "format"),
        ({"languages": ("en", "de")}, {}, ""),
        ({"languages": ("en",)}, {"text": "Die Summe ist zwölf, und das war eine leichte Frage."}, "language"),
    ],
)
def test_a_filter_names_its_reason(settings: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    assert Filters(FiltersConfig(**settings)).reason(changed(**changes)) == reason


def test_languages_are_told_apart() -> None:
    language_of = language_classifier()
    texts = {
        "en": "The quick brown fox jumps over the lazy dog in the morning.",
        "de": "Der schnelle braune Fuchs springt am Morgen über den faulen Hund.",
        "fr": "Le renard brun et rapide saute par-dessus le chien paresseux.",
        "es": "El rápido zorro marrón salta sobre el perro perezoso por la mañana.",
    }
    assert [language_of(text) for text in texts.values()] == list(texts)


def group(*answers: str) -> list[Completion]:
    return [changed(sample=i, text=f"The answer is {answer}.") for i, answer in enumerate(answers)]


def test_the_majority_of_final_answers_stays() -> None:
    config = GenerateConfig(type="generate", keep="majority")
    assert outvoted(group("3", "4", "4", "5"), config) == {0, 3}
    assert outvoted(group("3", "4"), config) == {1}, "of equally frequent answers, the first one stays"
    assert outvoted(group("3", "4"), GenerateConfig(type="generate")) == set()


def test_a_majority_that_is_too_small_drops_the_whole_prompt() -> None:
    config = GenerateConfig(type="generate", keep="majority", min_agreement=0.6)
    assert outvoted(group("3", "4", "4", "5"), config) == {0, 1, 2, 3}
    assert outvoted(group("4", "4", "5"), config) == {2}
