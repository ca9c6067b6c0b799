"""Settings of a comparison: methods, the setting that each sweeps, seeds, and one budget for all runs.

    name: quickstart-compare
    seeds: [0, 1]
    max_device_seconds: 150
    tasks:
      - name: sorting
        methods:
          - {name: PPO, recipe: ppo.yaml, sweep: {algorithm.kl_coef: [0.01, 0.1]}}
          - {name: offline DPO, recipe: offline_dpo.yaml, sweep: {algorithm.beta: [0.1, 0.5]}}

Every method × value × seed is a run: the method's recipe with the overrides of the task, the method and the sweep.
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
"""Settings that must be equal in all runs of a task, so that a difference can be attributed to the methods."""


class MethodConfig(Settings):
    """A method, given by a recipe."""

    name: Label  # name of the method in the report
    recipe: PathText  # path of its recipe, relative to this file
    overrides: dict[str, Any] = Field(default_factory=dict)  # overrides of the recipe's last stage
    # the swept setting with its values, such as {algorithm.beta: [0.1, 0.5]}; empty: the value of the recipe
    sweep: dict[str, tuple[bool | int | float | str, ...]] = Field(default_factory=dict)


class TaskConfig(Settings):
    """Methods with the same base model and the same held-out prompts."""

    name: Label  # name of the task in the report
    about: str = ""  # description of the task in the report
    gold: str | None = None  # scorer that decides which of two answers is better; None: the whole reward of the run
    overrides: dict[str, Any] = Field(default_factory=dict)  # overrides of the last stage of every method
    methods: tuple[MethodConfig, ...]  # the methods to compare


class CompareConfig(Settings):
    """A comparison of methods on one or more tasks. See configs/quickstart/compare.yaml."""

    name: Name  # name of the comparison, and of its directory below output_dir
    output_dir: PathText = "runs"  # parent directory of the comparison's directory
    # random seeds; each setting of each method is run with every seed
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]
    max_device_seconds: Positive | None = None  # budget of each run in device-seconds; None: the limit of its recipe
    num_samples: Count = 8  # sampled answers to each held-out prompt at every evaluation
    attempts: Count = 2  # maximum number of attempts of each run
    # path, relative to this file, of results on a task with a known optimum (by benchmarks/frontier.py) to draw in the
    # report; None: no such chart
    known: PathText | None = None
    tasks: tuple[TaskConfig, ...]  # the tasks to compare methods on

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
    setting: str  # value of the swept setting; empty: no sweep
    seed: int
    recipe: Recipe
    overrides: tuple[str, ...]

    @property
    def config(self) -> RunConfig:
        return self.recipe.stages[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A comparison file, and the runs it consists of."""

    source: Path
    config: CompareConfig
    runs: tuple[PlannedRun, ...]


def load_comparison(path: str | Path) -> Comparison:
    """Read a comparison and the recipes it names.

    Raises:
        BadInput: if the file or its recipes have errors; all of them are listed.
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
    """Yield the reasons why runs cannot be compared. `runs` are pairs of a name for messages and a config."""
    if not runs:
        return
    first_name, first = runs[0]
    for key in SAME:
        for name, config in runs[1:]:
            if _at(config, key) != _at(first, key):
                yield Problem(
                    what=f"{key} is {show(_at(config, key))} in {name} and {show(_at(first, key))} in {first_name}",
                    where=where,
                    why="a difference could not be attributed to the methods",
                    fix="use the same value, or compare these runs separately",
                )
                break
    for key in ("prompts", "dataset"):
        given = {value: name for name, config in runs if (value := getattr(config.data, key)) is not None}
        if len(given) > 1:
            shown = " and ".join(f"{show(value)} in {name}" for value, name in list(given.items())[:2])
            why, fix = "the run with the better data would win", "train on the same data"
            yield Problem(what=f"data.{key} is {shown}", where=where, why=why, fix=fix)
    if first.data.eval_prompts is None:
        why, fix = "runs are compared on held-out prompts", "set data.eval_prompts"
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
            why, fix = "an entry is repeated", "list each once, and give each method its own name"
            yield Conflict(keys=(key,), why=why, fix=fix)
    for i, task in enumerate(config.tasks):
        for j, method in enumerate(task.methods):
            distinct = all(values and len(set(values)) == len(values) for values in method.sweep.values())
            if len(method.sweep) > 1 or not distinct:
                why, fix = "a sweep is one setting with distinct values", "sweep: {algorithm.beta: [0.05, 0.5]}"
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
                        break  # other seeds would have the same errors
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
    values: dict[str, Any] = {
        **task.overrides,
        **method.overrides,
        **({swept[0]: swept[1]} if swept else {}),
        "name": _name(task.name, method.name, setting, f"seed {seed}"),
        "output_dir": str(config.directory),
        "seed": seed,
        "evaluation.num_samples": config.num_samples,
        "max_device_seconds": config.max_device_seconds,
    }
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in values.items())
    try:
        recipe = load(source.parent / method.recipe, overrides)
    except BadInput as error:
        for problem in error.problems:
            where = f"{source}, {task.name}, {method.name}: {problem.where}"
            located = Problem(what=problem.what, where=where, why=problem.why, fix=problem.fix)
            if located not in problems:  # another setting of the same method may have the same problem
                problems.append(located)
        return None
    return PlannedRun(
        task=task.name, method=method.name, setting=setting, seed=seed, recipe=recipe, overrides=overrides
    )


def _label(run: PlannedRun) -> str:
    return " ".join(filter(None, (run.method, run.setting)))


def _name(*parts: str) -> str:
    """Return the name of a run's directory, at most 64 characters."""
    name = "--".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts if part)
    return name if len(name) <= 64 else f"{name[:55]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
