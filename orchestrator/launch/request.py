"""Job of a recipe, a comparison or an evaluation on a target: command, files, run directories, and an id by content.

    file + overrides ──► content: stages, command ──► package of the files that it names ──► id, JobRequest

The id is a digest of settings and file contents. Comments, attempts, priority and permissions do not change it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.compare.recipe import Comparison, is_comparison, load_comparison
from orchestrator.config import Recipe, RunConfig, load, resolved
from orchestrator.config.document import read_document
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problem, Problems
from orchestrator.evaluation.suite import Suite, load_suite
from orchestrator.launch.base import PREFIX, JobRequest, Package
from orchestrator.launch.named import below, files_of, kept_in_place, named_by_stages, named_by_suite, stays
from orchestrator.launch.package import Named, build_package
from orchestrator.launch.targets import LocalTarget, RayTarget, Target, targets_file
from orchestrator.preflight.model_directory import may_be_hub_id
from orchestrator.preflight.shadowing import refuse_shadows
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.inputs import inputs_of

PLAIN = re.compile(r"[\w./:@+-]+")
NOT_IN_THE_ID = {"attempts", "parallel", "name", "output_dir"}  # of a comparison: its runs have the last two


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Job that a person asks for. Example: `Asked(file=Path("configs/grpo.yaml"), overrides=("seed=3",))`."""

    file: Path  # recipe, comparison or suite
    overrides: tuple[str, ...] = ()
    working_dir: Path = Path()
    include: tuple[str, ...] = ()  # further files and directories to ship
    model: str | None = None  # that a suite evaluates
    against: str | None = None  # second model of a suite
    attempts: int = 1
    fresh: bool = False
    priority: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """Content of a job: a recipe, a comparison or a suite, and the command that runs it."""

    name: str
    loaded: Recipe | Comparison | Suite
    stages: tuple[RunConfig, ...]  # of all runs; none of a suite
    command: tuple[str, ...]  # without the file
    arguments: tuple[str, ...]  # after the file
    output_dir: str | None = None  # of a comparison or an evaluation

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        if isinstance(self.loaded, Comparison):
            return tuple(run.recipe for run in self.loaded.runs)
        return (self.loaded,) if isinstance(self.loaded, Recipe) else ()


def read_content(asked: Asked, target: Target) -> Content:
    """Read the file of a job as the target will run it. Raise BadInput with everything that is wrong in it."""
    kind = kind_of(asked.file)
    overrides = [*asked.overrides, *_moved(asked.overrides, target)]
    if kind == "recipe" and target.storage is not None and _value("storage", asked.overrides) is None:
        overrides.append(_assignment("storage", target.storage))
    if isinstance(target, LocalTarget):
        overrides = _kept_here(kind, asked, overrides)
    if kind == "suite":
        return _evaluation(asked, overrides)
    if asked.model or asked.against:
        why, fix = f"{asked.file} is a {kind}", "leave out --model and --against: they are for suites"
        raise BadInput(Problem(what="no model to evaluate", where="command line", why=why, fix=fix))
    is_open = isinstance(target, RayTarget) and target.allow_open
    fresh = ("--fresh",) if asked.fresh else ()
    if kind == "recipe":
        recipe = load(asked.file, overrides)
        supervised = ("--attempts", str(asked.attempts)) if asked.attempts > 1 else ()
        return Content(
            name=recipe.stages[-1].name,
            loaded=recipe,
            stages=recipe.stages,
            command=("rlhf", "run", *supervised, *fresh),
            arguments=(*overrides, *(("cluster.allow_open=true",) if is_open else ())),
        )
    overrides += [f"attempts={asked.attempts}"] if asked.attempts > 1 else []
    comparison = load_comparison(asked.file, overrides)
    return Content(
        name=comparison.config.name,
        loaded=comparison,
        stages=tuple(stage for run in comparison.runs for stage in run.recipe.stages),
        command=("rlhf", "compare", *fresh),
        arguments=(*overrides, *(("stages.*.cluster.allow_open=true",) if is_open else ())),
        output_dir=comparison.config.output_dir,
    )


def make_request(asked: Asked, content: Content, target: Target, into: Path) -> JobRequest:
    """Return the request for a job on a target.

    Args:
        into: empty directory that the files are copied to.

    Raises:
        BadInput: the job's results would be lost on the target, a file cannot be shipped, or a package of the working
            directory hides one of this program's.
    """
    root = Path(os.path.abspath(asked.working_dir))
    refuse_shadows(root, problems := Problems())
    problems.raise_if_any()
    _refuse_relative(content, asked.file)
    settings = files_of(content.loaded, root)
    package = build_package(_named(asked, content, root, settings), root, into)
    not_hashed = {os.path.normpath(item.path) for item in settings if item.by != "known"}
    digest = _digest(content, package, not_hashed, root, fresh=asked.fresh)
    return JobRequest(
        id=f"{PREFIX}{content.name}-{digest[:8]}",
        run=content.name,
        command=(*content.command, os.path.normpath(settings[0].path), *content.arguments),
        package=package,
        directories=tuple(_directories(content)),
        priority=asked.priority,
        secrets=target.secrets,
    )


def kind_of(file: Path) -> Literal["recipe", "comparison", "suite"]:
    """Return what a YAML file is. A file that cannot be read is taken for a recipe, whose reader says why."""
    if is_comparison(file):
        return "comparison"
    document = read_document(file, Problems())
    keys = set(document.data) if document is not None and isinstance(document.data, dict) else set()
    return "suite" if keys & {"prompts", "harmful", "benign"} and not keys & {"algorithm", "stages"} else "recipe"


def staying(content: Content) -> list[str]:
    """Return the absolute paths that a recipe, a comparison or a suite names: the target must have them."""
    return kept_in_place(content.stages, content.loaded.config if isinstance(content.loaded, Suite) else None)


def _moved(overrides: Sequence[str], target: Target) -> list[str]:
    """Return the override that moves a job to the target's output_dir, unless the command line has one of its own."""
    if target.output_dir is None or _output_dir(overrides) is not None:
        return []
    return [_assignment("output_dir", target.output_dir)]


def _assignment(key: str, value: str) -> str:
    return f"{key}={value if PLAIN.fullmatch(value) else json.dumps(value)}"


def _kept_here(kind: str, asked: Asked, overrides: Sequence[str]) -> list[str]:
    """Return overrides by which a job of this machine, which runs in a copy of its files, writes where the recipe says.

    A relative output_dir becomes absolute.
    """
    root = Path(os.path.abspath(asked.working_dir))
    kept = [text for text in overrides if not text.partition("=")[0].strip().endswith("output_dir")]
    if kind == "suite":
        return [*kept, _assignment("output_dir", str(root / (_output_dir(overrides) or "")))]
    if kind == "recipe":
        stages = load(asked.file, overrides).stages
        own, earlier = stages[-1].output_dir, stages[:-1]
    else:
        comparison = load_comparison(asked.file, overrides)
        own = comparison.config.output_dir
        earlier = tuple(stage for run in comparison.runs for stage in run.recipe.stages[:-1])
    moved = {
        _assignment(f"stages.{s.name}.output_dir", str(root / s.output_dir)) for s in earlier if s.output_dir != own
    }
    return [*kept, _assignment("output_dir", str(root / own)), *sorted(moved)]


def _output_dir(overrides: Sequence[str]) -> str | None:
    return _value("output_dir", overrides)


def _value(key: str, overrides: Sequence[str]) -> str | None:
    return next((text.partition("=")[2] for text in overrides if text.partition("=")[0].strip() == key), None)


def _evaluation(asked: Asked, overrides: Sequence[str]) -> Content:
    if asked.model is None:
        why, fix = f"{asked.file} is a suite, which evaluates a model", "give --model MODEL"
        raise BadInput(Problem(what="no model is given", where="command line", why=why, fix=fix))
    if asked.attempts > 1 or asked.fresh:
        why, fix = "an evaluation is done again as a whole", "leave out --attempts and --fresh"
        raise BadInput(
            Problem(what="--attempts and --fresh are not for suites", where="command line", why=why, fix=fix)
        )
    suite = load_suite(asked.file, [text for text in overrides if _output_dir([text]) is None])
    folder = Path(asked.model.rstrip("/"))
    name = folder.parent.name if folder.name == "model" and folder.parent.name else folder.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name}--{asked.file.stem}").strip("-.")
    output_dir = (_output_dir(overrides) or "").strip("\"'")
    output = os.path.join(output_dir, "evaluations", name)
    against = ("--against", asked.against) if asked.against else ()
    return Content(
        name=name[:64],
        loaded=suite,
        stages=(),
        command=("rlhf", "evaluate", asked.model, *against, "--output", output, "--suite"),
        arguments=tuple(text for text in overrides if _output_dir([text]) is None),
        output_dir=output,
    )


def _refuse_relative(content: Content, file: Path) -> None:
    """Refuse results in the job's copy of the files, which the target removes some time after the job."""
    directories = {stage.output_dir for stage in content.stages} | ({content.output_dir} - {None})
    if relative := sorted(str(path) for path in directories if not stays(str(path))):
        raise BadInput(
            Problem(
                what=f"output_dir = {', '.join(relative)} is relative",
                where=str(file),
                why="the results would lie among the job's own files, which are removed after the job",
                fix="give a directory that every machine of the target sees: output_dir=/shared/runs, or `output_dir:` "
                f"of the target in {targets_file()}",
            )
        )


def _named(asked: Asked, content: Content, root: Path, settings: Sequence[Named]) -> list[Named]:
    named = [*settings, *(Named(path=below(root / path, root), by="--include") for path in asked.include)]
    named += named_by_stages(content.stages, root)
    if isinstance(content.loaded, Suite):
        named += named_by_suite(content.loaded.config, root)
        models = {"--model": asked.model, "--against": asked.against if asked.against != "base" else None}
        named += [Named(path=path, by=by) for by, path in models.items() if path and _is_here(path, by, root)]
    return named


def _is_here(model: str, by: str, root: Path) -> bool:
    """Return whether a model of an evaluation is shipped. Refuse a run directory, of which a part would not do."""
    if stays(model):
        return False
    folder = root / local(model)
    if RunDirectory(folder).resolved.exists():
        why, fix = "run directories are not shipped", f"give its absolute path on the target, or {model}/model"
        raise BadInput(Problem(what=f"{model} is a run", where=by, why=why, fix=fix))
    return folder.exists() or not may_be_hub_id(model, root)


def _directories(content: Content) -> list[str]:
    return list(dict.fromkeys(_joined(stage.output_dir, stage.name) for stage in content.stages))


def _joined(output_dir: str, name: str) -> str:
    return f"{output_dir.rstrip('/')}/{name}"


def _digest(content: Content, package: Package, not_hashed: set[str], root: Path, *, fresh: bool) -> str:
    """Return a digest of what is computed: settings, contents of shipped files, and of others that this machine sees.

    Args:
        not_hashed: files of the package whose meaning is in the settings.
    """
    distinct = {json.dumps(resolved(config), sort_keys=True): config for config in content.stages}
    own: Any = None
    if isinstance(content.loaded, Comparison):
        own = content.loaded.config.model_dump(mode="json", exclude=NOT_IN_THE_ID)
    elif isinstance(content.loaded, Suite):
        own = [content.loaded.config.model_dump(mode="json"), content.command]
    body = {
        "stages": [[text, inputs_of(config, root)] for text, config in distinct.items()],
        "own": own,
        "files": {name: sha256 for name, sha256 in package.files.items() if name not in not_hashed},
        "fresh": fresh,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
