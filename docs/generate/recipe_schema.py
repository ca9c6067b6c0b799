"""JSON schema of a recipe, for editors.

python docs/generate/recipe_schema.py recipe.schema.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from settings import SettingsClass, settings_of  # noqa: E402

from orchestrator.config import RunConfig  # noqa: E402


def schema() -> dict[str, Any]:
    """Return the schema of a recipe: a run, or a list of runs under `stages`."""
    run = RunConfig.model_json_schema()
    definitions = run.pop("$defs")
    for cls in _classes(RunConfig):
        _describe(run if cls is RunConfig else definitions[cls.__name__], cls)
    run["required"] = [key for key in run["required"] if key != "name"]  # a recipe without a name is given one
    del definitions["SourceConfig"]["required"]  # `from_stage` may stand in the place of `path`
    included = {
        "type": "object",
        "properties": {"recipe": {"type": "string", "description": "recipe file to include, relative to this one"}},
        "required": ["recipe"],
        "additionalProperties": False,
    }
    stages = {
        "type": "object",
        "properties": {
            "stages": {
                "type": "array",
                "description": "runs that follow each other; each may start from the model of an earlier one",
                "items": {"anyOf": [included, {"$ref": "#/$defs/Run"}]},
                "minItems": 1,
                "maxItems": 32,
            }
        },
        "required": ["stages"],
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rlhf recipe",
        "anyOf": [{"$ref": "#/$defs/Run"}, stages],
        "$defs": {"Run": run, **definitions},
    }


def _classes(cls: SettingsClass, found: tuple[SettingsClass, ...] = ()) -> tuple[SettingsClass, ...]:
    """Return a settings class and all those that its settings may be."""
    if cls in found:
        return found
    found = (*found, cls)
    for setting in settings_of(cls):
        for nested in setting.nested:
            found = _classes(nested, found)
    return found


def _describe(schema: dict[str, Any], cls: SettingsClass) -> None:
    for setting in settings_of(cls):
        unit = f" [{setting.unit}]" if setting.unit else ""
        schema["properties"][setting.name]["description"] = setting.meaning.replace("None", "null") + unit


def text() -> str:
    """Return the schema as the text of its file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), "utf-8")
