"""What can be known of a recipe's files without starting anything: models, data, rewards, directories."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.config.model_source import check_same_tokens, check_scorer, check_stage, check_writer
from orchestrator.config.recipe import Recipe
from orchestrator.config.reward_source import check_reward_function
from orchestrator.config.run import RunConfig
from orchestrator.data import read_examples, read_prompts
from orchestrator.data.sources import is_hub_name
from orchestrator.errors import BadInput, Problems
from workers.config import FunctionRewardConfig, MathRewardConfig, ModelConfig, ModelRewardConfig
from workers.needs import NEEDS
from workers.types import Example, Prompt
from workers.vocabulary import first_difference, read_vocabulary

READ_WHOLLY_BYTES = 32 * 2**20  # larger files are looked at from the front; the run reads all
ROWS_LOOKED_AT = 5000
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
NOT_LINEAR = re.compile(r"embed|lm_head|wte|wpe|^score\b")
HEADER_BYTES = 100 * 2**20  # safetensors' own limit
LFS_POINTER = b"version https://git-lfs.github.com/spec"
DATA = ("prompts", "dataset", "eval_prompts", "eval_dataset")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What was seen of one data source. `whole` is False when only the beginning was looked at."""

    key: str  # "data.prompts"
    source: str
    count: int
    whole: bool
    conversational: bool
    columns: tuple[str, ...]  # beside the prompt and its completions


def preflight(recipe: Recipe) -> dict[str, tuple[Rows, ...]]:
    """Looks at every file that the recipe names; by stage, what the local data sources hold.

    What an earlier stage will make is not demanded. Hub names are not looked up.

    Raises:
        BadInput: with everything that is missing or cannot be used.
    """
    problems = Problems()
    found: dict[str, tuple[Rows, ...]] = {}
    for config in recipe.stages:
        rows = [r for key in DATA if (r := _data(config, key, problems))]
        of_stage = Problems()
        _enough_rows(config, rows, of_stage)
        produced = {str(stage.model_directory): stage for stage in recipe.before(config)}
        _models(config, rows, produced, of_stage)
        if config.model.path is not None and config.model.path not in produced:
            _lora_targets(config.model, of_stage)
        if config.teacher is not None and config.teacher.model.path is not None:
            _same_tokenizer(config, recipe, config.teacher.model.path, of_stage)
        _rewards(config, rows, of_stage)
        _output(config, of_stage)
        prefix = f"stages.{config.name}." if len(recipe.stages) > 1 else ""
        problems += [replace(problem, where=prefix + problem.where) for problem in of_stage]
        found[config.name] = tuple(rows)
    unique = list(dict.fromkeys(problems))  # stages share files
    if unique:
        raise BadInput(unique)
    return found


def _data(config: RunConfig, name: str, problems: Problems) -> Rows | None:
    source: str | None = getattr(config.data, name)
    if source is None or is_hub_name(source) or Path(source).is_dir():
        return None  # reading these may take a download
    path = Path(source).expanduser()
    whole = not path.is_file() or path.stat().st_size <= READ_WHOLLY_BYTES
    max_rows = None if whole else ROWS_LOOKED_AT
    rows: Sequence[Prompt | Example]
    try:
        if name in ("dataset", "eval_dataset"):
            rows = read_examples(source, algorithm=config.algorithm.type, max_rows=max_rows)
        else:
            rows = read_prompts(source, max_rows=max_rows)
    except BadInput as error:
        problems.extend(error.problems)
        return None
    first = rows[0].prompt if isinstance(rows[0], Example) else rows[0]
    return Rows(
        key=f"data.{name}",
        source=source,
        count=len(rows),
        whole=whole,
        conversational=not isinstance(first.text, str),
        columns=tuple(first.columns),
    )


def _enough_rows(config: RunConfig, found: Sequence[Rows], problems: Problems) -> None:
    """A batch takes every row at most once."""
    for rows in found:
        if not rows.whole or rows.key.startswith("data.eval_"):
            continue
        key = "batch_size" if rows.key == "data.dataset" else "prompts_per_step"
        wanted = getattr(config.algorithm, key)
        if rows.count < wanted:
            problems.add(
                f"{rows.source} has {rows.count} rows",
                where=rows.key,
                why=f"algorithm.{key} = {wanted}, and a batch takes every row at most once",
                fix=f"give more rows, or set algorithm.{key} to at most {rows.count}",
            )


def _models(config: RunConfig, rows: Sequence[Rows], produced: Mapping[str, RunConfig], problems: Problems) -> None:
    """The models that the run starts from; those that an earlier stage will have made are only asked for their kind."""
    conversational = any(r.conversational for r in rows)
    writes = NEEDS[config.algorithm.type].head != "scores"
    named: list[tuple[str, str | None, bool | None]] = [("model", config.model.path, False if writes else None)]
    named += [("critic_model", config.critic_model.path, None)] if config.critic_model else []
    named += [("teacher.model", config.teacher.model.path, False)] if config.teacher else []
    scorers = [(i, r) for i, r in enumerate(config.reward) if isinstance(r, ModelRewardConfig)]
    named += [(f"reward.{i}", r.path, True) for i, r in scorers]
    for key, path, scores in named:  # None: of either kind
        assert path is not None
        where = f"{key}.path = {path}"
        if path in produced:
            if scores is not None:
                check_stage(produced[path], where, problems, scores=scores)
            continue
        _model(path, where, conversational and key not in ("critic_model", "teacher.model"), problems)
        if key == "critic_model" and config.model.path is not None:
            check_same_tokens(path, config.model.path, where, problems)
        if scores is not None:
            (check_scorer if scores else check_writer)(path, where, problems)


def _same_tokenizer(config: RunConfig, recipe: Recipe, teacher: str, problems: Problems) -> None:
    """Distributions are compared token by token. What cannot be read here is compared again when the gangs start."""

    def vocabulary(path: str | None) -> dict[str, int] | None:
        for stage in reversed(recipe.before(config)):
            if path == str(stage.model_directory):  # a stage hands on the tokenizer of the model it began with
                path = stage.model.path
        return None if path is None else read_vocabulary(Path(path).expanduser())

    ours, theirs = vocabulary(config.model.path), vocabulary(teacher)
    if ours is None or theirs is None or not (difference := first_difference(ours, theirs)):
        return
    problems.add(
        f"another tokenizer than model.path = {config.model.path}",
        where=f"teacher.model.path = {teacher}",
        why=difference,
        fix="give a teacher of the same family; or sft on its completions, which needs no common tokenizer",
    )


def _model(path: str, where: str, conversational: bool, problems: Problems) -> None:
    """A Hugging Face directory with config, weights and tokenizer; a hub id is taken at its word."""
    folder = Path(path).expanduser()
    fix = "give a Hugging Face model directory or the id of a hub model"
    if not folder.is_dir():
        looks_local = path.startswith((".", "/", "~")) or (len(folder.parts) > 1 and Path(folder.parts[0]).is_dir())
        if folder.exists() or looks_local or not HUB_ID.fullmatch(path):
            problems.add("no such directory", where=where, why=f"looked for {folder.absolute()}", fix=fix)
        return
    if not (folder / "config.json").is_file():
        problems.add("no config.json in it", where=where, why="it is not a Hugging Face model", fix=fix)
        return
    weights = [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
    pointers = [file.name for file in weights if _starts_with(file, LFS_POINTER)]
    if not weights:
        problems.add("no weights in it", where=where, why="no *.safetensors file", fix="copy the whole model")
    if pointers:
        why = f"{pointers[0]} is a Git LFS pointer, not the file itself"
        problems.add("no weights in it", where=where, why=why, fix=f"git lfs pull, in {path}")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        problems.add("no tokenizer in it", where=where, fix="save the tokenizer beside the model: save_pretrained")
    elif conversational and not _has_chat_template(folder):
        why = "the data are conversations, and the tokenizer does not say how to write one as text"
        fix = "put a chat_template.jinja into the model directory, or use prompts that are plain text"
        problems.add("no chat template in it", where=where, why=why, fix=fix)


def _lora_targets(model: ModelConfig, problems: Problems) -> None:
    """Every name in `target_modules` must be that of a linear layer, as far as a local model's files tell."""
    if model.lora is None or model.lora.target_modules == "all-linear":
        return
    assert model.path is not None
    files = sorted(Path(model.path).expanduser().glob("*.safetensors"))
    # A weight with two dimensions that looks nothing up and is not the output layer's.
    layers = [
        name.removesuffix(".weight")
        for file in files
        for name, about in _tensors(file).items()
        if name.endswith(".weight") and len(about.get("shape", ())) == 2 and not NOT_LINEAR.search(name)
    ]
    there = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
    for target in model.lora.target_modules if layers else ():
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            problems.add(
                f"`{target}` is no linear layer of {model.path}",
                where="model.lora.target_modules",
                why=f"adapters go into its decoder's linear layers: {there}",
                fix="name one of these, or set model.lora.target_modules to all-linear",
            )


def _tensors(file: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file; empty where it has none that can be read."""
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if not 0 < size <= HEADER_BYTES:
            return {}
        try:
            header = json.loads(opened.read(size))
        except ValueError:
            return {}
    return {name: about for name, about in header.items() if isinstance(about, dict)}


def _starts_with(file: Path, start: bytes) -> bool:
    with open(file, "rb") as opened:
        return opened.read(len(start)) == start


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in CHAT_TEMPLATES):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text("utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _rewards(config: RunConfig, found: Sequence[Rows], problems: Problems) -> None:
    for i, reward in enumerate(config.reward):
        if isinstance(reward, FunctionRewardConfig):
            check_reward_function(reward.function, f"reward.{i}.function = {reward.function}", problems)
        if isinstance(reward, MathRewardConfig):
            for rows in found:
                if rows.key.endswith("prompts") and reward.solution_column not in rows.columns:
                    there = ", ".join(rows.columns) or "none"
                    problems.add(
                        f"{rows.source} has no column `{reward.solution_column}`",
                        where=f"reward.{i}",
                        why=f"the maths reward compares with it; the further columns are: {there}",
                        fix=f"add the column, or name another one as reward.{i}.solution_column",
                    )


def _output(config: RunConfig, problems: Problems) -> None:
    folder = Path(config.output_dir).expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "is not a directory" if not existing.is_dir() else "cannot be written to"
        where = f"output_dir = {config.output_dir}"
        problems.add(f"{existing} {why}", where=where, fix="give a directory of your own as output_dir")
