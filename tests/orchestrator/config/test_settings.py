"""Every setting is read by some code: a setting that no code reads has no effect."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from recipe_dir import RecipeDir

from orchestrator.compare.recipe import CompareConfig
from orchestrator.config import RunConfig, load, resolved
from orchestrator.config.constitution import ConstitutionConfig
from orchestrator.config.recipe import from_resolved
from orchestrator.evaluation.suite import SuiteConfig

NOT_READ_BY_NAME = [
    "ModelConfig.from_stage",  # these three: replaced by the path when a recipe is loaded
    "ModelConfig.trust_remote_code",  # always False: the type refuses True
    "ModelOrigin.from_stage",
    "ScoringConfig.logprob_chunk_tokens",  # these four
    "ScoringConfig.num_ranks",
    "ScoringConfig.tokens_per_micro_batch",
    "ScoringConfig.zero_stage",
    "SourceConfig.from_stage",
]
"""Settings that no code reads by name, each with the reason."""

ROOT = Path(__file__).resolve().parents[3]


def classes(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the settings classes in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from classes(part)


def mounted() -> dict[type[BaseModel], set[str]]:
    """Return every settings class with the keys under which it occurs."""
    found: dict[type[BaseModel], set[str]] = defaultdict(set)
    queue: list[tuple[type[BaseModel], str]] = [(RunConfig, ""), (SuiteConfig, ""), (CompareConfig, "")]
    queue.append((ConstitutionConfig, ""))
    while queue:
        cls, key = queue.pop()
        if key in found[cls]:
            continue
        found[cls].add(key)
        queue += [(inner, name) for name, f in cls.model_fields.items() for inner in classes(f.annotation)]
    return found


class Reads:
    """Attributes that a file reads, each with the name before it, and all names that it uses."""

    def __init__(self, path: Path) -> None:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        self.pairs = {
            (_last(node.value), node.attr)
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        }
        self.attributes = {attribute for _, attribute in self.pairs}
        strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        self.attributes |= strings if any(isinstance(n, ast.Name) and n.id == "getattr" for n in nodes) else set()
        self.names = {node.id for node in nodes if isinstance(node, ast.Name)}


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def unread(files: list[Reads], settings: dict[type[BaseModel], set[str]]) -> list[str]:
    """Return the settings that no file reads.

    A name that several classes have counts as read in a file that uses the class, or that reads it right after the key
    under which the class occurs.
    """
    owners: dict[str, set[type[BaseModel]]] = defaultdict(set)
    for cls in settings:
        for name in cls.model_fields:
            owners[name].add(next(c for c in reversed(cls.__mro__) if name in getattr(c, "__annotations__", {})))
    found = []
    for cls, keys in settings.items():
        class_names = {c.__name__ for c in cls.__mro__ if c not in (BaseModel, object)} - {"Settings"}
        for name in cls.model_fields:
            alone = len({owner.__module__ for owner in owners[name]}) == 1  # e.g. read from all types of reward at once
            if not any(
                name in file.attributes
                and (alone or file.names & class_names or any((key, name) in file.pairs for key in keys))
                for file in files
            ):
                found.append(f"{cls.__name__}.{name}")
    return sorted(found)


def test_every_setting_is_read() -> None:
    files = [Reads(path) for package in ("orchestrator", "workers") for path in (ROOT / package).rglob("*.py")]
    alarms = {cls for cls in mounted() if cls.__module__ == "orchestrator.config.alarms"}  # read by name: RULES
    settings = {cls: keys for cls, keys in mounted().items() if cls not in alarms}
    assert unread(files, settings) == NOT_READ_BY_NAME


def test_a_setting_that_nobody_reads_is_found(tmp_path: Path) -> None:
    class Workers(BaseModel):
        num_workers: int = 1
        timeout_s: float = 1.0

    class Calls(BaseModel):
        timeout_s: float = 1.0

    Calls.__module__ = "elsewhere"
    (tmp_path / "mine.py").write_text(
        "def run(calls: Calls, workers):\n    return calls.timeout_s * workers.num_workers"
    )
    files, settings = [Reads(tmp_path / "mine.py")], {Workers: {"workers"}, Calls: {"calls"}}
    assert unread(files, settings) == ["Workers.timeout_s"]


def test_a_run_with_a_setting_that_was_removed_since_can_be_resumed(recipe_dir: RecipeDir) -> None:
    (config,) = load(recipe_dir.recipe()).stages
    old = resolved(config)
    old["reward_workers"]["timeout_s"] = 300.0
    assert from_resolved(old, "resolved.json") == config
