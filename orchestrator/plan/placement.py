"""Which shares of n GPUs suit a recipe, and the fastest of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.plan.advice import TENSOR_PARALLEL, Changes, changed, fewer_tokens, shorter_sequences
from orchestrator.plan.constants import Constants
from orchestrator.plan.gangs import Demand, Shapes, demands, has_reference, headless, sampler_shape
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.step import StepTime, step_time
from orchestrator.plan.work import Lengths, work_of
from workers.config import ModelRewardConfig
from workers.needs import NEEDS

MAX_GPUS = 8192
SIZES_TRIED = 3  # of each role, from the smallest that fits
ENGINE_COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One way to share out the GPUs: what is changed in the recipe, and what comes of it."""

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
    *,
    shorten: bool = True,
) -> list[Placement]:
    """Those that fit into `num_gpus`, fastest step first. Learners save memory only where they do not fit without: by
    gradient checkpointing, by smaller micro-batches, with the optimiser in host memory, and at last (`shorten`) by
    shorter sequences, which changes what is learned."""
    for saved in _savings(config, shorten=shorten):
        base = changed(config, saved)
        found = []
        for changes in _shares(base, shapes, gpu, lengths, num_gpus):
            if placement := _placed(base, {**saved, **changes}, shapes, gpu, lengths, constants, num_gpus):
                found.append(placement)
        if found:
            return sorted(found, key=lambda p: (round(p.time.step_s, 2), p.num_gpus))
    return []


def _savings(config: RunConfig, *, shorten: bool) -> Iterator[dict[str, Any]]:
    """From nothing to the most that is tried."""
    roles = ["policy"] + (["critic"] if config.critic is not None else [])
    yield {}
    saved: dict[str, Any] = {
        f"{role}.gradient_checkpointing": True for role in roles if not getattr(config, role).gradient_checkpointing
    }
    if saved:
        yield dict(saved)
    for role in roles:
        for smaller in fewer_tokens(config, role):
            saved |= smaller  # the last is the smallest
    yield dict(saved)
    offloaded = saved | {f"{role}.offload_optimizer": True for role in roles if getattr(config, role).zero_stage}
    yield offloaded
    if shorten:
        shorter = shorter_sequences(config, *roles)
        yield saved | shorter
        yield offloaded | shorter


def fewest_gpus(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, constants: Constants) -> int | None:
    """The fewest GPUs on which some placement fits; None: not even thousands are enough."""
    upper = 1
    while not placements(config, shapes, gpu, lengths, constants, upper, shorten=False):
        upper *= 2
        if upper > MAX_GPUS:
            return None
    lower = upper // 2  # known not to be enough
    while upper - lower > 1:
        middle = (lower + upper) // 2
        if placements(config, shapes, gpu, lengths, constants, middle, shorten=False):
            upper = middle
        else:
            lower = middle
    return upper


def _placed(
    config: RunConfig,
    changes: Changes,
    shapes: Shapes,
    gpu: Gpu,
    lengths: Lengths,
    constants: Constants,
    num_gpus: int,
) -> Placement | None:
    after = changed(config, changes)
    work = work_of(after, lengths)
    found = demands(after, shapes, gpu, work)
    if not all(d.fits for d in found) or sum(d.num_gpus for d in found) > num_gpus:
        return None
    time = step_time(after, shapes, gpu, work, constants)
    return Placement(changes=changes, demands=tuple(found), time=time)


def _shares(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, num_gpus: int) -> Iterator[dict[str, Any]]:
    """What each role but the learners may take; policy and critic get the rest."""
    for engines, used_by_engines in _engines(config, shapes, gpu, lengths, num_gpus):
        for scorers, used_by_scorers in _scorers(config, shapes, gpu, lengths, num_gpus - used_by_engines):
            left = num_gpus - used_by_engines - used_by_scorers
            for learners in _learners(config, shapes, left):
                yield {**engines, **scorers, **learners}


def _fits(config: RunConfig, changes: Changes, shapes: Shapes, gpu: Gpu, lengths: Lengths, role: str) -> bool:
    after = changed(config, changes)
    return any(d.role == role and d.fits for d in demands(after, shapes, gpu, work_of(after, lengths)))


def _engines(
    config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, num_gpus: int
) -> Iterator[tuple[dict[str, Any], int]]:
    if not config.data.answered:
        yield {}, 0
        return
    heads = sampler_shape(config, shapes).heads
    most = getattr(config.algorithm, "prompts_per_step", 1) if config.data.prompts is not None else 1
    key = "rollout.tensor_parallel_size"
    sizes = [
        tp for tp in TENSOR_PARALLEL if heads % tp == 0 and _fits(config, {key: tp}, shapes, gpu, lengths, "rollout")
    ]
    for tp in sizes[:SIZES_TRIED]:
        for count in ENGINE_COUNTS:
            if count <= most and count * tp < num_gpus:
                yield {key: tp, "rollout.num_engines": count}, count * tp


def _scorers(
    config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, num_gpus: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """Reference, teacher and reward models."""
    found: list[tuple[dict[str, Any], int]] = [({}, 0)]
    roles = (["reference"] if has_reference(config) else []) + (["teacher"] if config.teacher else [])
    for role in roles:
        options = []
        for ranks in (2**i for i in range(10)):
            for stage in (0, 3):
                changes = {f"{role}.num_ranks": ranks, f"{role}.zero_stage": stage}
                alone = stage == 3 and ranks == 1
                if not alone and ranks < num_gpus and _fits(config, changes, shapes, gpu, lengths, role):
                    options.append((changes, ranks))
                    break  # a whole model on each rank needs no traffic
        found = [({**a, **b}, n + m) for a, n in found for b, m in options[:SIZES_TRIED]]
    if config.data.prompts is not None and any(isinstance(r, ModelRewardConfig) for r in config.reward):
        counts = (1, 2, 4, 8, 16)
        found = [({**a, "reward_workers.num_workers": k}, n + k) for a, n in found for k in counts]
    elif any(isinstance(r, ModelRewardConfig) for r in config.reward) and config.data.eval_prompts is not None:
        found = [(a, n + config.reward_workers.num_workers) for a, n in found]
    yield from ((changes, used) for changes, used in found if used < num_gpus)


def _learners(config: RunConfig, shapes: Shapes, left: int) -> Iterator[dict[str, Any]]:
    if not NEEDS[config.algorithm.type].critic:
        if left >= 1:
            yield {"policy.num_ranks": left}
        return
    if config.critic is None:  # set up like the policy
        if left >= 2:
            yield {"policy.num_ranks": left // 2}
        return
    policy, critic = shapes["policy"].num_params, headless(shapes["critic"]).num_params
    share = max(1, min(left - 1, round(left * policy / (policy + critic))))
    if left >= 2:
        yield {"policy.num_ranks": share, "critic.num_ranks": left - share}
