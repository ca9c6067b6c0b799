"""Reward for JSON that is valid under its row's schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workers.config import JsonSchemaRewardConfig
from workers.rewards import build
from workers.rewards.base import Completed, RewardError
from workers.types import Prompt

SCHEMA = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer", "minimum": 0}}}


def scores(*completions: Any, schema: Any = SCHEMA) -> list[float]:
    prompts = [Prompt(id=f"p.jsonl:{i}", text="?", columns={"schema": schema}) for i in range(len(completions))]
    scorer = build(JsonSchemaRewardConfig(type="json_schema"))
    ids = [[0]] * len(completions)
    return scorer.score(Completed(prompts=prompts, completions=completions, completion_ids=ids)).tolist()


def test_valid_json_is_one_and_anything_else_zero() -> None:
    assert scores('{"age": 3}', '{"age": -1}', '{"age": "3"}', "{}", "age: 3", "", "[" * 10**5) == [1, 0, 0, 0, 0, 0, 0]


def test_the_last_fenced_block_counts() -> None:
    assert scores('Here:\n```json\n{"age": -1}\n```\nno:\n```\n{"age": 1}\n```\n') == [1]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ('{"age": NaN}', 0),  # Python reads these three, and JSON has no such numbers
        ('{"age": Infinity}', 0),
        ('{"age": -Infinity}', 0),
        ('{"age": 3, "age": 4}', 0),
        ('{"age": 3} and more', 0),
        ('\ufeff{"age": 3}', 0),
        ("{'age': 3}", 0),
        ('{"age": 3,}', 0),
        ('{"age": 3}\r\n', 1),
        ('Here:\r\n```json\r\n{"age": 3}\r\n```\r\n', 1),
        ('```json\r\n{"age": NaN}\r\n```\r\n', 0),
        ('~~~json\n{"age": 3}\n~~~', 1),
        ('````json\n{"age": 3}\n````', 1),
        ('````markdown\n```json\n{"age": -1}\n```\n````\nso\n```json\n{"age": 3}\n```', 1),
        ('```python\nprint(1)\n```\nSo it is\n```json\n{"age": 3}\n```', 1),
        ('```json\n{"age": 3}\n```\nor\n```python\nprint(1)\n```', 1),
        ('```python\n{"age": 3}\n```', 0),
        ('```json\n{"age": 3}', 0),  # cut off
    ],
)
def test_what_is_json(completion: str, reward: float) -> None:
    assert scores(completion, schema={**SCHEMA, "properties": {"age": {"type": "number", "minimum": 0}}}) == [reward]


def test_a_schema_may_be_text_and_a_completion_a_conversation() -> None:
    assert scores([{"role": "assistant", "content": '{"age": 3}'}], schema=json.dumps(SCHEMA)) == [1]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (None, r"prompt p.jsonl:0 has no JSON Schema in column 'schema'; its columns are \['schema'\]"),
        ("{", "has no JSON Schema"),
        ({"type": "objekt"}, "the schema of prompt p.jsonl:0 is not a valid JSON Schema: 'objekt' is not valid"),
        ('{"minimum": NaN}', "has no JSON Schema"),
        ({"pattern": "("}, r"is not a valid JSON Schema: '\(' is not a 'regex'"),
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "refers to another schema, '#/\\$defs/no'"),
        ({"$ref": "http://127.0.0.1:9/x.json"}, "refers to another schema, 'http://127.0.0.1:9/x.json': inline it"),
    ],
)
def test_a_schema_that_is_none_names_the_row(schema: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        scores('{"age": 3}', schema=schema)
