"""What can be known of a recipe's files without starting anything: models, data, rewards, directories."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config.recipe import Recipe
from orchestrator.config.run import ClusterConfig, RunConfig
from orchestrator.data.sources import is_hub_name, local
from orchestrator.data.tokens import TokenCounter
from orchestrator.errors import BadInput, Problems
from orchestrator.limits import long_sockets, ray_directory
from orchestrator.preflight.data_files import KEYS, Source, read_source, remarks, scored_rows, tokens_of
from orchestrator.preflight.model_files import config_of, read_json, tensors
from orchestrator.preflight.model_source import (
    apart_remark,
    check_family,
    check_parallel,
    check_positions,
    check_precision,
    check_same_tokens,
    check_scorer,
    check_stage,
    check_tokenizer,
    check_use,
    check_writer,
    unmeasured_remark,
)
from orchestrator.preflight.reward_source import check_reward_function, check_sandbox
from orchestrator.preflight.shadowing import refuse_shadows
from workers.config import CodeRewardConfig, FunctionRewardConfig, ModelConfig, ModelRewardConfig, RewardConfig
from workers.needs import NEEDS
from workers.vocabulary import first_difference, read_vocabulary

READ_WHOLLY_BYTES = 32 * 2**20  # larger files are looked at from the front; the run reads all
ROWS_LOOKED_AT = 5000
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
NOT_LINEAR = re.compile(r"embed|lm_head|wte|wpe|^score\b")
LFS_POINTER = b"version https://git-lfs.github.com/spec"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
REWARD_COLUMNS = {
    "math": {"solution_column": "the maths reward compares with it"},
    "code": {"tests_column": "the code reward runs programs against its tests"},
    "json_schema": {"schema_column": "the reward asks whether a completion is valid by it"},
}
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What was seen of one stage's data, and what is worth saying of it though it is no error."""

    rows: tuple[Rows, ...]
    remarks: tuple[str, ...]


def preflight(recipe: Recipe) -> dict[str, Seen]:
    """Looks at every file that the recipe names; by stage, what the local data sources hold.

    What an earlier stage will make is not demanded. Hub names are not looked up.

    Raises:
        BadInput: with everything that is missing or cannot be used.
    """
    problems = Problems()
    refuse_shadows(Path.cwd(), problems)
    found: dict[str, Seen] = {}
    for config in recipe.stages:
        tokens = tokens_of(_own_tokenizer(config.model.path, config, recipe), config.model.chat_template_kwargs)
        sources = {name: s for name in KEYS if (s := _data(config, name, tokens, problems))}
        rows = [_rows(source) for source in sources.values()]
        problems += scored_rows(config, sources)
        of_stage = Problems()
        _enough_rows(config, rows, of_stage)
        produced = {str(stage.model_directory): stage for stage in recipe.before(config)}
        _models(config, rows, produced, of_stage)
        if config.model.path is not None and config.model.path not in produced:
            _lora_targets(config.model, of_stage)
        if config.teacher is not None and config.teacher.model.path is not None:
            _same_tokenizer(config, recipe, config.teacher.model.path, of_stage)
        check_rewards(config.reward, config.cluster, rows, of_stage)
        if isinstance(config.evaluation.refusal, FunctionRewardConfig):
            function = config.evaluation.refusal.function
            judged = {r.source: r.columns for r in rows if r.key.endswith(("harmful", "benign"))}
            check_reward_function(function, f"evaluation.refusal.function = {function}", of_stage, judged)
        _output(config, of_stage)
        prefix = f"stages.{config.name}." if len(recipe.stages) > 1 else ""
        problems += [replace(problem, where=prefix + problem.where) for problem in of_stage]
        found[config.name] = Seen(
            rows=tuple(rows),
            remarks=(*remarks(config, sources), *filter(None, [apart_remark(config), unmeasured_remark(config)])),
        )
    unique = list(dict.fromkeys(problems))  # stages share files
    if unique:
        raise BadInput(unique)
    return found


def _data(config: RunConfig, name: str, tokens: TokenCounter | None, problems: Problems) -> Source | None:
    source: str | None = getattr(config.data, name)
    if source is None or is_hub_name(source) or local(source).is_dir():
        return None  # reading these may take a download
    path = local(source)
    whole = not path.is_file() or path.stat().st_size <= READ_WHOLLY_BYTES
    try:
        return read_source(config, name, tokens, max_rows=None if whole else ROWS_LOOKED_AT)
    except BadInput as error:
        problems.extend(error.problems)
        return None


def _rows(source: Source) -> Rows:
    first = source.prompts[0]
    return Rows(
        key=source.key,
        source=source.source,
        count=len(source.rows) + source.left_out,
        whole=source.whole,
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
        check_positions(config, key, _beginning(path, produced), where, problems)
        check_use(config, key, _beginning(path, produced), where, problems)
        if path in produced:
            if scores is not None:
                check_stage(produced[path], where, problems, scores=scores)
            continue
        check_model(path, where, conversational and key not in ("critic_model", "teacher.model"), problems)
        check_tokenizer(path, where, problems, writes=scores is False)
        check_family(path, where, problems)
        check_precision(path, where, problems)
        if key == "model" and config.data.prompts is not None:
            check_parallel(path, config.rollout.tensor_parallel_size, problems)
        if key == "critic_model" and config.model.path is not None:
            check_same_tokens(path, config.model.path, where, problems)
        if scores is not None:
            (check_scorer if scores else check_writer)(path, where, problems)


def _beginning(path: str, produced: Mapping[str, RunConfig]) -> str:
    """The model that a stage, and the stages before it, began with."""
    while path in produced and (before := produced[path].model.path) is not None:
        path = before
    return path


def _same_tokenizer(config: RunConfig, recipe: Recipe, teacher: str, problems: Problems) -> None:
    """Distributions are compared token by token. What cannot be read here is compared again when the gangs start."""

    def vocabulary(path: str | None) -> dict[str, int] | None:
        path = _own_tokenizer(path, config, recipe)
        return None if path is None else read_vocabulary(local(path))

    ours, theirs = vocabulary(config.model.path), vocabulary(teacher)
    if ours is None or theirs is None or not (difference := first_difference(ours, theirs)):
        return
    problems.add(
        f"another tokenizer than model.path = {config.model.path}",
        where=f"teacher.model.path = {teacher}",
        why=difference,
        fix="give a teacher of the same family; or sft on its completions, which needs no common tokenizer",
    )


def _own_tokenizer(path: str | None, config: RunConfig, recipe: Recipe) -> str | None:
    """Where the tokenizer of a model can be read: a stage hands on that of the model it began with."""
    for stage in reversed(recipe.before(config)):
        if path == str(stage.model_directory):
            path = stage.model.path
    return path


def may_be_of_the_hub(path: str) -> bool:
    """Whether a model that is no directory here may be one of the hub, by its name."""
    folder = local(path)
    looks_local = path.startswith((".", "/", "~")) or (len(folder.parts) > 1 and Path(folder.parts[0]).is_dir())
    return not folder.exists() and not looks_local and HUB_ID.fullmatch(path) is not None


def check_model(path: str, where: str, conversational: bool, problems: Problems) -> None:
    """A Hugging Face directory with config, weights and tokenizer; a hub id is taken at its word."""
    folder = local(path)
    fix = "give a Hugging Face model directory or the id of a hub model"
    if not folder.is_dir():
        if not may_be_of_the_hub(path):
            problems.add("no such directory", where=where, why=f"looked for {folder.absolute()}", fix=fix)
        return
    if not (folder / "config.json").is_file():
        problems.add("no config.json in it", where=where, why="it is not a Hugging Face model", fix=fix)
        return
    config = config_of(path)
    if config is not None and "model_type" not in config:
        why, fix = "transformers knows by it what to build", "copy the config.json that belongs to these weights"
        problems.add("its config.json has no model_type", where=where, why=why, fix=fix)
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
    # A weight with two dimensions that looks nothing up and is not the output layer's.
    layers = [
        name.removesuffix(".weight")
        for name, shape in tensors(model.path).items()
        if name.endswith(".weight") and len(shape) == 2 and not NOT_LINEAR.search(name)
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


def _starts_with(file: Path, start: bytes) -> bool:
    with open(file, "rb") as opened:
        return opened.read(len(start)) == start


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in CHAT_TEMPLATES):
        return True
    return bool((read_json(folder / "tokenizer_config.json") or {}).get("chat_template"))


def check_rewards(
    rewards: Sequence[RewardConfig], cluster: ClusterConfig, found: Sequence[Rows], problems: Problems
) -> None:
    """What the scorers of prompts need: their functions, their columns, a sandbox."""
    for i, reward in enumerate(rewards):
        if isinstance(reward, FunctionRewardConfig):
            columns = {rows.source: rows.columns for rows in found if rows.key.endswith("prompts")}
            check_reward_function(reward.function, f"reward.{i}.function = {reward.function}", problems, columns)
        for key, why in REWARD_COLUMNS.get(reward.type, {}).items():
            column = getattr(reward, key)
            for rows in found:
                if rows.key.endswith("prompts") and column not in rows.columns:
                    there = ", ".join(rows.columns) or "none"
                    problems.add(
                        f"{rows.source} has no column `{column}`",
                        where=f"reward.{i}",
                        why=f"{why}; the further columns are: {there}",
                        fix=f"add the column, or name another one as reward.{i}.{key}",
                    )
        # Of another cluster's machines nothing is known here: its reward workers ask when they start.
        if isinstance(reward, CodeRewardConfig) and cluster.address is None and "RAY_ADDRESS" not in os.environ:
            check_sandbox(reward, f"reward.{i}.type = code", problems)


def _output(config: RunConfig, problems: Problems) -> None:
    if config.cluster.address is None and "RAY_ADDRESS" not in os.environ:
        problems += long_sockets(ray_directory())
    folder = local(config.output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "is not a directory" if not existing.is_dir() else "cannot be written to"
        where = f"output_dir = {config.output_dir}"
        problems.add(f"{existing} {why}", where=where, fix="give a directory of your own as output_dir")
