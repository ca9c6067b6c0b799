"""Index of all setting keys, and suggestions for keys that do not exist.

The keys are read off the settings classes, starting at `root`: RunConfig, or the class of another file that is written
like a recipe. Spellings of other trainers are only used for suggestions, never accepted as aliases: one thing has one
name.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from orchestrator.config.document import KeyPath
from orchestrator.config.run import RunConfig

PEERS: Mapping[str, tuple[str, ...]] = {
    # spelling of TRL, OpenRLHF, verl, NeMo-RL, SkyRL → ours; the first that the algorithm has is suggested
    "actor_learning_rate": ("algorithm.learning_rate",),
    "actor_num_gpus_per_node": ("policy.num_ranks",),
    "batch_size": ("algorithm.batch_size", "algorithm.prompts_per_step"),
    "choose_type": ("algorithm.pairs.selection",),
    "clip_eps": ("algorithm.epsilon", "algorithm.cliprange"),
    "clip_range": ("algorithm.epsilon", "algorithm.cliprange"),
    "clip_ratio": ("algorithm.epsilon", "algorithm.cliprange"),
    "cliprange": ("algorithm.epsilon",),
    "dataset_name": ("data.dataset", "data.prompts"),
    "entity": ("wandb.entity",),
    "epsilon": ("algorithm.cliprange",),
    "eval_steps": ("evaluation.every",),
    "exp_name": ("name",),
    "experiment_name": ("name",),
    "gae_lambda": ("algorithm.lam",),
    "generate_max_len": ("rollout.max_completion_length",),
    "group_size": ("algorithm.num_generations",),
    "init_kl_coef": ("algorithm.kl_coef", "algorithm.beta"),
    "kl_beta": ("algorithm.beta", "algorithm.kl_coef"),
    "kl_coef": ("algorithm.beta",),
    "beta": ("algorithm.kl_coef",),
    "kl_loss_coef": ("algorithm.beta", "algorithm.kl_coef"),
    "lambd": ("algorithm.lam",),
    "lambda": ("algorithm.lam",),
    "len_penalty": ("algorithm.pairs.length_penalty",),
    "lora_alpha": ("model.lora.lora_alpha",),
    "lora_dropout": ("model.lora.lora_dropout",),
    "lora_r": ("model.lora.r",),
    "lora_rank": ("model.lora.r",),
    "lora_target_modules": ("model.lora.target_modules",),
    "load_best_model_at_end": ("export.round",),
    "lr": ("algorithm.learning_rate",),
    "lr_scheduler": ("algorithm.lr_scheduler_type",),
    "max_epochs": ("algorithm.num_train_epochs", "algorithm.num_ppo_epochs", "algorithm.num_iterations"),
    "max_len": ("rollout.max_prompt_length",),
    "max_new_tokens": ("rollout.max_completion_length",),
    "max_norm": ("algorithm.max_grad_norm",),
    "max_off_policy_steps": ("max_staleness",),
    "max_response_length": ("rollout.max_completion_length",),
    "max_staleness_steps": ("max_staleness",),
    "max_tokens": ("rollout.max_completion_length",),
    "max_trajectory_age_steps": ("max_staleness",),
    "metric_for_best_model": ("export.by",),
    "micro_batch_size": ("policy.tokens_per_micro_batch",),
    "micro_train_batch_size": ("policy.tokens_per_micro_batch",),
    "mini_batch_size": ("algorithm.num_mini_batches", "algorithm.batch_size"),
    "model_name_or_path": ("model.path",),
    "n_samples_per_prompt": ("algorithm.num_generations",),
    "nll_loss_coef": ("algorithm.sft_weight",),
    "num_episodes": ("algorithm.max_steps",),
    "num_epochs": ("algorithm.num_train_epochs", "algorithm.num_ppo_epochs", "algorithm.num_iterations"),
    "num_rounds": ("algorithm.max_steps",),
    "num_steps": ("algorithm.max_steps",),
    "pair_selection": ("algorithm.pairs.selection",),
    "pairs_per_prompt": ("algorithm.pairs.per_prompt",),
    "per_device_train_batch_size": ("algorithm.batch_size", "algorithm.prompts_per_step"),
    "ppo_epochs": ("algorithm.num_ppo_epochs", "algorithm.num_iterations"),
    "pref_beta": ("algorithm.beta",),
    "pref_ftx": ("algorithm.sft_weight",),
    "pref_loss": ("algorithm.loss_type",),
    "pretrain": ("model.path",),
    "prompt_data": ("data.prompts",),
    "prompt_max_len": ("rollout.max_prompt_length",),
    "ref_model_mixup_alpha": ("reference.ema_alpha",),
    "ref_model_sync_steps": ("reference.refresh",),
    "response_length": ("rollout.max_completion_length",),
    "reward_funcs": ("reward",),
    "reward_weights": ("reward",),
    "rewards": ("reward",),
    "rollout_batch_size": ("algorithm.prompts_per_step",),
    "rpo_alpha": ("algorithm.sft_weight",),
    "run_name": ("name",),
    "save_steps": ("checkpoint.every",),
    "save_total_limit": ("checkpoint.keep",),
    "sync_ref_model": ("reference.refresh",),
    "teacher_model": ("teacher.model.path",),
    "teacher_model_name_or_path": ("teacher.model.path",),
    "total_episodes": ("algorithm.max_steps",),
    "train_batch_size": ("algorithm.batch_size", "algorithm.prompts_per_step"),
    "vllm_gpu_memory_utilization": ("rollout.gpu_memory_utilization",),
    "vllm_num_engines": ("rollout.num_engines",),
    "vllm_tensor_parallel_size": ("rollout.tensor_parallel_size",),
    "zero_stage": ("policy.zero_stage",),
    "vllm_importance_sampling_cap": ("algorithm.vllm_importance_sampling_clip_max",),
}


NOT_HERE: Mapping[str, str] = dict.fromkeys(
    # keys of other trainers that have no counterpart here → fix
    ("reference.model", "ref_model", "ref_model_name_or_path"),
    "remove it: the reference is the model that the run starts from, or an earlier policy of the same run "
    "(reference.refresh); for another model with the same tokenizer give reference.path",
)


def members(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for argument in get_args(annotation) for part in members(argument)]
    return [annotation]


def item_of(annotation: Any) -> Any:
    """Return the annotation of the items of a list; None: the value is no list."""
    return next((get_args(member)[0] for member in members(annotation) if get_origin(member) is tuple), None)


def settings_in(annotation: Any) -> list[type[BaseModel]]:
    return [m for m in members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]


def type_of(settings: type[BaseModel]) -> str | None:
    """Return the `type:` that selects this class in a recipe; None: it is not a member of a union."""
    field = settings.model_fields.get("type")
    return str(get_args(field.annotation)[0]) if field and get_origin(field.annotation) is Literal else None


def settings_at(path: KeyPath, data: Any, root: type[BaseModel] = RunConfig) -> type[BaseModel] | None:
    """Return the settings class of the mapping at `path` of a recipe, selected by its `type:`; None: there is none."""
    settings = root
    for depth, key in enumerate(path):
        data = _child(data, key)
        if isinstance(key, int):
            continue  # reward.0: the class was found at `reward`, by the item's type
        annotation = settings.model_fields[key].annotation if key in settings.model_fields else None
        item = item_of(annotation)
        if item is not None and depth + 1 < len(path) and isinstance(path[depth + 1], int):
            annotation, data_below = item, _child(data, path[depth + 1])
        else:
            data_below = data
        candidates = settings_in(annotation)
        if len(candidates) > 1:
            chosen = data_below.get("type") if isinstance(data_below, Mapping) else None
            candidates = [s for s in candidates if type_of(s) == chosen]
        if not candidates:
            return None
        settings = candidates[0]
    return settings


def _child(data: Any, key: str | int) -> Any:
    try:
        return data[key]
    except (LookupError, TypeError):
        return None


def annotation_at(path: KeyPath, data: Any, root: type[BaseModel] = RunConfig) -> tuple[Any, list[Any]]:
    """Return the annotation of the value at `path` (None: there is no such key) and its constraints."""
    *parent, key = path
    if isinstance(key, int):
        annotation, _ = annotation_at(tuple(parent), data, root)
        lists = [member for member in members(annotation) if get_origin(member) is tuple]
        item = get_args(lists[0])[0] if lists else None
        return item, [limit for field in getattr(item, "__metadata__", ()) for limit in getattr(field, "metadata", ())]
    settings = settings_at(tuple(parent), data, root)
    field = settings.model_fields.get(key) if settings else None
    return (field.annotation, field.metadata) if field else (None, [])


def types_at(path: KeyPath, data: Any, root: type[BaseModel] = RunConfig) -> list[str]:
    """Return the choices for `type:` of the mapping at `path`."""
    annotation, _ = annotation_at(path, data, root)
    return [kind for settings in settings_in(annotation) if (kind := type_of(settings))]


@cache
def all_keys(root: type[BaseModel] = RunConfig) -> Mapping[str, frozenset[str]]:
    """Return every dotted key with the `type`s that have it; empty: it does not depend on a type."""
    index: dict[str, set[str]] = {}

    def walk(settings: type[BaseModel], prefix: str, kinds: set[str]) -> None:
        for key, field in settings.model_fields.items():
            index.setdefault(prefix + key, set()).update(kinds)
            item = item_of(field.annotation)
            for inner in [*settings_in(field.annotation), *settings_in(item)]:
                kind = type_of(inner)
                walk(inner, f"{prefix}{key}.", {kind} if kind else kinds)

    walk(root, "", set())
    return {key: frozenset(kinds) for key, kinds in index.items()}


def known_keys(algorithm: str | None, root: type[BaseModel] = RunConfig) -> Iterator[str]:
    """Yield the dotted keys that a recipe with this algorithm may use; None: with any."""
    for key, kinds in all_keys(root).items():
        if not key.startswith("algorithm.") or not kinds or algorithm is None or algorithm in kinds:
            yield key


def suggest(path: KeyPath, data: Any, root: type[BaseModel] = RunConfig) -> str:
    """Return the fix for a key that does not exist."""
    *parent, name = path
    key, prefix = str(name), "".join(f"{part}." for part in parent if not isinstance(part, int))
    if instead := NOT_HERE.get(prefix + key):
        return instead
    algorithm = _child(_child(data, "algorithm"), "type")
    known = list(known_keys(algorithm if isinstance(algorithm, str) else None, root))
    if peers := [ours for ours in PEERS.get(key.lower(), ()) if ours in known]:
        return f"did you mean `{peers[0]}`?"
    siblings = {k[len(prefix) :]: k for k in known if k.startswith(prefix) and "." not in k[len(prefix) :]}
    if nearly := difflib.get_close_matches(key, siblings, n=1, cutoff=0.9):
        return f"did you mean `{siblings[nearly[0]]}`?"
    if elsewhere := [k for k in known if k.rpartition(".")[2] == key]:
        return "it belongs under " + " or ".join(f"`{k.rpartition('.')[0] or 'the top level'}`" for k in elsewhere[:4])
    if close := difflib.get_close_matches(key, siblings, n=1, cutoff=0.65):
        return f"did you mean `{siblings[close[0]]}`?"
    if kinds := all_keys(root).get(prefix + key):
        return f"remove it: it is a setting of {' and '.join(sorted(kinds))}, not of {algorithm}"
    leaves = {k.rpartition(".")[2]: k for k in known}
    if close := difflib.get_close_matches(key, leaves, n=1, cutoff=0.75):
        return f"did you mean `{leaves[close[0]]}`?"
    return f"the keys here are: {', '.join(sorted(siblings))}" if siblings else "remove it"
