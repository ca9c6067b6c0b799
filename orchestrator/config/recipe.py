"""Load a recipe file as frozen runs: includes, overrides, names, validation. All problems are reported at once."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.config.document import Document, KeyPath, Location, dotted, read_document
from orchestrator.config.explain import explain
from orchestrator.config.overrides import Override, apply, parse_overrides
from orchestrator.config.run import RunConfig
from orchestrator.config.secrets import find_secrets
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problem, Problems
from workers.config import METHODS, GenerateConfig

MAX_STAGES = 32
REMOVED = (("reward_workers", "timeout_s"),)  # settings without effect that earlier versions wrote to resolved.json
NOT_IN_THE_ID = ("name", "output_dir", "storage", "cluster", "report_to", "wandb")  # they do not change the results
OF_EVERY_STAGE = (("output_dir",), ("storage",))
"""Keys that an override without a stage sets in every stage: a run's stages lie beside each other."""


class _UnreadableError(Exception):
    """Recipe of which a part cannot be read at all, so that checking the rest would only add noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Recipe as given, and its runs from first to last.

    Example: `load("configs/quickstart/grpo.yaml", ["seed=3"]).stages[-1].algorithm.type == "grpo"`.
    """

    source: Path
    text: str  # content of the file
    overrides: tuple[str, ...]
    stages: tuple[RunConfig, ...]

    def before(self, stage: RunConfig) -> tuple[RunConfig, ...]:
        """Return the stages that precede this one."""
        return self.stages[: self.stages.index(stage)]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe. Overrides apply to the last stage, `stages.NAME.a.b=c` to the named one, `output_dir` to all.

    Raises:
        BadInput: with all problems of the recipe and the overrides.
    """
    problems = Problems()
    source = Path(path)
    try:
        drafts = _drafts(source, problems, including=())
    except _UnreadableError:
        raise BadInput(problems) from None
    names = [str(d.data["name"]) for d in drafts if isinstance(d.data.get("name"), str)]
    for override in sorted(parse_overrides(overrides, names, problems), key=lambda each: each.stage is not None):
        for draft in _reached(override, drafts):
            apply(override, draft, problems)
    stages: list[RunConfig] = []
    for draft in drafts:
        find_secrets(draft, problems)
        _resolve_stages(draft, drafts, stages, problems)
        _give_name(draft, stages)
        if config := _validated(draft, problems):
            _refuse_same_name(config, stages, draft, problems)
            stages.append(config)
    problems.sort(key=reading_order)
    problems.raise_if_any()
    return Recipe(source=source, text=source.read_text("utf-8"), overrides=tuple(overrides), stages=tuple(stages))


def _reached(override: Override, drafts: Sequence[Document]) -> Sequence[Document]:
    """Return the stages that an override reaches."""
    if override.stage is not None:
        return [next(draft for draft in drafts if draft.data.get("name") == override.stage)]
    return drafts if override.path in OF_EVERY_STAGE else drafts[-1:]


def stages_as_written(path: Path) -> list[dict[str, Any]]:
    """Return the settings of each stage as the recipe gives them; none if it cannot be read, as `load` would say."""
    try:
        return [draft.data for draft in _drafts(path, Problems(), including=())]
    except _UnreadableError:
        return []


def recipe_files(path: Path) -> list[Path]:
    """Return a recipe that `load` accepts, and the recipes that it includes, directly or not."""
    document = read_document(path, Problems())
    stages = document.data.get("stages", []) if document is not None and isinstance(document.data, dict) else []
    included = [path.parent / local(stage["recipe"]) for stage in stages if "recipe" in stage]
    return [path, *(file for other in included for file in recipe_files(other))]


def resolved(config: RunConfig) -> dict[str, Any]:
    """Return the config with all defaults, as plain JSON values. Equal configs give equal dicts."""
    return config.model_dump(mode="json")


def from_resolved(data: Any, where: str) -> RunConfig:
    """Return the config of a resolved dict; the inverse of `resolved`, for a run that is resumed.

    Raises:
        BadInput: if the file has been edited and is no longer valid.
    """
    problems = Problems()
    for section, key in REMOVED if isinstance(data, dict) else ():
        if isinstance(values := data.get(section), dict):
            data = {**data, section: {name: value for name, value in values.items() if name != key}}
    config = _validated(Document(data=data, places={(): Location(text=where)}), problems)
    problems.raise_if_any()
    assert config is not None
    return config


def _drafts(path: Path, problems: Problems, including: tuple[Path, ...]) -> list[Document]:
    """Return one document per stage, following includes."""
    document = read_document(path, problems)
    if document is None:
        raise _UnreadableError
    if not isinstance(document.data, dict) or not document.data:
        state = "is empty" if not document.data else f"is {_kind(document.data)}"
        problems.add(f"the recipe {state}", where=str(path), why="a recipe is a mapping of keys", fix=_SMALLEST)
        raise _UnreadableError
    if "stages" not in document.data:
        return [document]
    entries = document.data["stages"]
    if extra := [key for key in document.data if key != "stages"]:
        where, fix = document.place((extra[0],)).text, "move them into a stage"
        problems.add(f"{', '.join(extra)} beside stages", where=where, why="each stage is a run of its own", fix=fix)
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_STAGES:
        where = document.place(("stages",)).text
        problems.add(
            "stages",
            where=where,
            why=f"not a list of 1 to {MAX_STAGES} runs",
            fix="write `- {recipe: other.yaml}` items",
        )
        raise _UnreadableError
    stages = [_stage(document, i, path, problems, including) for i in range(len(entries))]
    return [draft for drafts in stages for draft in drafts]


def _stage(
    document: Document, index: int, path: Path, problems: Problems, including: tuple[Path, ...]
) -> list[Document]:
    """Return the inline run of an entry, or the runs of the recipe that it includes."""
    entry, where = document.data["stages"][index], document.place(("stages", index)).text
    if not isinstance(entry, dict) or not entry:
        problems.add(f"stages.{index} is {_kind(entry)}", where=where, fix="write a run, or `{recipe: other.yaml}`")
        raise _UnreadableError
    if "recipe" not in entry:
        prefix = ("stages", index)
        places = {key[2:]: place for key, place in document.places.items() if key[:2] == prefix}
        return [Document(data=entry, places=places)]
    if len(entry) > 1 or not isinstance(entry["recipe"], str):
        why = "`recipe` names a file and allows no other keys"
        fix = "override settings of an included stage on the command line: stages.NAME.key=value"
        problems.add(f"stages.{index}", where=where, why=why, fix=fix)
        raise _UnreadableError
    included = path.parent / local(entry["recipe"])
    chain = (*including, path.resolve())
    if included.resolve() in chain:
        problems.add(f"recipe = {entry['recipe']}", where=where, why="it includes itself", fix="remove the cycle")
        raise _UnreadableError
    return _drafts(included, problems, chain)


_SMALLEST = "see configs/quickstart/grpo.yaml; a run needs at least model, data and algorithm"


def _kind(value: Any) -> str:
    return {list: "a list", dict: "an empty mapping", type(None): "empty"}.get(type(value), "a single value")


def _resolve_stages(draft: Document, drafts: Sequence[Document], done: Sequence[RunConfig], problems: Problems) -> None:
    """Replace every `from_stage` by the path of the earlier stage's model, or of its data set."""
    rewards = draft.data.get("reward")
    listed = [("reward", i) for i in range(len(rewards))] if isinstance(rewards, list) else []
    for at in (("model",), ("critic_model",), ("teacher", "model"), *listed):
        owner = _at(draft.data, at[:-1])
        model = _at(owner, at[-1:])
        wanted = model.get("from_stage") if isinstance(model, dict) else None
        if isinstance(wanted, str) and model.get("path") is None:
            others = {k: v for k, v in model.items() if k != "from_stage"}
            owner[at[-1]] = {**others, "path": _stage_artifact(wanted, at, "path", draft, drafts, done, problems)}
    for place, key in ((("data",), "dataset"), *((source, "path") for source in _sources(draft))):
        owner, data = _at(draft.data, place[:-1]), _at(draft.data, place)
        wanted = data.get("from_stage") if isinstance(data, dict) else None
        if isinstance(wanted, str) and data.get(key) is None:
            others = {k: v for k, v in data.items() if k != "from_stage"}
            source = _stage_artifact(wanted, place, key, draft, drafts, done, problems, is_data=True)
            owner[place[-1]] = {**others, key: source}


def _sources(draft: Document) -> Iterator[KeyPath]:
    """Yield the places of the sources of rows that may be data sets of earlier stages."""
    yield ("data", "prompts")
    for key in ("prompts", "dataset"):
        given = _at(draft.data, ("data", key))
        yield from (("data", key, i) for i in range(len(given))) if isinstance(given, list) else ()


def _at(tree: Any, path: Sequence[str | int]) -> Any:
    """Return the value at `path` of a tree; None: there is none."""
    for key in path:
        if isinstance(tree, list) and isinstance(key, int):
            tree = tree[key]
        elif isinstance(tree, dict):
            tree = tree.get(key)
        else:
            return None
    return tree


def _stage_artifact(
    wanted: str,
    at: KeyPath,
    key: str,
    draft: Document,
    drafts: Sequence[Document],
    done: Sequence[RunConfig],
    problems: Problems,
    *,
    is_data: bool = False,
) -> str:
    """Return the model or data set of the earlier stage `wanted`, which the mapping at `at` names, for its `key`."""
    written = draft.place((*at, "from_stage"))
    if earlier := next((stage for stage in done if stage.name == wanted), None):
        draft.places[(*at, key)] = written
        if earlier.algorithm.needs.trains == is_data:
            is_model = earlier.algorithm.needs.trains
            what = f"{dotted(at)}.from_stage = {wanted}"
            why = f"that stage ({earlier.algorithm.type}) writes a {'model' if is_model else 'data set'}"
            where = "a model, an adapter or a reward of `from_stage`" if is_model else "`data: {from_stage: …}`"
            problems.add(what, where=written.text, why=why, fix=f"name it in {where}")
        elif isinstance(earlier.algorithm, GenerateConfig):
            if wrong := _wrong_rows(draft, at, earlier.algorithm.rows):
                what = f"{dotted(at)}.from_stage = {wanted}"
                problems.add(what, where=written.text, why=f"that stage has rows {earlier.algorithm.rows}", fix=wrong)
            return str(_data_of(earlier, draft, at))
        return str(earlier.artifact)
    before = drafts[: next(i for i, d in enumerate(drafts) if d is draft)]
    names = [str(d.data["name"]) for d in before if "name" in d.data]
    if wanted not in names:  # else that stage is invalid itself
        close = difflib.get_close_matches(wanted, names, n=1)
        fix = f"did you mean {close[0]}? " if close else ""
        fix += (
            f"the earlier stages are: {', '.join(names)}"
            if names
            else f"there is no earlier stage: give {dotted(at)}.{key} instead"
        )
        why = "no earlier stage has this name"
        problems.add(f"{dotted(at)}.from_stage = {wanted}", where=written.text, why=why, fix=fix)
    return wanted


def _wrong_rows(draft: Document, at: KeyPath, rows: str) -> str:
    """Return how to mend a stage that cannot use `rows`, the form of another stage's rows; empty: it can."""
    if at[:2] != ("data", "prompts"):
        return "name the stage that revises after these critiques" if rows == "critique" else ""
    own = _at(draft.data, ("algorithm", "rows"))
    if own == "critique" and rows not in ("completion", "revision"):
        return "criticise the answers of a stage with rows completion or revision"
    if (own == "revision") != (rows == "critique"):
        return "name the data set of a stage with rows critique where rows is revision, and only there"
    return ""


def _data_of(earlier: RunConfig, draft: Document, at: KeyPath) -> Path:
    """Return the file of an earlier stage's data set that is read at `at`: of revisions, the pairs or all rows."""
    method = METHODS.get(str(_at(draft.data, ("algorithm", "type"))))
    wants_pairs = at[:2] != ("data", "prompts") and method is not None and method.needs.dataset == "pairs"
    return earlier.pairs_file if wants_pairs and earlier.pairs_file in earlier.artifacts else earlier.data_file


def _give_name(draft: Document, done: Sequence[RunConfig]) -> None:
    """Name an unnamed run `ALGORITHM--MODEL--ID`; the ID is a hash of the settings that change what is computed.

    The directory of the earlier stages `done` does not change it.
    """
    if draft.data.get("name") is not None:
        return
    algorithm, model = draft.data.get("algorithm"), draft.data.get("model")
    kind = algorithm.get("type") if isinstance(algorithm, dict) else None
    path = model.get("path") if isinstance(model, dict) else None
    parts = [part for part in re.split(r"[/\\]", str(path or "model")) if part]
    base = (parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]) if parts else "model"
    content = {key: value for key, value in draft.data.items() if key not in NOT_IN_THE_ID}
    text = json.dumps(content, sort_keys=True, default=str)
    for stage in done:
        for artifact in stage.artifacts:
            written = artifact.relative_to(stage.directory)
            text = text.replace(json.dumps(str(artifact)), json.dumps(f"runs/{stage.name}/{written}"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    words = [re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-._") or "x" for word in (str(kind or "run"), base)]
    draft.data = {
        "name": f"{words[0][:12]}--{words[1][:40]}--{digest}",
        **{k: v for k, v in draft.data.items() if k != "name"},
    }


def _validated(draft: Document, problems: Problems) -> RunConfig | None:
    try:
        return RunConfig.model_validate_json(json.dumps(draft.data))  # JSON: strict, and lists stand for tuples
    except ValidationError as error:
        explain(error, draft, problems)
        return None


def _refuse_same_name(config: RunConfig, stages: Sequence[RunConfig], draft: Document, problems: Problems) -> None:
    if any(stage.directory == config.directory for stage in stages):
        why = "an earlier stage has this name, and runs cannot share a directory"
        problems.add(
            f"name = {config.name}",
            where=draft.place(("name",)).text,
            why=why,
            fix="give each stage its own name",
        )


def reading_order(problem: Problem) -> tuple[bool, str, int]:
    """Return a sort key: the order of lines in the file; problems without a line come last."""
    file, _, line = problem.where.rpartition(":")
    return not line.isdigit(), file, int(line) if line.isdigit() else 0
