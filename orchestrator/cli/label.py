"""Commands `rlhf label export` and `rlhf label import`: comparisons for human annotators, and their votes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import BadInput, Problem
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.labelling.importing import Report

HELP = "Send pairs to human annotators, and make preferences of their votes."


class ToolName(StrEnum):
    argilla = "argilla"
    label_studio = "label-studio"


MinVotes = Annotated[int, typer.Option("--min-votes", metavar="N", min=1, help="Number of votes that a task needs.")]
MinAgreement = Annotated[
    float,
    typer.Option(
        "--min-agreement",
        metavar="SHARE",
        max=1.0,
        help="Share of the votes that must be for the chosen answer, above 0.5; a tie is half a vote.",
    ),
]


def add_to(app: typer.Typer) -> None:
    label = typer.Typer(no_args_is_help=True, help=HELP)
    label.command("export")(export_tasks)
    label.command("import")(import_votes)
    app.add_typer(label, name="label")


def export_tasks(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Preferences, rows with `prompt` and `completions`, a run's rounds/N/pairs.parquet or groups.parquet, "
            "or the .more.jsonl of an import.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New directory for the files.")],
    to: Annotated[
        ToolName, typer.Option("--to", metavar="TOOL", help="Labelling tool: argilla or label-studio.")
    ] = ToolName.label_studio,
    question: Annotated[
        str, typer.Option("--question", metavar="TEXT", help="Question that annotators answer.")
    ] = "Which answer is better?",
    per_prompt: Annotated[
        int, typer.Option("--per-prompt", metavar="N", min=1, help="Number of pairs of each row of `completions`.")
    ] = 1,
    max_tasks: Annotated[
        int | None,
        typer.Option(
            "--max-tasks", metavar="N", min=1, help="Number of tasks at most, drawn at random (default: all)."
        ),
    ] = None,
    min_votes: MinVotes = 1,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Show what the source prefers as a suggestion, which biases the votes.")
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of the order of the two answers, and of what is drawn.")
    ] = 0,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Split of a Hub dataset.")] = "train",
) -> int:
    """Write tasks of pairwise comparison for Argilla or Label Studio. Which answer is first is random for each task."""
    from orchestrator.labelling.exporting import TOOLS
    from orchestrator.labelling.exporting import export_tasks as export
    from orchestrator.labelling.source import tasks_of
    from orchestrator.labelling.tool import Sheet

    found = tasks_of(source, split=split, per_prompt=per_prompt, max_tasks=max_tasks, seed=seed)
    sheet = Sheet(question=question, seed=seed, min_votes=min_votes, suggest=suggest)
    names = export(output, found.tasks, TOOLS[to], sheet)
    left_out = {
        "pairs of equal answers": found.equal,
        "repeated pairs": found.repeated,
        "above --max-tasks": found.above,
    }
    say(f"{_count(len(found.tasks), 'task')} in {output}: {', '.join(names)}{_listed('; left out: ', left_out)}")
    say(f"next: {TOOLS[to].next_steps}")
    say(f"then: rlhf label import VOTES labelled.jsonl --tasks {output / names[-1]}")
    return 0


def import_votes(
    votes: Annotated[
        list[Path],
        typer.Argument(metavar="VOTES...", help="Files that the labelling tool exported.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="File for the preferences (.jsonl): a preference dataset. Tasks that need more votes go to "
            "OUT.more.jsonl, ties to OUT.ties.jsonl.",
        ),
    ],
    tasks: Annotated[
        list[Path],
        typer.Option(
            "--tasks",
            metavar="FILE",
            help="Task file of the export (tasks.jsonl), or the .more.jsonl of an earlier import, whose votes are "
            "kept. May be given several times.",
        ),
    ],
    min_votes: MinVotes = 1,
    min_agreement: MinAgreement = 0.75,
    max_votes: Annotated[
        int | None,
        typer.Option(
            "--max-votes",
            metavar="N",
            min=1,
            help="Number of votes from which the majority decides, whatever the agreement (default: never).",
        ),
    ] = None,
    margins: Annotated[bool, typer.Option("--margins", help="Write the log-odds of the votes as `margin`.")] = False,
) -> int:
    """Make preferences of the votes of annotators. Tasks without agreement are written to be sent out again.

    Of several votes of an annotator on one task the last counts. Nothing is written if a record is malformed.
    """
    from orchestrator.labelling.importing import Report, collect, refuse_existing, write_outcome
    from orchestrator.labelling.outcome import Rule
    from orchestrator.labelling.task_file import read_tasks

    if min_agreement <= 0.5:
        why, fix = "with half of the votes neither answer is preferred", "give a number above 0.5, at most 1"
        raise BadInput(Problem(what=f"--min-agreement {min_agreement:g}", where="command line", why=why, fix=fix))
    refuse_existing(output)
    by_id, report = read_tasks(tasks), Report()
    collect(by_id, votes, report)
    rule = Rule(min_votes=min_votes, min_agreement=min_agreement, max_votes=max_votes, margins=margins)
    written = write_outcome(output, list(by_id.values()), rule, report)
    _tell(report)
    for path in written:
        say(f"written to {path}")
    return 0


def _tell(report: Report) -> None:
    of, total = report.verdicts, report.votes + report.ties + report.skipped
    decided = f"{_count(of['preference'], 'preference')}, {_count(of['tie'], 'tie')}"
    say(f"{decided}; more votes are needed for {_count(of['more'], 'task')}")
    votes, ties = _count(report.votes, "vote"), _count(report.ties, "tie")
    say(f"{_count(total, 'answer')}: {votes}, {ties}, {report.skipped} skipped")
    if report.first_shown is not None:
        shown = report.first_shown
        bias = "" if shown.low <= 0.5 <= shown.high else ": annotators favour a position"
        say(f"votes for the answer shown first: {shown.value:.1%} [{shown.low:.1%}, {shown.high:.1%}]{bias}")
    if report.replaced:
        answers = _count(report.replaced, "answer")
        say(f"note: {answers} replaced: of an annotator's answers to one task the last counts")
    for what, ids in (("of no task file", report.unknown), ("whose text was edited", report.edited)):
        if ids:
            answers = f"{_count(sum(ids.values()), 'answer')} to {_count(len(ids), 'task')} {what}"
            say(f"note: {answers} left out: {_named(ids)}")
    if report.no_status:
        say("note: the export does not tell drafts from submitted answers; to_list(flatten=True) does")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _named(ids: Mapping[str, int]) -> str:
    from orchestrator.labelling.importing import NAMED

    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(list(ids)[:NAMED]) + more


def _listed(before: str, counts: Mapping[str, int]) -> str:
    shown = [f"{count} {name}" for name, count in counts.items() if count]
    return before + ", ".join(shown) if shown else ""
