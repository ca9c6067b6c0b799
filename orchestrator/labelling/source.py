"""Read tasks from a source: preferences, groups of completions, or a task file.

    prompt, chosen, rejected             one task of each row                    (or no prompt: its common start)
    prompt, completions                  --per-prompt tasks of each row, drawn by a seeded hash
    prompt, completions, ratings|ranks   the same; the better one is what the source prefers
    rounds/N/groups.parquet              the same, by `reward`
    task files                           their tasks, with the answers that they have

A pair that an annotator could not tell apart is no task. A pair that is in the source twice is one task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from orchestrator.data.examples import EQUAL, split_pair
from orchestrator.data.formats import Format, detect, is_conversation, missing, wrong_prompt, wrong_text
from orchestrator.data.rows import Row, RowProblems
from orchestrator.data.sources import label, read_rows
from orchestrator.labelling.answers import merged
from orchestrator.labelling.task import Task, task_of
from orchestrator.labelling.task_file import is_task, parse_task
from workers.types import Text

SCORES: Mapping[str, int] = {"reward": 1, "ratings": 1, "ranks": -1}
"""Columns with a number for each completion of a row, and the sign that makes a higher one better."""
OF_LABELS = ("votes", "annotators", "annotator_votes", "agreement", "task_id", "margin")
"""Columns of an earlier preference, which the answers replace."""
OF_GROUPS = ("row", "prompt_tokens", "completion_tokens")
FIX = "fix or remove these rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tasks:
    """Tasks of a source, and how many pairs are none. Example: `Tasks(tasks=(…), equal=2, repeated=1, above=0)`."""

    tasks: tuple[Task, ...]
    equal: int  # pairs that an annotator could not tell apart
    repeated: int  # pairs that the source has more than once
    above: int  # tasks beyond the limit


def tasks_of(source: str, *, split: str, per_prompt: int, max_tasks: int | None, seed: int) -> Tasks:
    """Read the tasks of a source, in its order. Of more than `max_tasks`, those are kept that a seeded hash selects.

    Raises:
        BadInput: with every row that cannot be used, or if there is no task.
    """
    problems, found, equal, repeated = RowProblems(source), dict[str, Task](), 0, 0
    for row in read_rows(source, split, problems):
        for task in _tasks(row, f"{label(source)}:{row.number}", problems, per_prompt=per_prompt, seed=seed):
            if task is None:
                equal += 1
            elif (known := found.get(task.id)) is not None:
                repeated += 1
                found[task.id] = known.with_answers(merged(known.answers, task.answers))
            else:
                found[task.id] = task
    problems.raise_if_any()
    if not found:
        why = f"{equal} pairs have equal answers" if equal else "the source has no rows"
        raise problems.stop("there is nothing to compare", why=why, fix="give rows with two different answers")
    tasks = list(found.values())
    kept = {task.id for task in sorted(tasks, key=lambda task: drawn(seed, task.id))[:max_tasks]}
    return Tasks(
        tasks=tuple(task for task in tasks if task.id in kept),
        equal=equal,
        repeated=repeated,
        above=len(tasks) - len(kept),
    )


def drawn(seed: int, *key: object) -> bytes:
    """Return a pseudo-random number of a seed and a key: sorting by it draws without regard to the order of rows."""
    return hashlib.blake2b(json.dumps([seed, *key]).encode(), digest_size=8).digest()


def _tasks(row: Row, id: str, problems: RowProblems, *, per_prompt: int, seed: int) -> Iterator[Task | None]:
    values = row.values
    if is_task(values):
        if (task := parse_task(row, problems)) is not None:
            yield task
        return
    given = [key for key, value in values.items() if value is not None]
    if detect(given) in (Format.preference, Format.implicit_preference):
        yield from _preference(values, id, row.number, problems)
    elif values.get("completions") is not None:
        yield from _group(values, id, row.number, problems, per_prompt=per_prompt, seed=seed)
    else:
        what, _ = missing(given, ("prompt", "completions"))
        problems.add(row.number, what, fix="give `chosen` and `rejected`, or `prompt` and a list of `completions`")


def _preference(values: Mapping[str, Any], id: str, number: int, problems: RowProblems) -> Iterator[Task | None]:
    wrong, pair = split_pair(values)
    if wrong == EQUAL or (not wrong and pair["chosen"] == pair["rejected"]):
        yield None
    elif wrong:
        problems.add(number, wrong, fix=FIX)
    else:
        used = {"prompt", "chosen", "rejected", *OF_LABELS}
        columns = {key: value for key, value in values.items() if key not in used}
        yield task_of(pair["prompt"], (pair["chosen"], pair["rejected"]), source=id, preferred=0, columns=columns)


def _group(
    values: Mapping[str, Any], id: str, number: int, problems: RowProblems, *, per_prompt: int, seed: int
) -> Iterator[Task | None]:
    prompt, columns = _prompt(values)
    completions = values["completions"]
    if wrong := wrong_prompt(prompt) or _wrong_completions(completions, conversational=is_conversation(prompt)):
        problems.add(number, wrong, fix=FIX)
        return
    texts = [_as_completion(prompt, completion) for completion in completions]
    distinct = list({json.dumps(text, sort_keys=True): i for i, text in reversed(list(enumerate(texts)))}.values())
    if len(distinct) < 2:
        yield None
        return
    scores = _scores(values, len(texts))
    pairs = sorted(combinations(sorted(distinct), 2), key=lambda pair: drawn(seed, prompt, [texts[i] for i in pair]))
    for i, j in pairs[:per_prompt]:
        facts, preferred = dict(columns), None
        if scores is not None and scores[i] != scores[j]:
            preferred = 0 if scores[i] > scores[j] else 1
            better, worse = (i, j) if preferred == 0 else (j, i)
            facts |= {"chosen_score": scores[better], "rejected_score": scores[worse]}
        yield task_of(prompt, (texts[i], texts[j]), source=id, preferred=preferred, columns=facts)


def _prompt(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the prompt of a group, and the other columns of its row. A round's file of groups has both as JSON."""
    if isinstance(row := values.get("row"), str) and "completion_tokens" in values:
        stored = json.loads(row)
        return stored["prompt"], {key: value for key, value in stored["columns"].items() if key not in OF_LABELS}
    lists = {key for key, value in values.items() if isinstance(value, list) and key != "tools"}
    used = {"prompt", "completions", "scores", *OF_LABELS, *OF_GROUPS, *lists}
    return values.get("prompt"), {key: value for key, value in values.items() if key not in used}


def _wrong_completions(completions: object, *, conversational: bool) -> str:
    if not isinstance(completions, list) or len(completions) < 2:
        return "`completions` is not a list of at least 2 completions"
    for i, completion in enumerate(completions):
        if isinstance(completion, str):
            continue  # may be empty; of a conversation it is the content of one message
        if wrong := wrong_text(completion, f"completions[{i}]"):
            return wrong
        if not conversational:
            return f"`prompt` is text and `completions[{i}]` a list of messages"
    return ""


def _as_completion(prompt: Text, completion: Any) -> Text:
    if isinstance(completion, str) and not isinstance(prompt, str):
        return [{"role": "assistant", "content": completion}]
    text: Text = completion
    return text


def _scores(values: Mapping[str, Any], count: int) -> Sequence[float] | None:
    """Return a number for each completion of a row, higher for a better one; None: the row has none."""
    for name, sign in SCORES.items():
        given = values.get(name)
        is_numbers = isinstance(given, list) and all(isinstance(number, int | float) for number in given)
        if is_numbers and given is not None and len(given) == count:
            return [sign * float(number) for number in given]
    return None
