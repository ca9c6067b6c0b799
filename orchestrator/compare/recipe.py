"""What a comparison is told: methods, the setting that each sweeps, seeds, and a budget that is the same for all.

    name: quickstart-compare
    seeds: [0, 1]
    max_device_seconds: 150
    tasks:
      - name: sorting
        methods:
          - {name: PPO, recipe: ppo.yaml, sweep: {algorithm.kl_coef: [0.01, 0.1]}}
          - {name: offline DPO, recipe: offline_dpo.yaml, sweep: {algorithm.beta: [0.1, 0.5]}}

Every method × value × seed is a run: its recipe, with the overrides of the task, of the method, and these.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from orchestrator.config.conflicts import Conflict, ConflictsError
from orchestrator.config.document import Document, read_document
from orchestrator.config.explain import explain
from orchestrator.config.recipe import Recipe, load, reading_order
from orchestrator.config.run import Name, RunConfig
from orchestrator.config.secrets import find_secrets
from orchestrator.config.values import show
from orchestrator.errors import BadInput, Problem, Problems
from workers.config import Count, PathText, Positive, Settings

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,31}$")]
SAME = (
    "model.path",
    "data.eval_prompts",
    "evaluation.max_prompts",
    "evaluation.num_samples",
    "rollout.max_completion_length",
)
"""Settings in which all runs of a task must agree, or their figures say nothing of their methods."""


class MethodConfig(Settings):
    """A way to learn, as a recipe."""

    name: Label
    recipe: PathText  # beside this file
    overrides: dict[str, Any] = Field(default_factory=dict)  # of its last stage
    sweep: dict[str, tuple[bool | int | float | str, ...]] = Field(default_factory=dict)
    """One setting with its values: the strength of the pull towards the reference. Empty: the recipe's own alone."""


class TaskConfig(Settings):
    """Methods that begin with the same base, and are asked the same held-out prompts."""

    name: Label
    about: str = ""
    gold: str | None = None  # the scorer that says who is better; None: the run's whole reward
    overrides: dict[str, Any] = Field(default_factory=dict)  # of every method's last stage
    methods: tuple[MethodConfig, ...]


class CompareConfig(Settings):
    """One comparison. See configs/quickstart/compare.yaml."""

    name: Name
    output_dir: PathText = "runs"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]
    max_device_seconds: Positive | None = None  # of each run; None: as long as its recipe says
    num_samples: Count = 8  # sampled answers to each held-out prompt
    attempts: Count = 2  # of each run
    known: PathText | None = None  # beside this file: points in a world whose best is known (benchmarks/frontier.py)
    tasks: tuple[TaskConfig, ...]

    @model_validator(mode="after")
    def no_conflicts(self) -> Self:
        if found := list(_conflicts(self)):
            raise ConflictsError(found)
        return self

    @property
    def directory(self) -> Path:
        return Path(self.output_dir) / self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of a comparison. Example: task "sorting", method "PPO", setting "kl_coef 0.1", seed 1."""

    task: str
    method: str
    setting: str  # empty: nothing is swept
    seed: int
    recipe: Recipe
    overrides: tuple[str, ...]

    @property
    def config(self) -> RunConfig:
        return self.recipe.stages[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A comparison as it was given, and the runs it consists of."""

    source: Path
    config: CompareConfig
    runs: tuple[PlannedRun, ...]


def load_comparison(path: str | Path) -> Comparison:
    """Reads a comparison and the recipes that it names.

    Raises:
        BadInput: with everything that is wrong in it, and in its recipes.
    """
    problems, source = Problems(), Path(path)
    document = read_document(source, problems)
    if document is not None and not isinstance(document.data, dict):
        why, fix = "a comparison is a mapping of keys", "see configs/quickstart/compare.yaml"
        problems.add("not a comparison", where=str(source), why=why, fix=fix)
    problems.raise_if_any()
    assert document is not None
    find_secrets(document, problems)
    config = _validated(document, problems)
    problems.sort(key=reading_order)
    problems.raise_if_any()
    assert config is not None
    runs = list(_runs(config, source, problems))
    for task in config.tasks:
        own = [run for run in runs if run.task == task.name]
        problems.extend(disagreements([(_label(run), run.config) for run in own], str(source)))
    problems.raise_if_any()
    return Comparison(source=source, config=config, runs=tuple(runs))


def disagreements(runs: list[tuple[str, RunConfig]], where: str) -> Iterator[Problem]:
    """Why runs cannot be compared; `runs` with the names they go by."""
    if not runs:
        return
    first_name, first = runs[0]
    for key in SAME:
        for name, config in runs[1:]:
            if _at(config, key) != _at(first, key):
                yield Problem(
                    what=f"{key} is {show(_at(config, key))} in {name} and {show(_at(first, key))} in {first_name}",
                    where=where,
                    why="then a difference would not be one of their methods",
                    fix="give them the same, or compare them apart",
                )
                break
    for key in ("prompts", "dataset"):
        given = {value: name for name, config in runs if (value := getattr(config.data, key)) is not None}
        if len(given) > 1:
            shown = " and ".join(f"{show(value)} in {name}" for value, name in list(given.items())[:2])
            why, fix = "who has better data would win", "let them learn from the same"
            yield Problem(what=f"data.{key} is {shown}", where=where, why=why, fix=fix)
    if first.data.eval_prompts is None:
        why, fix = "there is nothing to compare them on", "give held-out prompts: data.eval_prompts"
        yield Problem(what=f"data.eval_prompts is missing in {first_name}", where=where, why=why, fix=fix)


def _at(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _validated(document: Document, problems: Problems) -> CompareConfig | None:
    try:
        return CompareConfig.model_validate_json(json.dumps(document.data))  # JSON: strict, and lists stand for tuples
    except ValidationError as error:
        explain(error, document, problems, CompareConfig)
        return None


def _conflicts(config: CompareConfig) -> Iterator[Conflict]:
    lists: list[tuple[str, list[Any]]] = [
        ("seeds", list(config.seeds)),
        ("tasks", [task.name for task in config.tasks]),
        *((f"tasks.{i}.methods", [m.name for m in task.methods]) for i, task in enumerate(config.tasks)),
    ]
    for key, names in lists:
        if not names:
            yield Conflict(keys=(key,), why="there is nothing to compare", fix="see configs/quickstart/compare.yaml")
        if len(set(names)) < len(names):
            why, fix = "one of them is given twice", "give each once, and each method its own name"
            yield Conflict(keys=(key,), why=why, fix=fix)
    for i, task in enumerate(config.tasks):
        for j, method in enumerate(task.methods):
            distinct = all(values and len(set(values)) == len(values) for values in method.sweep.values())
            if len(method.sweep) > 1 or not distinct:
                why, fix = "it is one setting with different values", "sweep: {algorithm.beta: [0.05, 0.5]}"
                yield Conflict(keys=(f"tasks.{i}.methods.{j}.sweep",), why=why, fix=fix)


def _runs(config: CompareConfig, source: Path, problems: Problems) -> Iterator[PlannedRun]:
    for task in config.tasks:
        for method in task.methods:
            swept = [(key, value) for key, values in method.sweep.items() for value in values]
            settings: Sequence[tuple[str, Any] | None] = swept or [None]
            for setting in settings:
                for seed in config.seeds:
                    run = _run(config, task, method, setting, seed, source, problems)
                    if run is None:
                        break  # with another seed the same would be wrong
                    yield run


def _run(
    config: CompareConfig,
    task: TaskConfig,
    method: MethodConfig,
    swept: tuple[str, Any] | None,
    seed: int,
    source: Path,
    problems: Problems,
) -> PlannedRun | None:
    setting = "" if swept is None else f"{swept[0].rpartition('.')[2]} {show(swept[1])}"
    given: dict[str, Any] = {
        **task.overrides,
        **method.overrides,
        **({swept[0]: swept[1]} if swept else {}),
        "name": _name(task.name, method.name, setting, f"seed {seed}"),
        "output_dir": str(config.directory),
        "seed": seed,
        "evaluation.num_samples": config.num_samples,
        "max_device_seconds": config.max_device_seconds,
    }
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in given.items())
    try:
        recipe = load(source.parent / method.recipe, overrides)
    except BadInput as error:
        for problem in error.problems:
            where = f"{source}, {task.name}, {method.name}: {problem.where}"
            told = Problem(what=problem.what, where=where, why=problem.why, fix=problem.fix)
            if told not in problems:  # another setting of the same method may have said it
                problems.append(told)
        return None
    return PlannedRun(
        task=task.name, method=method.name, setting=setting, seed=seed, recipe=recipe, overrides=overrides
    )


def _label(run: PlannedRun) -> str:
    return " ".join(filter(None, (run.method, run.setting)))


def _name(*parts: str) -> str:
    """Of a run's directory, at most 64 characters."""
    name = "--".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts if part)
    return name if len(name) <= 64 else f"{name[:55]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
