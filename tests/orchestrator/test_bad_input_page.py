"""Every class of bad input is shown by a test, or it is said why not; and the page says what the tests are."""

from __future__ import annotations

from bad_input import CATALOGUE, ELSEWHERE, NOT_SHOWN, PAGE, ROOT, page, shown_by

NUMBERS = [number for classes in CATALOGUE.values() for number in classes]


def test_every_class_is_shown_or_it_is_said_why_not() -> None:
    assert sorted(NUMBERS) == list(range(1, 64))
    shown = shown_by()
    assert [n for n in NUMBERS if n not in shown and n not in NOT_SHOWN] == []


def test_tests_that_are_named_otherwise_are_there() -> None:
    for where in (test for others in ELSEWHERE.values() for test in others):
        file, _, name = where.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), where


def test_golden_texts_belong_to_a_class_that_is_shown() -> None:
    """A golden text that no test asks for would look like a proof."""
    named = {name for others in shown_by().values() for _, _, name in (test.partition("::") for test in others)}
    sources = "".join(file.read_text() for file in (ROOT / "tests").glob("**/test_*.py"))
    for file in sorted((ROOT / "tests/golden/errors").glob("b[0-9][0-9]-*.txt")):
        stem = file.stem
        built = stem.rpartition("-")[0] in sources or f'f"{stem.split("-")[0]}-' in sources
        assert stem in named or built, stem


def test_the_page_is_that_of_the_tests() -> None:
    assert PAGE.read_text() == page(), "write it anew: make bad-input"
