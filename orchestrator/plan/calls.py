"""Remote calls of a run, how long each takes, and whether it ends within the time limit of the recipe.

A worker that completes no call within `cluster.progress_timeout_s` is ended, and one that does not start within
`cluster.start_timeout_s`. Planned seconds count `SAFETY` times: efficiencies may be lower than assumed, and completions
longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig
from orchestrator.pipeline.roles import has_reference
from orchestrator.plan.advice import Changes, apply_changes
from orchestrator.plan.checkpoints import checkpoint_bytes_by_role, learners
from orchestrator.plan.constants import Constants
from orchestrator.plan.evaluation import EvaluationTime, evaluation_time
from orchestrator.plan.gangs import Shapes
from orchestrator.plan.gpus import GPUS_PER_NODE, Gpu
from orchestrator.plan.loading import loading_s, weights_s
from orchestrator.plan.step import StepTime, publish_s, refresh_s, step_time
from orchestrator.plan.work import Lengths, Work, work_of
from workers.config import Sampled

SAFETY = 2.0
PROGRESS, START = "cluster.progress_timeout_s", "cluster.start_timeout_s"
CHUNK = "rollout.tokens_per_chunk"
MAX_SLOWDOWN = 1.25
ROUND_S = 100  # a suggested time limit is a multiple of this


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """The longest remote call of one kind.

    Example: `Call(phase="generate", role="rollout", what="384 prompts", count=22, seconds=346.0, limit_s=1800.0)`.
    """

    phase: str
    role: str
    what: str
    count: int = 1  # calls of this kind in a step, an evaluation or the run
    seconds: float
    limit_s: float
    key: str = PROGRESS  # setting that holds the limit
    chunked: bool = False  # a smaller rollout.tokens_per_chunk makes it shorter

    @property
    def needed_s(self) -> float:
        return SAFETY * self.seconds

    @property
    def ends(self) -> bool:
        return self.needed_s <= self.limit_s


def calls_of(
    config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, constants: Constants, time: StepTime | None = None
) -> tuple[Call, ...]:
    """Return the calls of a run in the order of its phases. `time` is that of a step; None: it is computed."""
    work = work_of(config, lengths)
    time = time or step_time(config, shapes, gpu, work, constants)
    evaluation = evaluation_time(config, shapes, gpu, lengths, constants)
    limit_s = config.cluster.progress_timeout_s
    calls = [
        *_starts(config, shapes, constants),
        *_chunks(config, time, limit_s),
        *_updates(config, time, work, limit_s),
        *_evaluations(config, evaluation, limit_s),
        *_files(config, shapes, constants, limit_s),
    ]
    if "publish" in time.busy:
        seconds = publish_s(config, shapes, constants)
        calls.append(Call(phase="publish", role="policy", what="weights", seconds=seconds, limit_s=limit_s))
    return tuple(call for call in calls if call.seconds)


def _starts(config: RunConfig, shapes: Shapes, constants: Constants) -> Iterator[Call]:
    limit_s = config.cluster.start_timeout_s
    for role, seconds in loading_s(config, shapes, constants).items():
        if seconds > constants.process_start_s:  # it loads a model
            yield Call(phase="start", role=role, what="its model", seconds=seconds, limit_s=limit_s, key=START)


def _chunks(config: RunConfig, time: StepTime, limit_s: float) -> Iterator[Call]:
    sampled = config.data.prompts is not None
    size, count = max(time.chunks), len(time.chunks)
    what = f"{size:,} {'prompts' if sampled else 'rows'}"
    for phase, roles in time.chunk.items():
        for role, seconds in roles.items():
            yield Call(
                phase=phase, role=role, what=what, count=count, seconds=seconds, limit_s=limit_s, chunked=sampled
            )


def _updates(config: RunConfig, time: StepTime, work: Work, limit_s: float) -> Iterator[Call]:
    updates = max(1, work.updates)
    algorithm = config.algorithm
    rows = work.groups
    if work.sampled and isinstance(algorithm, Sampled):
        rows = algorithm.rows_per_step + work.mixed
    rows = math.ceil(rows * work.passes / updates)
    for role, seconds in time.busy.get("learn", {}).items():
        what = f"an update, {rows:,} rows"
        yield Call(phase="learn", role=role, what=what, count=updates, seconds=seconds / updates, limit_s=limit_s)


def _evaluations(config: RunConfig, evaluation: EvaluationTime | None, limit_s: float) -> Iterator[Call]:
    if evaluation is None:
        return
    longest: dict[str, Call] = {}
    for part in evaluation.parts:
        what = f"up to {part.prompts:,} {'pairs' if part.key == 'eval_dataset' else 'prompts'}"
        for role, seconds in {"rollout": part.generate_s, **part.score_s}.items():
            if role not in longest or seconds > longest[role].seconds:
                longest[role] = Call(
                    phase="evaluate",
                    role=role,
                    what=what,
                    count=sum(role == "rollout" or role in other.score_s for other in evaluation.parts),
                    seconds=seconds,
                    limit_s=limit_s,
                    chunked=part.key != "eval_dataset",
                )
    yield from longest.values()


def _files(config: RunConfig, shapes: Shapes, constants: Constants, limit_s: float) -> Iterator[Call]:
    """Yield the calls that read or write a model or a checkpoint."""
    if has_reference(config) and config.reference.refresh != "never":
        for role, seconds in refresh_s(shapes, constants).items():
            yield Call(phase="refresh", role=role, what="the model", seconds=seconds, limit_s=limit_s)
    settings = learners(config)
    for role, size in checkpoint_bytes_by_role(config, shapes).items():
        nodes = math.ceil(settings[role].num_ranks / GPUS_PER_NODE)
        seconds = size / nodes / constants.disk_bytes_per_s
        yield Call(phase="checkpoint", role=role, what="a checkpoint", seconds=seconds, limit_s=limit_s)
    if not config.algorithm.needs.trains:
        return
    seconds = weights_s(shapes["policy"].num_params, constants)
    yield Call(phase="export", role="policy", what="the model", seconds=seconds, limit_s=limit_s)


def changes_to_end(
    config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, constants: Constants, calls: Sequence[Call]
) -> Changes:
    """Return changes with which all `calls` of `config` end: smaller chunks if these are enough, else longer limits.

    It is empty if all of them end already, or if one never does."""
    if all(call.ends for call in calls) or not all(math.isfinite(call.seconds) for call in calls):
        return {}
    late = [call for call in calls if not call.ends]
    if all(call.chunked for call in late) and (tokens := _smaller_chunks(config, shapes, gpu, lengths, constants)):
        return {CHUNK: tokens}
    needed = {key: max((call.needed_s for call in late if call.key == key), default=0.0) for key in (PROGRESS, START)}
    return {key: math.ceil(seconds / ROUND_S) * ROUND_S for key, seconds in needed.items() if seconds}


def _smaller_chunks(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, constants: Constants) -> int | None:
    """Return the first half, quarter … of `rollout.tokens_per_chunk` with which every call ends.

    It is None if there is none, or if a step would take more than `MAX_SLOWDOWN` times as long: every chunk ends with
    its longest sequences."""
    work, tokens = work_of(config, lengths), config.rollout.tokens_per_chunk
    step_s = step_time(config, shapes, gpu, work, constants).step_s
    while tokens > 1:
        tokens //= 2
        after = apply_changes(config, {CHUNK: tokens})
        time = step_time(after, shapes, gpu, work, constants)
        if time.step_s > MAX_SLOWDOWN * step_s:
            return None
        if all(call.ends for call in calls_of(after, shapes, gpu, lengths, constants, time)):
            return tokens
    return None
