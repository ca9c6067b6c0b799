"""Every class of bad input has a test or a reason for having none, and the page agrees with the tests."""

from __future__ import annotations

from bad_input import CATALOGUE, ELSEWHERE, NOT_SHOWN, PAGE, ROOT, page, shown_by

NUMBERS = [number for classes in CATALOGUE.values() for number in classes]


def test_every_class_has_a_test_or_a_reason() -> None:
    assert sorted(NUMBERS) == list(range(1, 64))
    shown = shown_by()
    assert [n for n in NUMBERS if n not in shown and n not in NOT_SHOWN] == []


def test_tests_listed_by_name_exist() -> None:
    for where in (test for others in ELSEWHERE.values() for test in others):
        file, _, name = where.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), where


def test_golden_texts_belong_to_a_class_with_tests() -> None:
    """Check the golden texts: one that no test compares with would look like evidence."""
    named = {name for others in shown_by().values() for _, _, name in (test.partition("::") for test in others)}
    sources = "".join(file.read_text() for file in (ROOT / "tests").glob("**/test_*.py"))
    for file in sorted((ROOT / "tests/golden/errors").glob("b[0-9][0-9]-*.txt")):
        stem = file.stem
        built = stem.rpartition("-")[0] in sources or f'f"{stem.split("-")[0]}-' in sources
        assert stem in named or built, stem


def test_the_page_is_that_of_the_tests() -> None:
    assert PAGE.read_text() == page(), "write it again: make bad-input"
