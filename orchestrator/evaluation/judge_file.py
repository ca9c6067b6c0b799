"""Judge as a file: the settings of `{type: judge}`, as in `reward` of a recipe, by themselves.

url: http://localhost:8000/v1
model: judge
compare: true
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from orchestrator.config.document import Document, read_document
from orchestrator.config.explain import explain
from orchestrator.config.overrides import apply, parse_overrides
from orchestrator.config.recipe import reading_order
from orchestrator.config.secrets import find_secrets
from orchestrator.errors import BadInput, Problems
from workers.config import JudgeRewardConfig
from workers.config.endpoint import endpoint_problems


def read_judge(path: Path, overrides: Sequence[str] = ()) -> JudgeRewardConfig:
    """Read the settings of a judge and apply the overrides.

    Raises:
        BadInput: with all problems of the file and the overrides.
    """
    problems = Problems()
    document = read_document(path, problems)
    if document is not None and not isinstance(document.data, dict):
        fix = "write the keys of {type: judge}, such as url and model"
        problems.add("not a judge", where=str(path), why="a judge is a mapping of keys", fix=fix)
        document = None
    if document is None:
        raise BadInput(problems)
    for override in parse_overrides(overrides, (), problems):
        apply(override, document, problems)
    document.data.setdefault("type", "judge")
    find_secrets(document, problems)
    config = _validated(document, problems)
    problems.sort(key=reading_order)
    problems.raise_if_any()
    assert config is not None
    return config


def _validated(document: Document, problems: Problems) -> JudgeRewardConfig | None:
    try:
        config = JudgeRewardConfig.model_validate_json(json.dumps(document.data))  # JSON: lists stand for tuples
    except ValidationError as error:
        explain(error, document, problems, JudgeRewardConfig)
        return None
    for keys, why, fix in endpoint_problems(config):
        values = ", ".join(f"{key} = {document.data[key]}" for key in keys if key in document.data)
        problems.add(values, where=document.place(keys[:1]).text, why=why, fix=fix)
    return config
