"""Simulated annotators: they answer an export of `rlhf label`, and the answers come back in the tool's own format."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Side: TypeAlias = str  # first, second, tie, skip, draft
Annotator: TypeAlias = Callable[[str, str, str], Side]
"""Function of the prompt and of the answers, as shown."""
Label: TypeAlias = Callable[..., list[str]]
"""Function of the arguments of `rlhf label` that returns the lines it prints."""
PAIRS = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "0", "level": i} for i in range(1, 9)]
LABEL_STUDIO = {"first": "left", "second": "right"}
ARGILLA = {"first": "answer_1", "second": "answer_2", "tie": "tie", "draft": "answer_1", "skip": "answer_1"}
TIME = "2026-11-30T10:00:{:02}.000000Z"


def prefers(text: str) -> Annotator:
    """Return an annotator who prefers the answer that is `text`."""

    def annotator(prompt: str, first: str, second: str) -> Side:
        assert text in (first, second), (text, first, second)
        return "first" if first == text else "second"

    return annotator


def says(side: Side) -> Annotator:
    """Return an annotator who gives the same answer to every task."""
    return lambda *texts: side


def label_studio(
    export: Path, annotators: Mapping[int | str, Annotator], *, second: int = 0, by_email: bool = False
) -> list[dict[str, Any]]:
    """Answer an export for Label Studio, and return its JSON export. `second`: of the time of the answers."""
    tags = {tag.get("name"): tag for tag in ElementTree.parse(export / "labeling_config.xml").iter() if tag.get("name")}
    pairwise = tags["preference"]
    assert pairwise.tag == "Pairwise", "the configuration compares two answers"
    assert [tags[name].get("value") for name in str(pairwise.get("toName")).split(",")] == ["$answer_1", "$answer_2"]
    exported = []
    for number, task in enumerate(json.loads((export / "tasks.json").read_text()), start=1):
        texts = [task["data"][name] for name in ("prompt", "answer_1", "answer_2")]
        annotations = [
            {
                "id": 100 * number + i,
                "completed_by": {"id": i, "email": name} if by_email else name,
                "result": _result(annotator(*texts)),
                "was_cancelled": annotator(*texts) == "skip",
                "ground_truth": False,
                "created_at": TIME.format(second),
                "updated_at": TIME.format(second),
                "lead_time": 4.2,
            }
            for i, (name, annotator) in enumerate(annotators.items())
        ]
        exported.append({"id": number, "annotations": annotations, "data": task["data"], "predictions": []})
    return exported


def _result(side: Side) -> list[dict[str, Any]]:
    where = {"id": "aB1", "origin": "manual"}
    if side in LABEL_STUDIO:
        value = {"selected": LABEL_STUDIO[side]}
        return [where | {"from_name": "preference", "to_name": "preference", "type": "pairwise", "value": value}]
    if side == "tie":
        return [where | {"from_name": "tie", "to_name": "prompt", "type": "choices", "value": {"choices": ["tie"]}}]
    return []


def argilla(export: Path, annotators: Mapping[str, Annotator], *, flat: bool = True) -> list[dict[str, Any]]:
    """Answer an export for Argilla, and return its records as `to_list(flatten=…)` of the SDK does."""
    settings = json.loads((export / "settings.json").read_text())
    (question,) = settings["questions"]
    for described in (question, *settings["fields"], *settings["metadata"]):
        assert described["type"] == described["settings"]["type"], "the SDK reads the one or the other"
    values = {option["value"] for option in question["settings"]["options"]}
    exported = []
    for record in json.loads((export / "records.json").read_text()):
        assert set(record["fields"]) == {field["name"] for field in settings["fields"]}
        assert set(record["metadata"]) <= {metadata["name"] for metadata in settings["metadata"]}
        sides = {user: annotator(*record["fields"].values()) for user, annotator in annotators.items()}
        assert {ARGILLA[side] for side in sides.values()} <= values
        common = {"id": record["id"], "status": "completed", "_server_id": "5d6f"}
        exported.append(common | (_flat(record, sides) if flat else _nested(record, sides)))
    return exported


def _flat(record: Mapping[str, Any], sides: Mapping[str, Side]) -> dict[str, Any]:
    status = {"skip": "discarded", "draft": "draft"}
    answers: dict[str, list[str] | None] = {
        "preference.responses": [ARGILLA[side] for side in sides.values()],
        "preference.responses.users": list(sides),
        "preference.responses.status": [status.get(side, "submitted") for side in sides.values()],
    }
    return {**record["fields"], **record["metadata"], **(answers if sides else dict.fromkeys(answers))}


def _nested(record: Mapping[str, Any], sides: Mapping[str, Side]) -> dict[str, Any]:
    responses = [{"value": ARGILLA[side], "user_id": user} for user, side in sides.items() if side != "skip"]
    kept = {key: record[key] for key in ("fields", "metadata", "suggestions", "vectors")}
    return kept | {"responses": {"preference": responses} if responses else {}}


def write(path: Path, records: Sequence[object], *, lines: bool = False) -> Path:
    """Write records as a JSON array, or as JSON lines."""
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=2))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
