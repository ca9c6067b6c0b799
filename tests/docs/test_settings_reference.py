"""The configuration reference and the JSON schema of a recipe describe every setting."""

from __future__ import annotations

import json
from typing import Any

import config_pages
import jsonschema
import pytest
import yaml
from recipe_schema import schema, text
from settings import SettingsClass, default_text, field_comments, settings_of, type_text
from shipped import RECIPES

from orchestrator.compare.recipe import CompareConfig
from orchestrator.config import RunConfig
from orchestrator.config.constitution import ConstitutionConfig
from orchestrator.config.run import ClusterConfig, DataConfig
from orchestrator.evaluation.suite import SuiteConfig
from workers.config import Count, GrpoConfig, LoraConfig, PathText, Share

SCHEMA = schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def classes(*roots: SettingsClass) -> list[SettingsClass]:
    found: list[SettingsClass] = []
    waiting = list(roots)
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found.append(cls)
            waiting += [nested for setting in settings_of(cls) for nested in setting.nested]
    return found


ALL = classes(RunConfig, SuiteConfig, CompareConfig, ConstitutionConfig)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_setting_has_a_meaning(cls: SettingsClass) -> None:
    """Find settings without a comment beside their field."""
    assert [setting.name for setting in settings_of(cls) if not setting.meaning] == []


def test_every_setting_is_on_a_page() -> None:
    pages = "".join(config_pages.pages().values())
    assert len(ALL) > 50
    for cls in ALL:
        for setting in settings_of(cls):
            assert f"{setting.name}` |" in pages, f"{cls.__name__}.{setting.name}"


def test_a_row_of_the_reference() -> None:
    rows = config_pages.pages()["reference/recipe.md"].splitlines()
    row = next(row for row in rows if row.startswith("| `cluster.heartbeat_timeout_s`"))
    assert row.startswith("| `cluster.heartbeat_timeout_s` | number ≥ 2 | `180` | s | ")
    assert any(row.startswith("| `name` | text | made from the recipe |") for row in rows)
    assert any(row.startswith("| `model` | [mapping](#model) | required |") for row in rows)
    assert any(row.startswith("| `algorithm` | [mapping](algorithms.md) | required |") for row in rows)
    assert any(row.startswith("| `rollout.max_completion_length` | integer ≥ 1 | `512` | tokens |") for row in rows)


def test_comments_stand_beside_above_or_below_a_field() -> None:
    source = '''
class First:
    """Not a comment on a field."""

    beside: int = 1  # one
    # two,
    # on two lines
    above: int = 2
    below: int = 3
    """three"""
    long: int = (
        4  # four
    )

    # of nothing

    none: int = 5

class Second:
    beside: int = 1  # another
'''
    assert field_comments(source) == {
        "First": {"beside": "one", "above": "two, on two lines", "below": "three", "long": "four", "none": ""},
        "Second": {"beside": "another"},
    }


def test_an_inherited_setting_has_the_comment_of_its_base() -> None:
    inherited = next(s for s in settings_of(GrpoConfig) if s.name == "adam_beta2")
    assert "AdamW" in inherited.meaning


def test_units_come_from_the_name_or_the_meaning() -> None:
    units = {f"{cls.__name__}.{setting.name}": setting.unit for cls in ALL for setting in settings_of(cls)}
    assert units["ClusterConfig.progress_timeout_s"] == "s"
    assert units["RolloutConfig.cpu_kv_cache_mib"] == "MiB"
    assert units["KlBudget.max_kl"] == "nats per completion"
    assert units["DpoConfig.batch_size"] == "pairs"
    assert units["DpoConfig.ld_alpha"] == ""  # a weight of tokens, which is no number of tokens
    assert units["NoSignal.max_share"] == "share"
    assert units["DataConfig.split"] == ""


def test_types_as_people_read_them() -> None:
    assert type_text(Count) == "integer ≥ 1"
    assert type_text(Share | None) == "number ≥ 0, ≤ 1 | null"
    assert type_text(PathText) == "path"
    assert type_text(tuple[PathText, ...]) == "list of path"
    assert type_text(dict[str, bool]) == "mapping of text to boolean"
    equal_pairs = DataConfig.model_fields["equal_pairs"]
    assert type_text(equal_pairs.annotation, equal_pairs.metadata) == "fail | drop"


def test_defaults_as_recipes_have_them() -> None:
    assert [default_text(value) for value in (None, True, 1e-6, 2.0, "a", (), (1, 2))] == [
        *("null", "true", "1e-06", "2", "a", "[]", "[1, 2]"),
    ]
    assert default_text(LoraConfig(r=8)) == "{r: 8}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_schema_takes_every_recipe(path: Any) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text("utf-8")))


def test_the_schema_refuses_a_misspelt_key() -> None:
    recipe = {"model": {"path": "x"}, "data": {"dataset": "y"}, "algorithm": {"type": "sft"}}
    VALIDATOR.validate(recipe)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(recipe | {"rolout": {}})
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(recipe | {"algorithm": {"type": "sft", "lr": 1}})


def test_the_schema_is_a_schema_and_describes_the_settings() -> None:
    VALIDATOR.check_schema(SCHEMA)
    described = SCHEMA["$defs"][ClusterConfig.__name__]["properties"]["progress_timeout_s"]["description"]
    assert described.endswith("[s]")
    assert json.loads(text()) == SCHEMA
