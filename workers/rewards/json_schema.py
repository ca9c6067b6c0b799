"""Validation of JSON completions against the JSON Schema of their row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np

from workers.config import JsonSchemaRewardConfig
from workers.rewards.base import Completed, RewardError, last_text
from workers.types import Floats, Prompt

# Blocks of any language match, because the closing fence of a skipped block would be taken for an opening one. A longer
# fence may contain shorter ones.
FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\n`]*)\n(.*?)^[ \t]*\1", re.MULTILINE | re.DOTALL)
JSON = ("", "json")
METASCHEMAS = ("http://json-schema.org/", "https://json-schema.org/")


class JsonSchemaScorer:
    """1 if the completion, or the last fenced JSON block in it, is valid under the row's JSON Schema, else 0."""

    name = "json_schema"

    def __init__(self, config: JsonSchemaRewardConfig) -> None:
        self._column = config.schema_column

    def score(self, completed: Completed) -> Floats:
        """Return one number per completion. Raises RewardError for a row without a valid schema."""
        validators: dict[str, Any] = {}
        rewards = np.zeros(len(completed.prompts), np.float32)
        for i, (prompt, completion) in enumerate(zip(completed.prompts, completed.completions, strict=True)):
            if prompt.id not in validators:
                validators[prompt.id] = _validator(prompt, self._column)
            rewards[i] = _is_valid(prompt, validators[prompt.id], last_text(completion))
        return rewards


def _validator(prompt: Prompt, column: str) -> Any:
    from jsonschema import validators
    from referencing import Registry

    schema = _schema(prompt.columns.get(column))
    if schema is None:
        raise RewardError(
            f"prompt {prompt.id} has no JSON Schema in column {column!r}; its columns are {sorted(prompt.columns)}. "
            "Set schema_column to the column with the schema"
        )
    if wrong := wrong_schema(schema):
        raise RewardError(f"the schema of prompt {prompt.id} {wrong}")
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    return kind(schema, registry=Registry())  # an empty registry: a schema never fetches another one


def wrong_schema(value: object) -> str:
    """Return why a row's schema cannot be used, or an empty string if it can."""
    from jsonschema import SchemaError, validators

    if (schema := _schema(value)) is None:
        return "is not a JSON Schema: give an object, or its JSON text"
    try:
        validators.validator_for(schema, default=validators.Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        return f"is not a valid JSON Schema: {error.message}"
    identities = {str(part["$id"]) for part in _objects(schema) if "$id" in part}
    for part in _objects(schema):
        reference = part.get("$ref")
        if isinstance(reference, str) and _is_elsewhere(reference, schema, identities):
            return f"refers to another schema, {reference!r}: inline it"
    return ""


def _schema(value: object) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = _loaded(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object within `value`, including itself."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(part)


def _is_elsewhere(reference: str, schema: Mapping[str, Any], identities: set[str]) -> bool:
    """Return whether a reference leads outside the schema. With `$id`s inside, only validation can tell: False."""
    if identities or reference.startswith(METASCHEMAS):
        return False
    if not reference.startswith("#/"):
        return not reference.startswith("#")
    place: Any = schema
    for step in reference[2:].split("/"):
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict) and key in place:
            place = place[key]
        elif isinstance(place, list) and key.isdigit() and int(key) < len(place):
            place = place[int(key)]
        else:
            return True
    return False


def _loaded(text: str) -> Any:
    """Parse strict JSON. Raises ValueError, also for NaN, Infinity and duplicate keys."""
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is given twice")
    return result


def _is_valid(prompt: Prompt, validator: Any, text: str) -> bool:
    from referencing.exceptions import Unresolvable

    text = text.replace("\r\n", "\n").replace("\r", "\n")
    fenced = [code for _, language, code in FENCE.findall(text) if language.strip().lower() in JSON]
    try:
        value = _loaded(fenced[-1] if fenced else text)
        return bool(validator.is_valid(value))
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        return False
    except Unresolvable as error:
        raise RewardError(
            f"the schema of prompt {prompt.id} refers to another schema, {error.ref!r}: inline it"
        ) from None
