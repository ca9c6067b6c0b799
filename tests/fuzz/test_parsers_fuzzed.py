"""Replay of every input that once crashed a parser, and a few hundred new inputs.

`make fuzz` is the long version.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import coverage_fuzzer
import pytest
from fuzz import CORPUS, page
from parsers import PARSERS, Parser

BY_NAME = {parser.name: parser for parser in PARSERS}
CRASHES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
SECONDS = 1.5  # for each parser


@pytest.fixture(autouse=True)
def any_warning_is_only_that() -> Iterator[None]:
    """Ignore the warnings of libraries about random bytes: only exceptions count."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_inputs_that_crashed_once_are_refused(path: Path, tmp_path: Path) -> None:
    _, crash = coverage_fuzzer.execute(BY_NAME[path.parent.name], path.read_bytes(), tmp_path)
    assert crash is None, crash.text if crash else ""


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_new_inputs(parser: Parser) -> None:
    """Parse the same inputs every time, as many as time allows: the seeds, then mutations of them."""
    end, state = time.monotonic() + SECONDS, coverage_fuzzer.FuzzState()
    few = len(parser.seeds()) + 5
    for now in coverage_fuzzer.fuzz(parser, until=lambda s: s.executions >= few and time.monotonic() > end, seed=0):
        state = now
    assert not state.crashes, "\n".join(crash.text for crash in state.crashes.values())
    assert state.executions >= few


def test_seeds_are_understood(tmp_path: Path) -> None:
    """Check that one seed of each parser gets further than garbage. Otherwise the fuzzer would find nothing."""
    for parser in PARSERS:
        reached = [len(coverage_fuzzer.execute(parser, seed, tmp_path)[0]) for seed in parser.seeds()]
        assert max(reached) > len(coverage_fuzzer.execute(parser, b"\0", tmp_path)[0]), parser.name


# ------------------------------------------------------------------------------------------- the fuzzer itself


def _crashes_on_some(content: bytes, directory: Path) -> None:
    if content.startswith(b"seed") and b"\xff" in content:
        raise KeyError("found")


def test_a_crash_is_found_named_and_minimised(tmp_path: Path) -> None:
    parser = Parser(name="x", seeds=lambda: [b"seed" + b"." * 500], words=[b"\xff"], parse=_crashes_on_some)
    states = list(coverage_fuzzer.fuzz(parser, until=lambda s: bool(s.crashes) or s.executions > 2000, seed=0))
    (crash,) = states[-1].crashes.values()
    assert crash.kind.startswith("KeyError at tests/fuzz/test_parsers_fuzzed.py:")
    assert sorted(coverage_fuzzer.smaller(parser, crash, tmp_path).content) == sorted(b"seed\xff")


def test_a_parser_that_does_not_end_counts_as_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never_return(content: bytes, directory: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(coverage_fuzzer, "SECONDS", 0.1)
    parser = Parser(name="x", seeds=lambda: [b""], words=[], parse=never_return)
    _, crash = coverage_fuzzer.execute(parser, b"", tmp_path)
    assert crash is not None
    assert crash.kind == "too slow"


def test_memory_is_limited(tmp_path: Path) -> None:
    parser = Parser(name="x", seeds=lambda: [b""], words=[], parse=lambda c, d: bytearray(8 * 2**30) and None)
    _, crash = coverage_fuzzer.execute(parser, b"", tmp_path)
    assert crash is not None
    assert crash.kind.startswith("MemoryError")


def test_changes_are_the_same_for_the_same_seed() -> None:
    corpus = [b'{"prompt": "1+1=", "level": 3}', b"name: x"]
    mutants = [
        [coverage_fuzzer.change(corpus[0], corpus, [b"null"], draw) for _ in range(50)]
        for draw in map(random.Random, (1, 1, 2))
    ]
    assert mutants[0] == mutants[1] != mutants[2]
    assert len(set(mutants[0])) > 40


def test_the_page_shows_the_recorded_sessions() -> None:
    """Check the page that `python tests/fuzz/fuzz.py --page` writes, and that it lists every crash in the corpus."""
    written = (Path(__file__).parents[2] / "docs" / "evidence" / "fuzzing.md").read_text()
    assert written == page()
    recorded = json.loads((CORPUS / "found.json").read_text())
    assert sorted(recorded) == [f"{path.parent.name}/{path.name}" for path in CRASHES]
