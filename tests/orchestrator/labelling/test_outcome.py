"""Verdicts, rows and margins of counted answers, and conservation of every answer."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.labelling.answers import merged
from orchestrator.labelling.importing import Report, share_of_first, write_outcome
from orchestrator.labelling.outcome import Count, Rule, row_of, verdict
from orchestrator.labelling.task import Answer, Task, task_of
from orchestrator.labelling.task_file import read_tasks


def count(first: int, second: int, ties: int = 0, skipped: int = 0) -> Count:
    return Count(votes=(first, second), ties=ties, skipped=skipped)


def test_verdicts() -> None:
    rule = Rule(min_votes=3, min_agreement=0.75)
    assert verdict(count(2, 0), rule) == "more", "two votes of three"
    assert verdict(count(3, 0), rule) == "preference"
    assert verdict(count(2, 1), rule) == "more", "2/3 < 3/4"
    assert verdict(count(1, 3), rule) == "preference"
    assert verdict(count(2, 0, ties=1), rule) == "preference", "(2 + 1/2)/3 = 5/6"
    assert verdict(count(1, 0, ties=2), rule) == "more", "(1 + 1)/3 = 2/3, and 2/3 are ties"
    assert verdict(count(1, 0, ties=3), rule) == "tie"
    assert verdict(count(0, 0, skipped=9), rule) == "more", "no opinion is no vote"
    assert verdict(count(0, 0), Rule()) == "more"
    limited = Rule(min_votes=1, min_agreement=0.9, max_votes=4)
    assert verdict(count(2, 1), limited) == "more"
    assert verdict(count(3, 1), limited) == "preference"
    assert verdict(count(2, 2), limited) == "tie"


def task(preferred: int | None = 0, **columns: Any) -> Task:
    made = task_of("2+2=", ("4", "5"), source="p:1", preferred=preferred, columns=columns)
    assert made is not None
    return made


def answers(*choices: Any) -> tuple[Answer, ...]:
    return tuple(Answer(annotator=f"a{i}", choice=choice, shown_first=0) for i, choice in enumerate(choices))


def test_a_row_has_its_votes_and_columns_of_a_side_follow_it() -> None:
    voted = task(chosen_score=0.9, rejected_score=0.1, level=3).with_answers(answers(1, 1, 0, "tie", "skip"))
    row = row_of(voted, Rule(margins=True))
    assert row["chosen"] == "5"
    assert row["rejected"] == "4"
    assert (row["chosen_score"], row["rejected_score"], row["level"]) == (0.1, 0.9, 3), "the annotators disagree"
    assert row["votes"] == {"for": 2, "against": 1, "tie": 1}
    assert row["annotators"] == ["a0", "a1", "a2", "a3"], "who had no opinion is no voter"
    assert row["agreement"] == 0.625  # (2 + 1/2)/4
    assert row["margin"] == pytest.approx(math.log(3.5 / 2.5))  # (2 + 1/2 + 1)/(1 + 1/2 + 1)
    assert "margin" not in row_of(voted, Rule())


def test_columns_do_not_replace_the_texts() -> None:
    row = row_of(task(chosen="gold", votes=7).with_answers(answers(0)), Rule())
    assert (row["chosen"], row["votes"]) == ("4", {"for": 1, "against": 0, "tie": 0})


def test_a_pair_and_its_reverse_are_one_task() -> None:
    one, other = (task_of("p", pair, source="p:1", preferred=0) for pair in (("x", "y"), ("y", "x")))
    assert one is not None
    assert other is not None
    assert (one.id, one.completions) == (other.id, other.completions)
    assert [one.completions[one.preferred or 0], other.completions[other.preferred or 0]] == ["x", "y"]
    assert task_of("p", ("x ", "x"), source="p:1") is None, "an annotator sees no difference"


def test_the_share_of_the_first_side_has_an_interval_over_tasks() -> None:
    """Repeating every vote four times adds no information: the interval stays, up to T/(T − 1), and does not halve."""
    single = [task_with(i, [i % 3 != 0]) for i in range(60)]
    repeated = [task_with(i, [i % 3 != 0] * 4) for i in range(60)]
    one, four = share_of_first(single), share_of_first(repeated)
    assert one is not None
    assert four is not None
    assert one.value == pytest.approx(2 / 3)
    assert four.value == pytest.approx(2 / 3)
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.02)
    assert share_of_first([]) is None


def task_with(number: int, firsts: list[bool]) -> Task:
    made = task_of(str(number), ("a", "b"), source=f"p:{number}")
    assert made is not None
    votes = [Answer(annotator=str(i), choice=0, shown_first=0 if first else 1) for i, first in enumerate(firsts)]
    return made.with_answers(votes)


# ------------------------------------------------------------------------------------------------ properties

ANSWERS = st.lists(
    st.builds(
        Answer,
        annotator=st.sampled_from("abcde"),
        choice=st.sampled_from([0, 1, "tie", "skip"]),
        shown_first=st.sampled_from([0, 1]),
        time=st.sampled_from(["", "2026-11-30T10:00:00Z", "2026-11-30T10:00:01+00:00", "2026-11-30T12:00:00+02:00"]),
    ),
    max_size=8,
)


@given(first=ANSWERS, second=ANSWERS)
def test_each_annotator_has_one_answer_and_reading_twice_changes_nothing(
    first: list[Answer], second: list[Answer]
) -> None:
    once = merged(merged([], first), second)
    assert {answer.annotator for answer in once} == {answer.annotator for answer in [*first, *second]}
    assert len({answer.annotator for answer in once}) == len(once)
    assert set(once) <= {*first, *second}
    assert merged(once, once) == once


@settings(max_examples=60, deadline=None)
@given(
    given_answers=st.lists(ANSWERS, min_size=1, max_size=6),
    rule=st.builds(
        Rule,
        min_votes=st.integers(1, 4),
        min_agreement=st.floats(0.51, 1.0),
        max_votes=st.none() | st.integers(1, 6),
    ),
)
def test_no_answer_is_lost_or_counted_twice(
    given_answers: list[list[Answer]], rule: Rule, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compare the answers of all files that an import writes with those that it was given."""
    path = tmp_path_factory.mktemp("x") / "labelled.jsonl"
    tasks = [task_with(i, []).with_answers(merged([], a)) for i, a in enumerate(given_answers)]
    report = Report()
    written = write_outcome(path, tasks, rule, report)
    assert sum(report.verdicts.values()) == len(tasks)
    wanted = Counter((t.id, a.annotator) for t in tasks for a in t.answers if a.choice != "skip")
    found: Counter[tuple[str, str]] = Counter()
    if path in written:
        for row in map(json.loads, path.read_text().splitlines()):
            assert sum(row["votes"].values()) == len(row["annotators"])
            assert Counter(row["annotator_votes"]) == Counter({k: n for k, n in row["votes"].items() if n})
            found.update((row["task_id"], annotator) for annotator in row["annotators"])
    if kept := [p for p in written if p != path]:
        for task in read_tasks(kept).values():
            found.update((task.id, a.annotator) for a in task.answers if a.choice != "skip")
    assert found == wanted
    assert report.votes + report.ties == sum(wanted.values())


def test_written_files_are_beside_the_output(tmp_path: Path) -> None:
    tasks = [task_with(0, [True]), task_with(1, []), task_with(2, []).with_answers(answers("tie"))]
    written = write_outcome(tmp_path / "x.jsonl", tasks, Rule(), Report())
    assert [path.name for path in written] == ["x.jsonl", "x.ties.jsonl", "x.more.jsonl"]
