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
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from orchestrator.compare.overrides import RunOverride, flat, own_overrides, run_overrides, texts_of
from orchestrator.compare.same import disagreements, missing_scorers
from orchestrator.config.conflicts import Conflict, ConflictsError
from orchestrator.config.document import Document, read_document
from orchestrator.config.explain import explain
from orchestrator.config.overrides import apply, parse_overrides
from orchestrator.config.recipe import Recipe, load, reading_order, stages_as_written
from orchestrator.config.run import Name, RunConfig
from orchestrator.config.secrets import find_secrets
from orchestrator.config.values import show
from orchestrator.errors import BadInput, Problem, Problems
from workers.config import Count, PathText, Positive, Settings

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,31}$")]


class MethodConfig(Settings):
    """A method, given by a recipe."""

    name: Label  # name of the method in the report
    recipe: PathText  # path of its recipe, relative to this file
    overrides: dict[str, Any] = Field(default_factory=dict)  # overrides of the recipe's last stage
    # the swept setting with its values, such as {algorithm.beta: [0.1, 0.5]}; empty: the value of the recipe
    sweep: dict[str, tuple[bool | int | float | str, ...]] = Field(default_factory=dict)


class BestOfNConfig(Settings):
    """Best-of-n sampling from the base model: the answer that a scorer of the runs rates highest among n. Nothing is
    trained; the answers and their scores are those of the runs before their first step."""

    name: Label = "best-of-n"  # name of the method in the report
    scorer: str  # scorer that chooses, such as the reward model that the other methods are trained on
    n: Annotated[tuple[Count, ...], Field(min_length=1)]  # numbers of answers to choose from


class TaskConfig(Settings):
    """Methods with the same base model and the same held-out prompts."""

    name: Label  # name of the task in the report
    about: str = ""  # description of the task in the report
    gold: str | None = None  # scorer that decides which of two answers is better; None: the whole reward of the run
    overrides: dict[str, Any] = Field(default_factory=dict)  # overrides of the last stage of every method
    methods: tuple[MethodConfig, ...]  # the methods to compare
    best_of_n: BestOfNConfig | None = None  # best-of-n sampling from the base model, as one more method


class CompareConfig(Settings):
    """A comparison of methods on one or more tasks. See configs/quickstart/compare.yaml."""

    name: Name  # name of the comparison, and of its directory below output_dir
    # parent directory of the comparison's directory, and if it is given of the directories of earlier stages
    output_dir: PathText = "runs"
    # random seeds; each setting of each method is run with every seed
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]
    max_device_seconds: Positive | None = None  # budget of each run in device-seconds; None: the limit of its recipe
    num_samples: Count = 8  # sampled answers to each held-out prompt at every evaluation
    # sampling temperatures besides 1 at which the win rate is measured as well, with num_samples answers at each
    temperatures: tuple[Annotated[float, Field(gt=0, le=2)], ...] = ()
    attempts: Count = 2  # maximum number of attempts of each run
    # number of runs at a time; auto: as many as the cluster's GPUs hold, or without GPUs this machine's cores
    parallel: Literal["auto"] | Count = "auto"
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

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.method, self.setting)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A comparison file, and the runs it consists of."""

    source: Path
    config: CompareConfig
    runs: tuple[PlannedRun, ...]
    overrides: tuple[str, ...] = ()  # of the command line

    @property
    def command(self) -> str:
        """Command that continues this comparison."""
        return shlex.join(["rlhf", "compare", str(self.source), *self.overrides])


def is_comparison(path: Path) -> bool:
    """Return whether a file is a comparison and not a recipe. A file that cannot be read is not."""
    document = read_document(path, Problems())
    return document is not None and isinstance(document.data, dict) and "tasks" in document.data


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read a comparison and the recipes it names. `overrides` are those of orchestrator/compare/overrides.py.

    Raises:
        BadInput: if the file, its recipes or the overrides have errors; all of them are listed.
    """
    problems, source = Problems(), Path(path)
    document = read_document(source, problems)
    if document is not None and not isinstance(document.data, dict):
        why, fix = "a comparison is a mapping of keys", "see configs/quickstart/compare.yaml"
        problems.add("not a comparison", where=str(source), why=why, fix=fix)
    problems.raise_if_any()
    assert document is not None
    own, others = own_overrides(overrides, CompareConfig.model_fields)
    for override in parse_overrides(own, [], problems):
        apply(override, document, problems)
    find_secrets(document, problems)
    config = _validated(document, problems)
    problems.sort(key=reading_order)
    problems.raise_if_any()
    assert config is not None
    of_runs = _run_overrides(others, config, source, problems)
    runs = list(_runs(config, of_runs, source, problems))
    for task in config.tasks:
        labelled = [(run.label, run.config) for run in runs if run.task == task.name]
        problems.extend(disagreements(labelled, str(source)))
        problems.extend(missing_scorers(labelled, task.gold, str(source)))
    problems.raise_if_any()
    return Comparison(source=source, config=config, runs=tuple(runs), overrides=tuple(overrides))


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
        if task.best_of_n is not None:
            yield from _best_of_n_conflicts(config, i, task.best_of_n)


def _best_of_n_conflicts(config: CompareConfig, i: int, best_of_n: BestOfNConfig) -> Iterator[Conflict]:
    available = config.num_samples * len(config.seeds)
    if max(best_of_n.n) >= available or len(set(best_of_n.n)) < len(best_of_n.n):
        yield Conflict(
            keys=(f"tasks.{i}.best_of_n.n",),
            why=f"distinct numbers below num_samples × seeds = {available}: that many answers of the base are measured",
            fix="choose among fewer answers, or raise num_samples",
        )
    if any(method.name == best_of_n.name for method in config.tasks[i].methods):
        why, fix = "a method has the same name", "give best_of_n another name"
        yield Conflict(keys=(f"tasks.{i}.best_of_n.name",), why=why, fix=fix)


def _run_overrides(texts: Sequence[str], config: CompareConfig, source: Path, problems: Problems) -> list[RunOverride]:
    """Parse the overrides of runs. The recipes are read for the names of their stages."""
    methods = {method.name: method.recipe for task in config.tasks for method in task.methods}
    stages: dict[str, None] = {}
    if any(text.startswith("stages.") for text in texts):
        for recipe in dict.fromkeys(methods.values()):
            stages |= dict.fromkeys(_stage_names(source.parent / recipe))
    return run_overrides(texts, list(methods), list(stages), problems)


def _stage_names(recipe: Path) -> list[str]:
    """Return the names of a recipe's stages; none if it has errors, which are reported where it is loaded to be run."""
    try:
        return [stage.name for stage in load(recipe).stages]
    except BadInput:
        return []


def _runs(
    config: CompareConfig, of_runs: Sequence[RunOverride], source: Path, problems: Problems
) -> Iterator[PlannedRun]:
    for task in config.tasks:
        for method in task.methods:
            given = _given(config, task, method, of_runs, source)
            swept = [(key, value) for key, values in method.sweep.items() for value in values]
            settings: Sequence[tuple[str, Any] | None] = swept or [None]
            for setting in settings:
                for seed in config.seeds:
                    run = _run(config, task, method, setting, seed, given, source, problems)
                    if run is None:
                        break  # other seeds would have the same errors
                    yield run


def _given(
    config: CompareConfig, task: TaskConfig, method: MethodConfig, of_runs: Sequence[RunOverride], source: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the overrides of a method: those of the file, then those of the command line."""
    recipe = source.parent / method.recipe
    names = _stage_names(recipe) if any(o.stage for o in of_runs) else []
    typed = {key: value for override in of_runs for key, value in override.of(method.name, names or [""])}
    own, moved = _earlier_directories(recipe), {}
    if "output_dir" in config.model_fields_set:
        moved = dict.fromkeys(own, config.output_dir)
    return {**own, **flat(task.overrides), **flat(method.overrides), **moved}, typed


def _earlier_directories(recipe: Path) -> dict[str, Any]:
    """Return overrides that leave the earlier stages of a recipe where they are, beside the runs of a comparison."""
    earlier = stages_as_written(recipe)[:-1]
    default = RunConfig.model_fields["output_dir"].default
    return {
        f"stages.{stage['name']}.output_dir": stage.get("output_dir", default) for stage in earlier if "name" in stage
    }


def _run(
    config: CompareConfig,
    task: TaskConfig,
    method: MethodConfig,
    swept: tuple[str, Any] | None,
    seed: int,
    given: tuple[dict[str, Any], dict[str, Any]],
    source: Path,
    problems: Problems,
) -> PlannedRun | None:
    setting = "" if swept is None else f"{swept[0].rpartition('.')[2]} {show(swept[1])}"
    written, typed = given
    fixed: dict[str, Any] = {
        **({swept[0]: swept[1]} if swept else {}),
        "name": _name(task.name, method.name, setting, f"seed {seed}"),
        "output_dir": str(config.directory),
        "seed": seed,
        "evaluation.num_samples": config.num_samples,
        "max_device_seconds": config.max_device_seconds,
        **({"evaluation.temperatures": list(config.temperatures)} if config.temperatures else {}),
    }
    if taken := [key for key in typed if key in fixed]:
        why = f"the comparison sets it, in every run of {method.name}"
        fix = "set it in the comparison: a key of its own, or methods.sweep"
        problem = Problem(what=f"{taken[0]}={show(typed[taken[0]])}", where="command line", why=why, fix=fix)
        _add_once(problem, problems)
        return None
    overrides = texts_of({**written, **typed, **fixed})
    try:
        recipe = load(source.parent / method.recipe, overrides)
    except BadInput as error:
        for problem in error.problems:
            where = f"{source}, {task.name}, {method.name}: {problem.where}"
            _add_once(Problem(what=problem.what, where=where, why=problem.why, fix=problem.fix), problems)
        return None
    return PlannedRun(
        task=task.name, method=method.name, setting=setting, seed=seed, recipe=recipe, overrides=overrides
    )


def _add_once(problem: Problem, problems: Problems) -> None:
    """Add a problem that another setting of the same method may have, too."""
    if problem not in problems:
        problems.append(problem)


def _name(*parts: str) -> str:
    """Return the name of a run's directory, at most 64 characters."""
    name = "--".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts if part)
    return name if len(name) <= 64 else f"{name[:55]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
