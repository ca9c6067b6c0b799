"""Argilla 2: records and settings as JSON for its Python SDK, and the records that the SDK exports.

    settings.json   rg.Settings.from_json
    records.json    dataset.records.from_json: `id`, `fields`, `metadata`, `suggestions`, `responses`, `vectors`

Answers come back by `dataset.records(with_responses=True).to_list(flatten=True)`, written as JSON or JSON lines, with
`preference.responses`, `.users` and `.status`; or by `to_json`, which nests them and leaves out their status, so that
drafts cannot be told from submitted answers. A discarded answer is no opinion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.labelling.task import Task
from orchestrator.labelling.tool import FIELDS, QUESTION, TIE, Answered, RecordError, Response, Sheet, Side, texts_of

name = "argilla"
next_steps = (
    "in Python: dataset = rg.Dataset(name, settings=rg.Settings.from_json('settings.json')); dataset.create(); "
    "dataset.records.from_json('records.json'); then write dataset.records(with_responses=True).to_list(flatten=True) "
    "as JSON"
)
SIDES: Mapping[str, Side] = {"answer_1": "first", "answer_2": "second", TIE: "tie"}
TITLES = {"answer_1": "Answer 1", "answer_2": "Answer 2", TIE: "No difference"}
FLAT = f"{QUESTION}.responses"


def files(tasks: Sequence[Task], sheet: Sheet) -> Iterator[tuple[str, str]]:
    """Yield the records, and the settings of their dataset."""
    yield "records.json", json.dumps([_record(task, sheet) for task in tasks], ensure_ascii=False, indent=1)
    yield "settings.json", json.dumps(_settings(sheet), ensure_ascii=False, indent=1)


def reads(record: Mapping[str, Any]) -> bool:
    """Return whether a record is of Argilla."""
    return FLAT in record or {"id", "fields"} <= set(record) or {"id", *FIELDS} <= set(record)


def answered(record: Mapping[str, Any]) -> Answered:
    """Return the answers of a record, nested or flat.

    Raises:
        RecordError: the record cannot be used.
    """
    if not isinstance(record.get("id"), str):
        raise RecordError("no `id`", why="the record was not exported by `rlhf label`", fix="remove it")
    if "fields" in record:
        texts, given = texts_of(record["fields"], "fields"), record.get("responses") or {}
        answers = given.get(QUESTION) if isinstance(given, Mapping) else given
        responses = [_nested(answer) for answer in _listed(answers)]
        return Answered(task_id=record["id"], texts=texts, responses=tuple(responses), no_status=bool(responses))
    columns = [_listed(record.get(f"{FLAT}{suffix}")) for suffix in ("", ".users", ".status")]
    if len({len(column) for column in columns}) > 1:
        raise RecordError(f"`{FLAT}`, its `.users` and its `.status` differ in length", fix="export again")
    responses = [_response(*answer) for answer in zip(*columns, strict=True) if answer[2] != "draft"]
    return Answered(task_id=record["id"], texts=texts_of(record, "the record"), responses=tuple(responses))


# ------------------------------------------------------------------------------------------------ records


def _record(task: Task, sheet: Sheet) -> dict[str, Any]:
    first = task.shown_first(sheet.seed)
    source, _, row = task.source.rpartition(":")
    suggestions = {}
    if sheet.suggest and task.preferred is not None:
        value = "answer_1" if task.preferred == first else "answer_2"
        suggestions = {QUESTION: {"value": value, "score": None, "agent": "source"}}
    return {
        "id": task.id,
        "fields": dict(zip(FIELDS, task.shown_texts(first), strict=True)),
        "metadata": {"source": source, "row": int(row)} if row.isdecimal() else {"source": task.source},
        "suggestions": suggestions,
        "responses": {},
        "vectors": {},
    }


def _settings(sheet: Sheet) -> dict[str, Any]:
    """Return the settings of a dataset, as `rg.Settings.serialize` does: `type` stands beside and in `settings`."""
    options = [{"value": value, "text": title, "description": None} for value, title in TITLES.items()]
    question = {
        "name": QUESTION,
        "title": sheet.question,
        "description": None,
        "required": True,
        "type": "label_selection",
        "settings": {"type": "label_selection", "options": options, "visible_options": len(options)},
    }
    metadata = {"source": {"type": "terms", "values": None}, "row": {"type": "integer", "min": None, "max": None}}
    return {
        "guidelines": None,
        "questions": [question],
        "fields": [
            {
                "name": field,
                "title": TITLES.get(field, "Prompt"),
                "required": True,
                "type": "text",
                "settings": {"type": "text", "use_markdown": False},
            }
            for field in FIELDS
        ],
        "vectors": [],
        "metadata": [
            {"name": key, "title": key, "visible_for_annotators": False, "type": own["type"], "settings": own}
            for key, own in metadata.items()
        ],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": sheet.min_votes},
        "mapping": None,
    }


def _listed(value: object) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RecordError("the responses are not a list", fix="export again with to_list(flatten=True)")
    return value


def _nested(answer: object) -> Response:
    if not isinstance(answer, Mapping):
        raise RecordError("a response is not an object", fix="export again with to_list(flatten=True)")
    return _response(answer.get("value"), answer.get("user_id"), answer.get("status"))


def _response(value: object, user: object, status: object) -> Response:
    if not isinstance(user, str) or not user:
        why = "votes are counted by annotator"
        raise RecordError("a response without a user", why=why, fix="export again with to_list(flatten=True)")
    if status == "discarded":
        return Response(annotator=user, side="skip")
    if not isinstance(value, str) or value not in SIDES:
        fix = "correct the answer in Argilla, and export again"
        raise RecordError(f"the answer is {value!r}, not {', '.join(SIDES)}", fix=fix)
    return Response(annotator=user, side=SIDES[value])
