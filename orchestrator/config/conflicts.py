"""Settings that are legal alone, not together. Each conflict names its keys, the reason and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.config import DistillConfig, DpoConfig, GrpoConfig, PolicyGradient, PpoConfig, ReferenceConfig, Sampled
from workers.config.preferences import LOSS_ARGUMENTS
from workers.needs import NEEDS

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Example: `Conflict(keys=("critic",), why="grpo has no critic", fix="remove critic")`."""

    keys: tuple[str, ...]  # dotted; the first is where the problem is shown
    why: str
    fix: str


class ConflictsError(ValueError):
    """All conflicts of one config."""

    def __init__(self, found: Sequence[Conflict]) -> None:
        self.found = tuple(found)
        super().__init__("; ".join(f"{', '.join(c.keys)}: {c.why} ({c.fix})" for c in found))


def conflicts(config: RunConfig) -> list[Conflict]:
    return [conflict for rule in RULES for conflict in rule(config)]


def _samples(config: RunConfig) -> bool:
    """Whether the run learns from its own samples."""
    return config.data.prompts is not None and NEEDS[config.algorithm.type].prompts


def _data_source(config: RunConfig) -> Iterator[Conflict]:
    kind, data = config.algorithm.type, config.data
    fitting = [key for key in ("prompts", "dataset") if getattr(NEEDS[kind], key)]
    wanted = " or ".join(f"data.{key}" for key in fitting)
    if (data.prompts is None) == (data.dataset is None):
        both = data.prompts is not None
        yield Conflict(
            keys=("data.prompts", "data.dataset"),
            why="both are given, a run learns from one" if both else "neither is given: nothing to learn from",
            fix=f"for {kind} give {wanted}" + (" and set the other to null" if both else ""),
        )
        return
    given = "prompts" if data.prompts is not None else "dataset"
    if given not in fitting:
        own_samples = "its own samples of prompts" if given == "dataset" else "the completions of a dataset"
        others = " or ".join(name for name, needs in NEEDS.items() if getattr(needs, given))
        yield Conflict(
            keys=(f"data.{given}", "algorithm.type"),
            why=f"{kind} learns from {own_samples}",
            fix=f"give {wanted} instead, or choose {others} for algorithm.type",
        )


def _reward(config: RunConfig) -> Iterator[Conflict]:
    taught = NEEDS[config.algorithm.type].teacher  # what says how good a sample is: a reward would only be looked at
    used_by = ["data.prompts"] if _samples(config) and not taught else []
    used_by += ["data.eval_prompts"] if config.data.eval_prompts is not None else []
    looked_at = [f"data.{key}" for key in config.data.answered if key != "prompts"]
    if NEEDS[config.algorithm.type].head == "scores" and looked_at:
        yield Conflict(
            keys=(*looked_at, "algorithm.type"),
            why="a reward model answers no prompts",
            fix="give held-out preferences as data.eval_dataset instead",
        )
        return
    if used_by and not config.reward:
        yield Conflict(
            keys=("reward", *used_by),
            why="completions are sampled for these prompts and nothing says how good they are",
            fix="add a reward, for example `reward: [{type: math}]`",
        )


def _steps(config: RunConfig) -> Iterator[Conflict]:
    max_steps = config.algorithm.max_steps
    if _samples(config) and max_steps is None:
        yield Conflict(
            keys=("algorithm.max_steps",),
            why="prompts can be sampled for ever, so the run would have no end",
            fix="give the number of steps (iterative DPO: of rounds), for example `max_steps: 100`",
        )
    every = config.checkpoint.every
    if max_steps is not None and every is not None and every > max_steps:
        yield Conflict(
            keys=("checkpoint.every", "algorithm.max_steps"),
            why="nothing would be saved before the end",
            fix=f"give checkpoint.every a value from 1 to {max_steps}",
        )
    yield from _evaluation(config)


def _evaluation(config: RunConfig) -> Iterator[Conflict]:
    """Held-out pairs are for a reward model, which answers no prompts, and for DPO on a dataset."""
    kind, data = config.algorithm.type, config.data
    scores = NEEDS[kind].head == "scores"
    held_out = {*data.answered} - {"prompts"} or data.eval_dataset is not None
    if config.evaluation.num_samples and data.eval_prompts is None:
        yield Conflict(
            keys=("evaluation.num_samples", "data.eval_prompts"),
            why="there are no prompts to answer",
            fix="give data.eval_prompts, or remove evaluation.num_samples",
        )
    if config.evaluation.every is not None and not held_out:
        pairs, rows = kind == "dpo" and data.dataset is not None, "data.eval_dataset"
        wanted = rows if scores else "data.eval_prompts"
        either = f"{rows} (pairs), data.eval_prompts with a reward" if pairs else wanted
        yield Conflict(
            keys=("evaluation.every", rows if pairs else wanted),
            why="there is nothing to evaluate on",
            fix=f"give {either}, or remove evaluation.every",
        )
    if data.eval_dataset is not None and not (scores or (kind == "dpo" and data.dataset is not None)):
        yield Conflict(
            keys=("data.eval_dataset", "algorithm.type"),
            why="only a reward model, and DPO on a dataset, are evaluated on preferences",
            fix="give data.eval_prompts instead, or learn from data.dataset with reward_model or dpo",
        )


def _batches(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if not _samples(config) or not isinstance(algorithm, Sampled):
        return
    if config.rollout.num_engines > algorithm.prompts_per_step:
        yield Conflict(
            keys=("rollout.num_engines", "algorithm.prompts_per_step"),
            why="a prompt's group is sampled by one engine, so some engines would have nothing to do",
            fix=f"use at most {algorithm.prompts_per_step} engines, or more prompts per step",
        )
    if not isinstance(algorithm, PolicyGradient | DistillConfig):
        return
    groups = not isinstance(algorithm, PpoConfig)  # a group is of one update; PPO's rows are single completions
    rows = algorithm.prompts_per_step * (1 if groups else algorithm.num_generations)
    if rows % algorithm.num_mini_batches:
        factors = (
            "groups (prompts_per_step)"
            if groups
            else (
                f"completions (prompts_per_step {algorithm.prompts_per_step} × num_generations "
                f"{algorithm.num_generations})"
            )
        )
        keys = ("algorithm.num_mini_batches", "algorithm.prompts_per_step", "algorithm.num_generations")
        yield Conflict(
            keys=keys[:2] if groups else keys,
            why=f"{rows} {factors} cannot be cut into {algorithm.num_mini_batches} equal mini-batches",
            fix=f"num_mini_batches: {_nearest_divisors(rows, algorithm.num_mini_batches)}",
        )


def _nearest_divisors(number: int, wanted: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below, above = [d for d in divisors if d < wanted][-1:], [d for d in divisors if d > wanted][:1]
    return " or ".join(str(d) for d in below + above)


def _lengths(config: RunConfig) -> Iterator[Conflict]:
    rollout = config.rollout
    longest = rollout.max_prompt_length + rollout.max_completion_length
    if _samples(config) and longest > config.policy.tokens_per_micro_batch:
        yield Conflict(
            keys=(
                "policy.tokens_per_micro_batch",
                "rollout.max_prompt_length",
                "rollout.max_completion_length",
            ),
            why=f"one prompt with its completion may have {longest} tokens and is never split",
            fix=f"give tokens_per_micro_batch at least {longest}, or shorten prompts or completions",
        )


def _overlong(config: RunConfig) -> Iterator[Conflict]:
    algorithm, longest = config.algorithm, config.rollout.max_completion_length
    if isinstance(algorithm, GrpoConfig) and algorithm.overlong_length and algorithm.overlong_length > longest:
        yield Conflict(
            keys=("algorithm.overlong_length", "rollout.max_completion_length"),
            why=f"no completion has more than {longest} tokens, so the full penalty would never be reached",
            fix=f"set overlong_length to {longest}, with an overlong_buffer of at most as many tokens",
        )


def _dynamic_sampling(config: RunConfig) -> Iterator[Conflict]:
    algorithm = config.algorithm
    if isinstance(algorithm, GrpoConfig) and algorithm.dynamic_sampling and config.max_staleness > 0:
        yield Conflict(
            keys=("algorithm.dynamic_sampling", "max_staleness"),
            why="further prompts are chosen when a step's rewards are there, so generation cannot run ahead",
            fix="set max_staleness to 0, or dynamic_sampling to false",
        )


def _roles(config: RunConfig) -> Iterator[Conflict]:
    kind = config.algorithm.type
    for key in ("critic", "critic_model"):
        if getattr(config, key) is not None and not NEEDS[kind].critic:
            yield Conflict(
                keys=(key, "algorithm.type"),
                why=f"{kind} has no critic",
                fix=f"remove {key}, or choose ppo for algorithm.type",
            )
    if config.reference.refresh != "never" and not (kind == "dpo" and config.data.prompts is not None):
        yield Conflict(
            keys=("reference.refresh", "algorithm.type"),
            why="only DPO on its own samples (data.prompts) moves its reference",
            fix="set reference.refresh to never",
        )
    for role, learner in (("policy", config.policy), ("critic", config.critic)):
        if learner is not None and learner.offload_optimizer and learner.zero_stage == 0:
            yield Conflict(
                keys=(f"{role}.offload_optimizer", f"{role}.zero_stage"),
                why="only a partitioned optimizer can be offloaded",
                fix=f"set {role}.zero_stage to 1, 2 or 3",
            )


def _teacher(config: RunConfig) -> Iterator[Conflict]:
    kind = config.algorithm.type
    if NEEDS[kind].teacher and config.teacher is None:
        yield Conflict(
            keys=("teacher", "algorithm.type"),
            why=f"{kind} learns from another model's distributions, and there is no other model",
            fix="add the teacher, for example `teacher: {model: {path: ./teacher}}`",
        )
    if not NEEDS[kind].teacher and config.teacher is not None:
        others = " or ".join(name for name, needs in NEEDS.items() if needs.teacher)
        yield Conflict(
            keys=("teacher", "algorithm.type"),
            why=f"{kind} asks no teacher",
            fix=f"remove teacher, or choose {others} for algorithm.type",
        )


def _distillation(config: RunConfig) -> Iterator[Conflict]:
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
            why=f"the policy gradient follows the reverse KL, which is beta 1, and beta is {algorithm.beta:g}",
            fix="set algorithm.beta to 1.0, or algorithm.objective to divergence",
        )
    if algorithm.temperature != rollout.temperature:
        yield Conflict(
            keys=("algorithm.temperature", "rollout.temperature"),
            why="the policy gradient is that of the distribution which was sampled",
            fix=f"set algorithm.temperature to {rollout.temperature:g} too, or rollout.temperature to "
            f"{algorithm.temperature:g}",
        )
    for key, reshapes, neutral in (("top_p", rollout.top_p < 1, "1.0"), ("top_k", rollout.top_k > 0, "0")):
        if reshapes:
            yield Conflict(
                keys=(f"rollout.{key}", "algorithm.objective"),
                why="the policy gradient compares the engine's log-probabilities with the learner's, over all tokens",
                fix=f"set rollout.{key} to {neutral}, or algorithm.objective to divergence",
            )


def _sampled_by_the_teacher(config: RunConfig, algorithm: DistillConfig) -> Iterator[Conflict]:
    for keys, wrong, why, fix in (
        (
            ("algorithm.sampler", "data.dataset"),
            config.data.prompts is None,
            "the completions of a dataset are there already",
            "give data.prompts instead, or remove sampler",
        ),
        (
            ("algorithm.sampler", "algorithm.objective"),
            algorithm.objective == "policy_gradient",
            "the policy gradient needs tokens that the policy has sampled itself",
            "set algorithm.objective to divergence, or algorithm.sampler to policy",
        ),
        *(
            (
                ("algorithm.sampler", f"data.{key}"),
                True,
                "the engines hold the teacher, so the teacher would be evaluated",
                f"remove data.{key}, and evaluate the model afterwards",
            )
            for key in config.data.answered
            if key != "prompts"
        ),
    ):
        if wrong:
            yield Conflict(keys=keys, why=why, fix=fix)


def _sampling(config: RunConfig) -> Iterator[Conflict]:
    rollout, kind = config.rollout, config.algorithm.type
    if NEEDS[kind].on_policy:
        for key, reshapes, neutral in (
            ("top_p", rollout.top_p < 1, "1.0"),
            ("top_k", rollout.top_k > 0, "0"),
        ):
            if reshapes:
                yield Conflict(
                    keys=(f"rollout.{key}", "algorithm.type"),
                    why=f"{kind} compares the engine's log-probabilities with the learner's, over all tokens",
                    fix=f"set rollout.{key} to {neutral} (rollout.temperature is accounted for)",
                )
    if config.max_staleness > 0 and config.data.prompts is None:
        yield Conflict(
            keys=("max_staleness", "data.dataset"),
            why="a dataset is not sampled from the policy, so it cannot become stale",
            fix="set max_staleness to 0",
        )


def _pair_loss(config: RunConfig) -> Iterator[Conflict]:
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
            why=f"the {loss} loss has no place for {name}",
            fix=f"remove {name}, or choose another loss_type (it goes with {others})",
        )
    if not algorithm.needs_reference and config.reference != ReferenceConfig():
        yield Conflict(
            keys=("reference", "algorithm.loss_type"),
            why=f"{loss} has no reference",
            fix="remove reference, or choose another loss_type",
        )


def _lora(config: RunConfig) -> Iterator[Conflict]:
    lora, kind = config.model.lora, config.algorithm.type
    if lora is None or not lora.lora_dropout:
        return
    if NEEDS[kind].on_policy:
        yield Conflict(
            keys=("model.lora.lora_dropout", "algorithm.type"),
            why=f"{kind} compares the engine's log-probabilities with the learner's, and only the learner drops out",
            fix="set model.lora.lora_dropout to 0.0",
        )
    elif kind in ("dpo", "kto"):
        yield Conflict(
            keys=("model.lora.lora_dropout", "algorithm.type"),
            why=f"{kind} compares the policy's log-probabilities with a reference's, and only the policy drops out",
            fix="set model.lora.lora_dropout to 0.0",
        )


def _checkpoints(config: RunConfig) -> Iterator[Conflict]:
    if config.checkpoint.every_updates is not None and (config.algorithm.type != "dpo" or config.data.prompts is None):
        yield Conflict(
            keys=("checkpoint.every_updates", "algorithm.type"),
            why="only a round of iterative DPO is long enough to be saved in its middle",
            fix="remove it; checkpoint.every counts steps",
        )
    going_back = [name for name, rule in config.alarms if getattr(rule, "action", None) == "roll_back"]
    if going_back and config.checkpoint.every is None:
        yield Conflict(
            keys=(f"alarms.{going_back[0]}.action", "checkpoint.every"),
            why="to roll back takes a checkpoint from before the alarm, and by the clock there may be none",
            fix="give checkpoint.every a number of steps, and checkpoint.keep room for those an alarm looks back",
        )


def _reporting(config: RunConfig) -> Iterator[Conflict]:
    if "wandb" not in config.report_to and config.wandb != type(config.wandb)():
        yield Conflict(
            keys=("wandb", "report_to"),
            why="wandb is set up here but nothing reports to it",
            fix="add `report_to: [wandb]`, or remove wandb",
        )


RULES: tuple[Callable[[RunConfig], Iterator[Conflict]], ...] = (
    _data_source, _reward, _steps, _batches, _lengths, _overlong, _dynamic_sampling, _roles, _sampling, _lora,
    _checkpoints, _reporting, _pair_loss, _teacher, _distillation,
)  # fmt: skip
