"""Every YAML example in the documentation is valid: recipe, part of one, suite, comparison, judge or targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, Block, blocks

from orchestrator.compare.recipe import CompareConfig
from orchestrator.config import load
from orchestrator.config.constitution import ConstitutionConfig
from orchestrator.errors import BadInput
from orchestrator.evaluation.judge_file import read_judge
from orchestrator.evaluation.suite import suite_of
from orchestrator.launch.targets import load_targets

EXAMPLES = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]
BASES: tuple[dict[str, Any], ...] = (
    {
        "model": {"path": "model"},
        "data": {"prompts": "prompts.jsonl", "eval_prompts": "heldout.jsonl"},
        "reward": [{"type": "math"}],
        "algorithm": {"type": "grpo", "max_steps": 100},
        "checkpoint": {"every": 20},
    },
    {"model": {"path": "model"}, "data": {"dataset": "pairs.jsonl"}, "algorithm": {"type": "dpo"}},
    {
        "model": {"path": "model"},
        "data": {"prompts": "prompts.jsonl"},
        "reward": [{"type": "math"}],
        "algorithm": {"type": "dpo", "max_steps": 3},
    },
)
"""Recipes that complete an example that is only a part of a recipe."""


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.page)
def test_yaml_examples_are_valid(block: Block, tmp_path: Path) -> None:
    values = yaml.safe_load(block.text)
    if values is None:  # only a comment
        return
    if all(isinstance(value, dict) and "engine" in value for value in values.values()):
        path = tmp_path / "targets.yaml"
        path.write_text(block.text)
        load_targets(path)
    elif "tasks" in values:
        CompareConfig.model_validate_json(json.dumps(values))
    elif "principles" in values:
        ConstitutionConfig.model_validate_json(json.dumps(values))
    elif "url" in values:
        (tmp_path / "judge.yaml").write_text(block.text)
        read_judge(tmp_path / "judge.yaml")
    elif "prompts" in values:
        suite_of(values, ())
    elif "stages" in values and all("recipe" not in stage for stage in values["stages"]):
        read(values, tmp_path)
    elif "stages" in values:
        for stage in values["stages"]:
            if "recipe" not in stage:
                read({**stage, "model": {"path": "model"}}, tmp_path)
    elif "algorithm" in values:
        read(values, tmp_path)
    else:
        read_as_a_part(values, tmp_path)


def read_as_a_part(values: dict[str, Any], tmp_path: Path) -> None:
    problems = []
    for base in BASES:
        try:
            return read({**base, **values}, tmp_path)
        except BadInput as error:
            problems.append(str(error))
    pytest.fail("\n".join(problems))


def read(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    load(path)


def test_the_documentation_has_examples() -> None:
    assert len(EXAMPLES) > 12
