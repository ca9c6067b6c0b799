"""Whether a completion is JSON that its row's schema allows."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from workers.config import JsonSchemaRewardConfig
from workers.rewards.base import Completed, RewardError, last_text
from workers.types import Floats, Prompt

FENCE = re.compile(r"^[ \t]*```[ \t]*(?:json)?[ \t]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL | re.IGNORECASE)


class JsonSchemaScorer:
    """1 when the completion, or the last block fenced in it as JSON, is valid by the row's JSON Schema, else 0."""

    name = "json_schema"

    def __init__(self, config: JsonSchemaRewardConfig) -> None:
        self._column = config.schema_column

    def score(self, completed: Completed) -> Floats:
        """Raises RewardError for a row without a schema that is one."""
        validators: dict[str, Any] = {}
        rewards = np.zeros(len(completed.prompts), np.float32)
        for i, (prompt, completion) in enumerate(zip(completed.prompts, completed.completions, strict=True)):
            if prompt.id not in validators:
                validators[prompt.id] = _validator(prompt, self._column)
            rewards[i] = _is_valid(prompt, validators[prompt.id], last_text(completion))
        return rewards


def _validator(prompt: Prompt, column: str) -> Any:
    from jsonschema import SchemaError, validators
    from referencing import Registry

    schema = prompt.columns.get(column)
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError:
            schema = None
    if not isinstance(schema, dict):
        raise RewardError(
            f"prompt {prompt.id} has no JSON Schema in column {column!r}; its columns are {sorted(prompt.columns)}. "
            "Set schema_column to the one that holds it"
        )
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise RewardError(f"the schema of prompt {prompt.id} is not one: {error.message}") from None
    return kind(schema, registry=Registry())  # an empty registry: a schema never fetches another one


def _is_valid(prompt: Prompt, validator: Any, text: str) -> bool:
    from referencing.exceptions import Unresolvable

    fenced = FENCE.findall(text)
    try:
        value = json.loads(fenced[-1] if fenced else text)
        return bool(validator.is_valid(value))
    except (ValueError, RecursionError):  # not JSON, or nested too deeply to be anybody's answer
        return False
    except Unresolvable as error:
        raise RewardError(
            f"the schema of prompt {prompt.id} refers to another one, {error.ref!r}: write it out"
        ) from None
