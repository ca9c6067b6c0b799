"""Conflicts between a method and its roles: critic, reference, teacher, losses and adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.config.conflicts.conflict import Conflict
from orchestrator.config.conflicts.data import reshaped
from workers.config import METHODS, DistillConfig, DpoConfig, PairsConfig, ReferenceConfig
from workers.config.pairs import PAIRS_OF_SAMPLES
from workers.config.preferences import LOSS_ARGUMENTS

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig


def roles(config: RunConfig) -> Iterator[Conflict]:
    kind, needs = config.algorithm.type, config.algorithm.needs
    for key in ("critic", "critic_model"):
        if getattr(config, key) is not None and not needs.critic:
            others = " or ".join(name for name, method in METHODS.items() if method.needs.critic)
            yield Conflict(
                keys=(key, "algorithm.type"),
                why=f"{kind} has no critic",
                fix=f"remove {key}, or choose {others} for algorithm.type",
            )
    if config.reference.refresh != "never" and not (needs.rounds and config.data.prompts is not None):
        yield Conflict(
            keys=("reference.refresh", "algorithm.type"),
            why="only DPO on its own samples (data.prompts) refreshes its reference",
            fix="set reference.refresh to never",
        )
    for role, learner in (("policy", config.policy), ("critic", config.critic)):
        if learner is not None and learner.offload_optimizer and learner.zero_stage == 0:
            yield Conflict(
                keys=(f"{role}.offload_optimizer", f"{role}.zero_stage"),
                why="only a partitioned optimizer can be offloaded",
                fix=f"set {role}.zero_stage to 1, 2 or 3",
            )


def lora(config: RunConfig) -> Iterator[Conflict]:
    settings, kind = config.model.lora, config.algorithm.type
    if settings is None or not settings.lora_dropout:
        return
    if config.algorithm.needs.on_policy:
        yield Conflict(
            keys=("model.lora.lora_dropout", "algorithm.type"),
            why=f"{kind} compares log-probabilities of the engine and the learner, and only the learner has dropout",
            fix="set model.lora.lora_dropout to 0.0",
        )
    elif config.algorithm.needs.reference:
        yield Conflict(
            keys=("model.lora.lora_dropout", "algorithm.type"),
            why=f"{kind} compares log-probabilities of the policy and the reference, and only the policy has dropout",
            fix="set model.lora.lora_dropout to 0.0",
        )


def pair_loss(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if not isinstance(algorithm, DpoConfig):
        return
    loss, defaults = algorithm.loss_type, type(algorithm).model_fields
    for name in dict.fromkeys(name for names in LOSS_ARGUMENTS.values() for name in names):
        if name in LOSS_ARGUMENTS[loss] or getattr(algorithm, name) == defaults[name].default:
            continue
        others = ", ".join(other for other, names in LOSS_ARGUMENTS.items() if name in names)
        yield Conflict(
            keys=(f"algorithm.{name}", "algorithm.loss_type"),
            why=f"the {loss} loss does not use {name}",
            fix=f"remove {name}, or choose a loss_type that uses it ({others})",
        )
    if not algorithm.needs_reference and config.reference != ReferenceConfig():
        yield Conflict(
            keys=("reference", "algorithm.loss_type"),
            why=f"the {loss} loss has no reference",
            fix="remove reference, or choose another loss_type",
        )


def pairs(config: RunConfig) -> Iterator[Conflict]:
    if not isinstance(config.algorithm, DpoConfig):
        return
    settings = config.algorithm.pairs
    changed = [name for name, field in PairsConfig.model_fields.items() if getattr(settings, name) != field.default]
    unused = {
        # setting → another one, whether the setting has no effect beside its value, and a value with which it has
        "quantile": ("selection", settings.selection != "quantile", "quantile"),
        "near_duplicate": ("duplicates", settings.duplicates == "keep", "drop"),
        "min_margin": ("gold", settings.gold == "chosen", "add"),
    }
    for name in changed:
        if config.data.dataset is not None and config.data.prompts is None and name in PAIRS_OF_SAMPLES:
            yield Conflict(
                keys=(f"algorithm.pairs.{name}", "data.dataset"),
                why="the pairs of a dataset are trained on as they are given",
                fix=f"remove {name}, or give data.prompts to make pairs of the policy's own samples",
            )
        if name in unused and unused[name][1]:
            other, _, value = unused[name]
            yield Conflict(
                keys=(f"algorithm.pairs.{name}", f"algorithm.pairs.{other}"),
                why=f"{name} has no effect with {other} {getattr(settings, other)}",
                fix=f"remove {name}, or set {other} to {value}",
            )
    if settings.gold == "chosen" and config.algorithm.soft_labels not in (None, "hard"):
        yield Conflict(
            keys=("algorithm.pairs.gold", "algorithm.soft_labels"),
            why="the gold answer is preferred whatever the scores, and soft labels are made of scores",
            fix="remove soft_labels, or set algorithm.pairs.gold to add",
        )


def teacher(config: RunConfig) -> Iterator[Conflict]:
    kind, needs = config.algorithm.type, config.algorithm.needs
    if needs.teacher and config.teacher is None:
        yield Conflict(
            keys=("teacher", "algorithm.type"),
            why=f"{kind} trains on the distributions of a teacher, and none is given",
            fix="add the teacher, for example `teacher: {model: {path: ./teacher}}`",
        )
    if not needs.teacher and config.teacher is not None:
        others = " or ".join(name for name, method in METHODS.items() if method.needs.teacher)
        yield Conflict(
            keys=("teacher", "algorithm.type"),
            why=f"{kind} has no teacher",
            fix=f"remove teacher, or choose {others} for algorithm.type",
        )


def distillation(config: RunConfig) -> Iterator[Conflict]:
    algorithm, rollout = config.algorithm, config.rollout
    if not isinstance(algorithm, DistillConfig):
        return
    if algorithm.sampler == "teacher":
        yield from _sampled_by_the_teacher(config, algorithm)
    if algorithm.objective != "policy_gradient":
        return
    if config.data.prompts is None:
        yield Conflict(
            keys=("algorithm.objective", "data.dataset"),
            why="the policy gradient needs tokens that the policy has sampled itself",
            fix="give data.prompts instead, or set algorithm.objective to divergence",
        )
        return
    if algorithm.beta != 1:
        yield Conflict(
            keys=("algorithm.objective", "algorithm.beta"),
            why=f"the policy gradient is that of the reverse KL (beta 1), and beta is {algorithm.beta:g}",
            fix="set algorithm.beta to 1.0, or algorithm.objective to divergence",
        )
    if algorithm.temperature != rollout.temperature:
        yield Conflict(
            keys=("algorithm.temperature", "rollout.temperature"),
            why="the policy gradient is only valid at the sampling temperature",
            fix=f"set algorithm.temperature to {rollout.temperature:g} too, or rollout.temperature to "
            f"{algorithm.temperature:g}",
        )
    for key, neutral in reshaped(config):
        yield Conflict(
            keys=(f"rollout.{key}", "algorithm.objective"),
            why="the policy gradient compares log-probabilities of the engine and the learner, over the whole "
            "vocabulary",
            fix=f"set rollout.{key} to {neutral}, or algorithm.objective to divergence",
        )


def _sampled_by_the_teacher(config: RunConfig, algorithm: DistillConfig) -> Iterator[Conflict]:
    if config.data.prompts is None:
        yield Conflict(
            keys=("algorithm.sampler", "data.dataset"),
            why="a dataset already has its completions",
            fix="give data.prompts instead, or remove sampler",
        )
    if algorithm.objective == "policy_gradient":
        yield Conflict(
            keys=("algorithm.sampler", "algorithm.objective"),
            why="the policy gradient needs tokens that the policy has sampled itself",
            fix="set algorithm.objective to divergence, or algorithm.sampler to policy",
        )
    for key in config.data.answered:
        if key != "prompts":
            yield Conflict(
                keys=("algorithm.sampler", f"data.{key}"),
                why="the engines hold the teacher, so the teacher would be evaluated",
                fix=f"remove data.{key}, and evaluate the model afterwards",
            )
