"""Enumerate ways to split n GPUs over the roles of a recipe, and rank those that fit by step time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.pipeline.roles import has_reference
from orchestrator.plan.advice import TENSOR_PARALLEL, Changes, apply_changes, fewer_tokens, shorter_sequences
from orchestrator.plan.calls import calls_of, changes_to_end
from orchestrator.plan.constants import Constants
from orchestrator.plan.gangs import Demand, Shapes, demands, headless, sampler_shape
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.step import StepTime, step_time
from orchestrator.plan.work import Lengths, work_of
from workers.config import ModelScorerConfig, Sampled

MAX_GPUS = 8192
SIZES_TRIED = 3  # per role, from the smallest that fits
ENGINE_COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One split of the GPUs: the changes to the recipe, and the resulting memory and step time.

    The changes contain those with which every call ends within its time limit.
    """

    changes: Changes
    demands: tuple[Demand, ...]
    time: StepTime

    @property
    def num_gpus(self) -> int:
        return sum(demand.num_gpus for demand in self.demands)


def placements(
    config: RunConfig,
    shapes: Shapes,
    gpu: Gpu,
    lengths: Lengths,
    constants: Constants,
    num_gpus: int,
) -> list[Placement]:
    """Return the placements that fit into `num_gpus`, fastest step first.

    Memory savings for the learners are tried in this order, and only if nothing fits without them: gradient
    checkpointing, smaller micro-batches, optimiser in host memory, and shorter sequences, which change the training."""
    for saved in _savings(config, shorten=True):
        base = apply_changes(config, saved)
        fitting = [
            placed(config, {**saved, **changes}, shapes, gpu, lengths, constants)
            for changes in _fitting_splits(base, shapes, gpu, lengths, num_gpus)
        ]
        if fitting:
            return sorted(fitting, key=lambda p: (round(p.time.step_s, 2), p.num_gpus))
    return []


def fits_on(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, num_gpus: int) -> bool:
    """Return whether some placement fits into `num_gpus` with unchanged training."""
    return any(
        True
        for saved in _savings(config, shorten=False)
        for _ in _fitting_splits(apply_changes(config, saved), shapes, gpu, lengths, num_gpus)
    )


def _savings(config: RunConfig, *, shorten: bool) -> Iterator[dict[str, Any]]:
    """Yield changes that save memory, from none to the strongest."""
    yield {}
    if not config.algorithm.needs.trains:
        return
    roles = ["policy"] + (["critic"] if config.critic is not None else [])
    saved: dict[str, Any] = {
        f"{role}.gradient_checkpointing": True for role in roles if not getattr(config, role).gradient_checkpointing
    }
    if saved:
        yield dict(saved)
    for role in roles:
        for smaller in fewer_tokens(config, role):
            saved |= smaller  # the last one is the smallest
    yield dict(saved)
    offloaded = saved | {f"{role}.offload_optimizer": True for role in roles if getattr(config, role).zero_stage}
    yield offloaded
    if shorten:
        shorter = shorter_sequences(config, *roles)
        yield saved | shorter
        yield offloaded | shorter


def fewest_gpus(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths) -> int | None:
    """Return the smallest number of GPUs on which some placement fits, or None if `MAX_GPUS` are not enough."""
    upper = 1
    while not fits_on(config, shapes, gpu, lengths, upper):
        upper *= 2
        if upper > MAX_GPUS:
            return None
    lower = upper // 2  # not enough
    while upper - lower > 1:
        middle = (lower + upper) // 2
        if fits_on(config, shapes, gpu, lengths, middle):
            upper = middle
        else:
            lower = middle
    return upper


def placed(
    config: RunConfig, changes: Changes, shapes: Shapes, gpu: Gpu, lengths: Lengths, constants: Constants
) -> Placement:
    """Return `config` with `changes`, and with those with which every call ends within its time limit."""
    after = apply_changes(config, changes)
    work = work_of(after, lengths)
    time = step_time(after, shapes, gpu, work, constants)
    calls = calls_of(after, shapes, gpu, lengths, constants, time)
    if ending := changes_to_end(after, shapes, gpu, lengths, constants, calls):
        after, changes = apply_changes(after, ending), {**changes, **ending}
        time = step_time(after, shapes, gpu, work, constants)
    return Placement(changes=changes, demands=tuple(demands(after, shapes, gpu, work)), time=time)


def _fitting_splits(
    config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, num_gpus: int
) -> Iterator[dict[str, Any]]:
    """Yield the splits in which every role fits, and all together fit into `num_gpus`."""
    if not _learners_can_fit(config, shapes, gpu, lengths, num_gpus):
        return
    for changes in _splits(config, shapes, gpu, lengths, num_gpus):
        after = apply_changes(config, changes)
        needed = demands(after, shapes, gpu, work_of(after, lengths))
        if all(d.fits for d in needed) and sum(d.num_gpus for d in needed) <= num_gpus:
            yield changes


def _learners_can_fit(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, num_gpus: int) -> bool:
    """Return whether every learner alone fits into `num_gpus`: more ranks take less memory each, one has no buffers."""
    trained = ("policy", "critic") if config.algorithm.needs.trains else ()
    learners = [role for role in trained if role == "policy" or config.critic is not None]
    return all(
        any(
            _fits(config, {f"{role}.num_ranks": ranks}, shapes, gpu, lengths, role)
            for ranks in dict.fromkeys((num_gpus, 1))
        )
        for role in learners
    )


def _splits(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, num_gpus: int) -> Iterator[dict[str, Any]]:
    """Yield sizes of all roles; policy and critic get the GPUs that the other roles leave."""
    for engines, used_by_engines in _engines(config, shapes, gpu, lengths, num_gpus):
        for scorers, used_by_scorers in _scorers(config, shapes, gpu, lengths, num_gpus - used_by_engines):
            left = num_gpus - used_by_engines - used_by_scorers
            for learners in _learners(config, shapes, left):
                yield {**engines, **scorers, **learners}


def _fits(config: RunConfig, changes: Changes, shapes: Shapes, gpu: Gpu, lengths: Lengths, role: str) -> bool:
    after = apply_changes(config, changes)
    return any(d.role == role and d.fits for d in demands(after, shapes, gpu, work_of(after, lengths)))


def _engines(
    config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, num_gpus: int
) -> Iterator[tuple[dict[str, Any], int]]:
    if not config.data.answered:
        yield {}, 0
        return
    heads = sampler_shape(config, shapes).heads
    algorithm, on_prompts = config.algorithm, config.data.prompts is not None
    most = algorithm.prompts_per_step if on_prompts and isinstance(algorithm, Sampled) else 1
    key = "rollout.tensor_parallel_size"
    sizes = [
        tp for tp in TENSOR_PARALLEL if heads % tp == 0 and _fits(config, {key: tp}, shapes, gpu, lengths, "rollout")
    ]
    for tp in sizes[:SIZES_TRIED]:
        for count in ENGINE_COUNTS:
            if count <= most and count * tp <= num_gpus - config.algorithm.needs.trains:  # one GPU is for the policy
                yield {key: tp, "rollout.num_engines": count}, count * tp


def _scorers(
    config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, num_gpus: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield sizes of reference, teacher and reward models, with the GPUs they use."""
    combined: list[tuple[dict[str, Any], int]] = [({}, 0)]
    roles = (["reference"] if has_reference(config) else []) + (["teacher"] if config.teacher else [])
    for role in roles:
        options = []
        for ranks in (2**i for i in range(10)):
            for stage in (0, 3):
                changes = {f"{role}.num_ranks": ranks, f"{role}.zero_stage": stage}
                alone = stage == 3 and ranks == 1
                if not alone and ranks < num_gpus and _fits(config, changes, shapes, gpu, lengths, role):
                    options.append((changes, ranks))
                    break  # a whole model on each rank needs no communication
        combined = [({**a, **b}, n + m) for a, n in combined for b, m in options[:SIZES_TRIED]]
    if config.data.prompts is not None and any(isinstance(r, ModelScorerConfig) for r in config.reward):
        counts = (1, 2, 4, 8, 16)
        combined = [({**a, "reward_workers.num_workers": k}, n + k) for a, n in combined for k in counts]
    elif any(isinstance(r, ModelScorerConfig) for r in config.reward) and config.data.eval_prompts is not None:
        combined = [(a, n + config.reward_workers.num_workers) for a, n in combined]
    yield from ((changes, used) for changes, used in combined if used < num_gpus)


def _learners(config: RunConfig, shapes: Shapes, left: int) -> Iterator[dict[str, Any]]:
    if not config.algorithm.needs.trains:
        yield {}
        return
    if not config.algorithm.needs.critic:
        if left >= 1:
            yield {"policy.num_ranks": left}
        return
    if config.critic is None:  # the critic has the policy's settings
        if left >= 2:
            yield {"policy.num_ranks": left // 2}
        return
    policy, critic = shapes["policy"].num_params, headless(shapes["critic"]).num_params
    share = max(1, min(left - 1, round(left * policy / (policy + critic))))
    if left >= 2:
        yield {"policy.num_ranks": share, "critic.num_ranks": left - share}
