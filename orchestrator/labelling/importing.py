"""Import of answers: the exports of a labelling tool and task files become preferences, ties, and tasks to send again.

    task files ─┐
    exports ────┴─► answers by task ──verdict──► OUT.jsonl   OUT.ties.jsonl   OUT.more.jsonl

Every answer is in exactly one of the three, unless a later answer of the same annotator replaced it, or its task is
unknown or was edited; these are counted. The tasks of the last two keep their answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.data.rows import Row, RowProblems
from orchestrator.errors import BadInput, Problem
from orchestrator.evaluation.statistics import Interval, wilson
from orchestrator.labelling.answers import merged
from orchestrator.labelling.exporting import TOOLS
from orchestrator.labelling.outcome import Count as Votes
from orchestrator.labelling.outcome import Rule, Verdict, row_of, verdict
from orchestrator.labelling.records import read_records
from orchestrator.labelling.task import Answer, Choice, Task
from orchestrator.labelling.task_file import write_rows, write_tasks
from orchestrator.labelling.tool import Answered, RecordError, Response

NAMED = 5  # task ids that a report names


@dataclass(slots=True)
class Report:
    """Counts of an import."""

    read: int = 0  # answers in the exports
    replaced: int = 0  # answers of an annotator who has a later one to the same task
    unknown: Counter[str] = field(default_factory=Counter)  # answers by id of a task that is in no task file
    edited: Counter[str] = field(default_factory=Counter)  # answers by id of a task whose text came back changed
    no_status: bool = False  # drafts may be among the answers
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    votes: int = 0  # answers that prefer a completion
    ties: int = 0
    skipped: int = 0
    first_shown: Interval | None = None  # share of the votes for the completion shown first; None: no vote


def collect(tasks: dict[str, Task], exports: Sequence[Path], report: Report) -> None:
    """Add the answers of a tool's exports to the tasks.

    Raises:
        BadInput: with every record that cannot be used.
    """
    for path in exports:
        problems = RowProblems(str(path))
        found = 0
        for row in read_records(path, problems):
            found += 1
            if (answered := _answered(row, problems)) is not None:
                _add(tasks, answered, report)
        problems.raise_if_any()
        if not found:
            raise problems.stop("0 records", why="there is no answer", fix="export again when tasks are answered")


def _answered(row: Row, problems: RowProblems) -> Answered | None:
    tool = next((tool for tool in TOOLS.values() if tool.reads(row.values)), None)
    if tool is None:
        what = f"a record of no known tool; its keys are {', '.join(sorted(row.values)) or 'none'}"
        problems.add(row.number, what, fix=f"give an export of {' or '.join(TOOLS)}")
        return None
    try:
        return tool.answered(row.values)
    except RecordError as error:
        problems.add(row.number, error.what, why=error.why, fix=error.fix)
        return None


def _add(tasks: dict[str, Task], answered: Answered, report: Report) -> None:
    count = len(answered.responses)
    report.read += count
    report.no_status |= answered.no_status
    task = tasks.get(answered.task_id)
    if task is None:
        report.unknown[answered.task_id] += count
        return
    first = task.first_of(*answered.texts)
    if first is None:
        report.edited[answered.task_id] += count
        return
    answers = [_answer(response, first) for response in answered.responses]
    together = merged(task.answers, answers)
    report.replaced += len(task.answers) + len(answers) - len(together)
    tasks[task.id] = task.with_answers(together)


def _answer(response: Response, first: int) -> Answer:
    choices: dict[str, Choice] = {"tie": "tie", "skip": "skip"}
    choices |= {"first": 1, "second": 0} if first else {"first": 0, "second": 1}
    return Answer(
        annotator=response.annotator,
        choice=choices[response.side],
        shown_first=1 if first else 0,
        time=response.time,
    )


# ------------------------------------------------------------------------------------------------ what is written


def beside(output: Path, kind: str) -> Path:
    """Return the file beside the preferences: `labelled.more.jsonl` for `labelled.jsonl`."""
    return output.with_name(f"{output.name.removesuffix('.jsonl')}.{kind}.jsonl")


def refuse_existing(output: Path) -> None:
    """Raise BadInput if a file of an earlier import would be overwritten, or the name is not of JSON lines."""
    if output.suffix != ".jsonl":
        raise BadInput(Problem(what="the file is JSON lines", where=str(output), fix="call it .jsonl"))
    for path in (output, beside(output, "more"), beside(output, "ties")):
        if path.exists():
            why, fix = "it would be overwritten, with the answers in it", "give another name, or remove it"
            raise BadInput(Problem(what="already exists", where=str(path), why=why, fix=fix))


def write_outcome(output: Path, tasks: Sequence[Task], rule: Rule, report: Report) -> list[Path]:
    """Write preferences, ties and tasks that need more answers. A file without a line is not written."""
    by_verdict: dict[Verdict, list[Task]] = {"preference": [], "tie": [], "more": []}
    for task in tasks:
        by_verdict[verdict(Votes.of(task), rule)].append(task)
    report.verdicts = Counter({name: len(group) for name, group in by_verdict.items()})
    counts = [Votes.of(task) for task in tasks]
    report.votes = sum(sum(count.votes) for count in counts)
    report.ties, report.skipped = sum(count.ties for count in counts), sum(count.skipped for count in counts)
    report.first_shown = share_of_first(tasks)
    written = []
    if by_verdict["preference"]:
        write_rows(output, (row_of(task, rule) for task in by_verdict["preference"]))
        written.append(output)
    for path, group in ((beside(output, "ties"), by_verdict["tie"]), (beside(output, "more"), by_verdict["more"])):
        if group:
            write_tasks(path, group)
            written.append(path)
    return written


def share_of_first(tasks: Sequence[Task]) -> Interval | None:
    """Return the share of the votes for the completion shown first; None: there is no vote.

    Annotators of one task mostly agree, so that its votes are not independent. Wilson's interval is computed for the
    number of independent votes with the same variance as these, whose unit is the task (Korn and Graubard 1998).
    """
    votes = [[a.choice == a.shown_first for a in task.answers if a.choice in (0, 1)] for task in tasks]
    firsts, totals = [sum(v) for v in votes if v], [len(v) for v in votes if v]
    count, groups = sum(totals), len(totals)
    if not count:
        return None
    share = sum(firsts) / count
    independent = share * (1 - share) / count
    clustered = sum((f - share * n) ** 2 for f, n in zip(firsts, totals, strict=True)) / count**2
    clustered *= groups / (groups - 1) if groups > 1 else 1
    effective = count * min(1.0, independent / clustered) if clustered else groups
    trials = max(1, round(effective))
    return wilson(share * trials, trials)
