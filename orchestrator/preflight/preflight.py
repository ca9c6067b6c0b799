"""Check everything a recipe names without starting a process: models, data, rewards, directories."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config.constitution import read_constitution
from orchestrator.config.recipe import Recipe
from orchestrator.config.rounds import largest
from orchestrator.config.run import RunConfig
from orchestrator.data.sources import is_hub_name, local
from orchestrator.data.tokens import TokenCounter
from orchestrator.errors import BadInput, Problems
from orchestrator.limits import long_sockets, ray_directory
from orchestrator.preflight.data_files import (
    KEYS,
    problems_of_rows,
    read_source,
    remarks,
    tokens_of,
)
from orchestrator.preflight.model_directory import check_directory, check_lora_targets
from orchestrator.preflight.model_family import (
    check_family,
    check_precision,
    check_use,
    unmeasured_remark,
    unpacked_remark,
)
from orchestrator.preflight.model_source import (
    check_classifier,
    check_critic,
    check_parallel,
    check_positions,
    check_same_tokens,
    check_scorer,
    check_stage,
    check_tokenizer,
    check_writer,
    scores_of,
)
from orchestrator.preflight.reward_source import check_refusal, check_rewards
from orchestrator.preflight.shadowing import refuse_shadows
from orchestrator.preflight.source import Source, SourceSummary
from workers.config import ClassifierRewardConfig, GenerateConfig, ModelRewardConfig, ModelScorerConfig
from workers.vocabulary import first_difference, read_vocabulary

READ_WHOLLY_BYTES = 32 * 2**20  # of larger files only the first rows are read here; the run reads all
MAX_ROWS = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSummary:
    """Data sources of one stage, and remarks: findings that are not errors."""

    sources: tuple[SourceSummary, ...]
    remarks: tuple[str, ...]


def preflight(recipe: Recipe) -> dict[str, StageSummary]:
    """Check every file that the recipe names and return a summary per stage.

    Models that an earlier stage will write need not exist. Names of Hub models and datasets are not looked up.

    Raises:
        BadInput: with everything that is missing or cannot be used.
    """
    problems = Problems()
    refuse_shadows(Path.cwd(), problems)
    summaries: dict[str, StageSummary] = {}
    for config in recipe.stages:
        tokens = tokens_of(_own_tokenizer(config.model.path, config, recipe), config.model.chat_template_kwargs)
        produced = {str(artifact): stage for stage in recipe.before(config) for artifact in stage.artifacts}
        sources = {name: s for name in KEYS if (s := _data(config, name, produced, tokens, problems))}
        problems += problems_of_rows(config, sources)
        _check_constitution(config, problems)
        data = [source.summary() for source in sources.values()]
        of_stage = Problems()
        _check_counts(config, data, of_stage)
        _check_models(config, data, produced, of_stage)
        if config.model.path is not None and config.model.path not in produced:
            check_lora_targets(config.model, of_stage)
        if config.teacher is not None and config.teacher.model.path is not None:
            fix = "give a teacher of the same family, or use sft on its completions, which needs no common tokenizer"
            _check_same_tokenizer(config, recipe, "teacher.model.path", config.teacher.model.path, fix, of_stage)
        if config.reference.path is not None:
            fix = "give a model of the same family, or remove reference.path"
            _check_same_tokenizer(config, recipe, "reference.path", config.reference.path, fix, of_stage)
        check_rewards(config.reward, config.cluster, data, of_stage)
        judged = {s.source: s.columns for s in data if s.key.endswith(("harmful", "benign"))}
        check_refusal(config.evaluation.refusal, "evaluation.refusal", judged, of_stage)
        _check_output(config, of_stage)
        prefix = f"stages.{config.name}." if len(recipe.stages) > 1 else ""
        problems += [replace(problem, where=prefix + problem.where) for problem in of_stage]
        of_model = filter(None, [unpacked_remark(config), unmeasured_remark(config)])
        summaries[config.name] = StageSummary(sources=tuple(data), remarks=(*remarks(config, sources), *of_model))
    unique = list(dict.fromkeys(problems))  # stages share files
    if unique:
        raise BadInput(unique)
    return summaries


def _data(
    config: RunConfig,
    name: str,
    produced: Collection[str],
    tokens: TokenCounter | None,
    problems: Problems,
) -> Source | None:
    """Read a source of the run; None: there is none, it may need a download, or an earlier stage will write it."""
    sources = config.data.paths(name)
    if not sources or any(is_hub_name(source) or local(source).is_dir() or source in produced for source in sources):
        return None
    sizes = [path.stat().st_size for path in map(local, sources) if path.is_file()]
    is_small = max(sizes, default=0) <= READ_WHOLLY_BYTES
    try:
        return read_source(config, name, tokens, max_rows=None if is_small else MAX_ROWS)
    except BadInput as error:
        problems.extend(error.problems)
        return None


def _check_constitution(config: RunConfig, problems: Problems) -> None:
    own = config.algorithm
    if isinstance(own, GenerateConfig) and own.constitution is not None:
        try:
            read_constitution(own.constitution)
        except BadInput as error:
            problems.extend(error.problems)


def _check_counts(config: RunConfig, data: Sequence[SourceSummary], problems: Problems) -> None:
    """Check that every source has the rows of one batch: a batch takes each row at most once."""
    trains = config.algorithm.needs.trains
    for source in data:
        if not source.is_complete or source.key.startswith("data.eval_"):
            continue
        takes_what_is_there = config.rounds.mix.is_on if source.key == "data.dataset" else not trains
        if takes_what_is_there:  # a round mixes in, and the last step of generation samples, at most what there is
            continue
        key = "batch_size" if source.key == "data.dataset" else "prompts_per_step"
        wanted = getattr(largest(config).algorithm, key)
        if source.count < wanted:
            problems.add(
                f"{source.source} has {source.count} rows",
                where=source.key,
                why=f"algorithm.{key} = {wanted}, and a batch takes each row at most once",
                fix=f"give more rows, or set algorithm.{key} to at most {source.count}",
            )


def _check_models(
    config: RunConfig, data: Sequence[SourceSummary], produced: Mapping[str, RunConfig], problems: Problems
) -> None:
    """Check the models that the run starts from.

    Args:
        produced: stages by the directory of the model that they will write. Of these models only the kind is checked.
    """
    conversational = any(source.conversational for source in data)
    is_language_model = config.algorithm.needs.head != "scores"
    # key, path, and whether the model must score texts (True), write text (False), or may do either (None)
    models: list[tuple[str, str | None, bool | None]] = [
        ("model", config.model.path, False if is_language_model else None)
    ]
    models += [("critic_model", config.critic_model.path, None)] if config.critic_model else []
    models += [("teacher.model", config.teacher.model.path, False)] if config.teacher else []
    models += [("reference", config.reference.path, False)] if config.reference.path is not None else []
    scorers = [
        (i, r)
        for i, r in enumerate(config.reward)
        if isinstance(r, ModelScorerConfig) and not isinstance(r, ClassifierRewardConfig)
    ]
    models += [(f"reward.{i}", r.path, isinstance(r, ModelRewardConfig)) for i, r in scorers]
    labels = {f"reward.{i}": r.label for i, r in scorers if isinstance(r, ModelRewardConfig)}
    for key, path, scores in models:
        assert path is not None
        where = f"{key}.path = {path}"
        check_positions(config, key, _initial_model(path, produced), where, problems)
        check_use(config, key, _initial_model(path, produced), where, problems)
        if key == "critic_model":
            check_critic(produced[path].algorithm.labels if path in produced else scores_of(path), where, problems)
        if path in produced:
            if scores is not None:
                check_stage(produced[path], where, problems, scores=scores, label=labels.get(key))
            continue
        needs_template = conversational and key not in ("critic_model", "teacher.model", "reference")
        check_directory(path, where, problems, needs_template=needs_template)
        check_tokenizer(path, where, problems, writes=scores is False)
        check_family(path, where, problems)
        check_precision(path, where, problems)
        if key == "model" and config.data.prompts is not None:
            check_parallel(path, config.rollout.tensor_parallel_size, problems)
        if key == "critic_model" and config.model.path is not None:
            check_same_tokens(path, config.model.path, where, problems)
        if scores:
            check_scorer(path, where, problems, label=labels.get(key))
        elif scores is not None:
            check_writer(path, where, problems)
    for i, reward in enumerate(config.reward):
        if isinstance(reward, ClassifierRewardConfig):
            _check_classifier(config, reward, f"reward.{i}", produced, problems)


def _check_classifier(
    config: RunConfig, reward: ClassifierRewardConfig, key: str, produced: Mapping[str, RunConfig], problems: Problems
) -> None:
    """Check a text-classification model, of any family: it neither shares computation nor is trained."""
    assert reward.path is not None
    where = f"{key}.path = {reward.path}"
    if reward.path in produced:
        fix = "give path instead of from_stage; a reward model goes to `reward: [{type: model, from_stage: …}]`"
        problems.add("not a classifier", where=where, why="no stage trains a classifier", fix=fix)
        return
    check_positions(config, key, reward.path, where, problems)
    check_directory(reward.path, where, problems, needs_template=False)
    check_tokenizer(reward.path, where, problems, writes=False)
    check_precision(reward.path, where, problems)
    check_classifier(reward, where, problems)


def _initial_model(path: str, produced: Mapping[str, RunConfig]) -> str:
    """Return the model that a chain of stages started from, of which `path` is the last output."""
    while path in produced and (before := produced[path].model.path) is not None:
        path = before
    return path


def _check_same_tokenizer(
    config: RunConfig, recipe: Recipe, key: str, other: str, fix: str, problems: Problems
) -> None:
    """Check that the model at `other` has the policy's tokenizer: distributions are compared token by token.

    Tokenizers that cannot be read here are compared when the gangs start.
    """

    def vocabulary(path: str | None) -> dict[str, int] | None:
        path = _own_tokenizer(path, config, recipe)
        return None if path is None else read_vocabulary(local(path))

    ours, theirs = vocabulary(config.model.path), vocabulary(other)
    if ours is None or theirs is None or not (difference := first_difference(ours, theirs)):
        return
    problems.add(
        f"another tokenizer than model.path = {config.model.path}",
        where=f"{key} = {other}",
        why=difference,
        fix=fix,
    )


def _own_tokenizer(path: str | None, config: RunConfig, recipe: Recipe) -> str | None:
    """Return the directory with a model's tokenizer: that of an earlier stage's model is its initial model's."""
    for stage in reversed(recipe.before(config)):
        if path == str(stage.model_directory):  # of a stage that writes no model, nothing is named so
            path = stage.model.path
    return path


def _check_output(config: RunConfig, problems: Problems) -> None:
    if config.cluster.address is None and "RAY_ADDRESS" not in os.environ:
        problems += long_sockets(ray_directory())
    folder = local(config.output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "is not a directory" if not existing.is_dir() else "is not writable"
        where = f"output_dir = {config.output_dir}"
        problems.add(f"{existing} {why}", where=where, fix="set output_dir to a directory that you can write to")
