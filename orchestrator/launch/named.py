"""Files that a recipe, a comparison or a suite names, below the working directory that a job is submitted from.

Relative paths are shipped. Absolute paths, `~` and URLs are the target's own: each machine of it must see them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from orchestrator.compare.recipe import Comparison
from orchestrator.config import Recipe
from orchestrator.config.recipe import recipe_files
from orchestrator.config.run import RunConfig
from orchestrator.data.sources import is_hub_name
from orchestrator.evaluation.suite import Suite, SuiteConfig
from orchestrator.launch.package import Named
from orchestrator.preflight.model_directory import may_be_hub_id
from orchestrator.preflight.shadowing import PACKAGES
from orchestrator.rundir.inputs import CONSTITUTION, code_of, named, named_by_scorers


def stays(path: str) -> bool:
    """Return whether a path is the target's own: absolute, in a home directory, or a URL."""
    return os.path.isabs(path) or path.startswith("~") or "://" in path


def named_by_stages(stages: Iterable[RunConfig], root: Path) -> Iterator[Named]:
    """Yield what the stages of recipes name, without what one of them will write."""
    configs = {str(config.directory): config for config in stages}
    written = {str(artifact) for config in configs.values() for artifact in config.artifacts}
    for config in configs.values():
        prefix = f"stages.{config.name}." if len(configs) > 1 else ""
        yield from _named(named(config), prefix, root, written)


def named_by_suite(suite: SuiteConfig, root: Path) -> Iterator[Named]:
    """Yield what a suite names."""
    yield from _named(_sources(suite), "", root, ())


def kept_in_place(stages: Iterable[RunConfig], suite: SuiteConfig | None = None) -> list[str]:
    """Return the absolute paths that stages or a suite name, which the target must have."""
    sources = [named(config) for config in stages] + ([_sources(suite)] if suite is not None else [])
    return list(dict.fromkeys(source for found in sources for source in found.values() if stays(source)))


def _sources(suite: SuiteConfig) -> dict[str, str]:
    """Return the data, models and functions that a suite names, by key."""
    sets = {"data.prompts": suite.prompts, "data.harmful": suite.harmful, "data.benign": suite.benign}
    sets["data.preferences"] = suite.preferences
    sources = {key: source for key, source in sets.items() if source is not None}
    rewards = {f"reward.{i}": reward for i, reward in enumerate(suite.reward)}
    return sources | named_by_scorers({**rewards, "refusal": suite.refusal})


def files_of(content: Recipe | Comparison | Suite, root: Path) -> list[Named]:
    """Return the YAML files of a recipe, comparison or suite, and a comparison's chart of a known optimum."""
    source = content.source
    files = [(source, "the file")]
    if isinstance(content, Recipe):
        files += [(file, "stages.recipe") for file in recipe_files(source)[1:]]
    elif isinstance(content, Comparison):
        config = content.config
        recipes = dict.fromkeys(source.parent / m.recipe for task in config.tasks for m in task.methods)
        files += [(file, "methods.recipe") for recipe in recipes for file in recipe_files(recipe)]
        files += [(source.parent / config.known, "known")] if config.known is not None else []
    return list(dict.fromkeys(Named(path=below(file, root), by=by) for file, by in files))


def below(file: Path, root: Path) -> str:
    """Return a file's path relative to the root; a path that starts with `..` or is absolute lies outside of it."""
    lexical = os.path.relpath(os.path.abspath(file), os.path.abspath(root))
    if lexical.split(os.sep)[0] != os.pardir:
        return lexical
    try:  # a root that is reached by a symbolic link
        return str((file.parent.resolve() / file.name).relative_to(root.resolve()))
    except ValueError:
        return lexical


def _named(sources: Mapping[str, str], prefix: str, root: Path, written: Collection[str]) -> Iterator[Named]:
    for key, source in sources.items():
        by = prefix + key
        if key.endswith(".function"):
            yield from _code(source, by, root)
        elif stays(source) or source in written:
            continue
        elif os.path.lexists(root / source) or not _may_be_on_the_hub(key, source, root):
            yield Named(path=source, by=by)


def _may_be_on_the_hub(key: str, source: str, root: Path) -> bool:
    if key == CONSTITUTION:
        return False
    return is_hub_name(source, root) if key.startswith("data.") else may_be_hub_id(source, root)


def _code(function: str, by: str, root: Path) -> Iterator[Named]:
    """Yield the file of a function and the files that it imports. Code of installed packages is the target's own."""
    location = function.rpartition(":")[0]
    if location.endswith(".py"):
        if stays(location):
            return
        yield Named(path=location, by=by)
    root = Path(os.path.abspath(root))
    files = [Path(os.path.abspath(file)) for file in code_of(function, root)]
    if not location.endswith(".py") and not (files and _is_importable(files[0], location, root)):
        return
    for file in files:
        if file.is_relative_to(root) and "site-packages" not in file.parts:
            place = file.relative_to(root)
            if place.parts[0].removesuffix(".py") not in PACKAGES:  # this program's own, installed on the target
                yield Named(path=str(place), by=by)


def _is_importable(file: Path, module: str, root: Path) -> bool:
    """Return whether a module's file is found from the root, and not only because its package is installed here."""
    package = module.split(".")[0]
    return file.is_relative_to(root) and file.relative_to(root).parts[0] in (package, f"{package}.py")
