"""Label Studio: tasks as JSON, a labelling configuration, and its JSON export.

Tasks are `{"data": {…}}` (https://labelstud.io/guide/tasks.html). The two answers are compared with the tag Pairwise,
whose results have `"type": "pairwise"` and `"value": {"selected": "left" | "right"}`; Pairwise has no tie, so that the
configuration adds a choice. Annotations come back with `completed_by`, and skipped tasks with `was_cancelled`
(https://labelstud.io/guide/task_format.html).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from orchestrator.labelling.task import Task
from orchestrator.labelling.tool import FIELDS, QUESTION, TIE, Answered, RecordError, Response, Sheet, Side, texts_of

name = "label-studio"
next_steps = (
    "create a project with labeling_config.xml as its labelling interface, set the number of annotations per task, "
    "and import tasks.json; then export as JSON (not JSON-MIN)"
)
SIDES: Mapping[str, Side] = {"left": "first", "right": "second"}
CONTRADICTION_FIX = "correct the annotation in Label Studio, and export again"
CONFIG = """\
<View>
  <Header value={question}/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="{name}" toName="answer_1,answer_2"/>
  <View style="display: grid; grid-template: auto / 1fr 1fr; column-gap: 1em">
    <Text name="answer_1" value="$answer_1"/>
    <Text name="answer_2" value="$answer_2"/>
  </View>
  <Choices name="{tie}" toName="prompt" choice="single" showInline="true">
    <Choice value="{tie}"/>
  </Choices>
</View>
"""


def files(tasks: Sequence[Task], sheet: Sheet) -> Iterator[tuple[str, str]]:
    """Yield the tasks, and the labelling configuration."""
    yield "tasks.json", json.dumps([_task(task, sheet) for task in tasks], ensure_ascii=False, indent=1)
    yield "labeling_config.xml", CONFIG.format(question=quoteattr(sheet.question), name=QUESTION, tie=TIE)


def reads(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a task of Label Studio."""
    return "annotations" in record or "annotation_id" in record or "annotator" in record


def answered(record: Mapping[str, Any]) -> Answered:
    """Return the answers of a task with its annotations.

    Raises:
        RecordError: the record is not of the JSON export, or an annotation contradicts itself.
    """
    data, annotations = record.get("data"), record.get("annotations")
    if not isinstance(annotations, list):
        why = "it has one annotation per record, without the skipped ones"
        raise RecordError("not the JSON export of Label Studio", why=why, fix="export as JSON, not JSON-MIN")
    if not isinstance(data, Mapping) or not isinstance(data.get("task_id"), str):
        raise RecordError("no `data.task_id`", why="the task was not exported by `rlhf label`", fix="remove it")
    return Answered(
        task_id=data["task_id"],
        texts=texts_of(data, "data"),
        responses=tuple(_response(annotation) for annotation in annotations),
    )


# ------------------------------------------------------------------------------------------------ records


def _task(task: Task, sheet: Sheet) -> dict[str, Any]:
    first = task.shown_first(sheet.seed)
    texts = dict(zip(FIELDS, task.shown_texts(first), strict=True))
    record: dict[str, Any] = {"data": {"task_id": task.id, "source": task.source, **texts}}
    if sheet.suggest and task.preferred is not None:
        selected = "left" if task.preferred == first else "right"
        result = {"id": QUESTION, "from_name": QUESTION, "to_name": QUESTION, "type": "pairwise"}
        record["predictions"] = [
            {"model_version": "source", "result": [{**result, "value": {"selected": selected}}]},
        ]
    return record


def _response(annotation: object) -> Response:
    if not isinstance(annotation, Mapping) or not isinstance(annotation.get("result"), list):
        raise RecordError("an annotation without a list `result`", fix="export again, as JSON")
    return Response(
        annotator=_annotator(annotation.get("completed_by")),
        side="skip" if annotation.get("was_cancelled") else _side(annotation["result"]),
        time=str(annotation.get("updated_at") or annotation.get("created_at") or ""),
    )


def _annotator(completed_by: object) -> str:
    """Return who annotated: an id or, where the export has the user, the address."""
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("email") or completed_by.get("id")
    if isinstance(completed_by, bool) or not isinstance(completed_by, int | str) or completed_by == "":
        why = "votes are counted by annotator"
        raise RecordError("an annotation without `completed_by`", why=why, fix="export again, with annotators")
    return str(completed_by)


def _side(result: Sequence[Any]) -> Side:
    """Return the answer of an annotation. One without any result is no opinion."""
    sides: set[Side] = set()
    for part in result:
        value = part.get("value") if isinstance(part, Mapping) else None
        if not isinstance(value, Mapping):
            raise RecordError("a result without `value`", fix="export again, as JSON")
        if part.get("type") == "pairwise":
            selected = str(value.get("selected"))
            if selected not in SIDES:
                raise RecordError(f"the selected answer is `{selected}`, not left or right", fix=CONTRADICTION_FIX)
            sides.add(SIDES[selected])
        elif part.get("type") == "choices" and value.get("choices") == [TIE]:
            sides.add("tie")
    if len(sides) > 1:
        raise RecordError(f"an annotation says {' and '.join(sorted(sides))}", fix=CONTRADICTION_FIX)
    return next(iter(sides), "skip")
