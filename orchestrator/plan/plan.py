"""Plan one recipe on one type of GPU: whether it fits, step time, cost, and what would fit if it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig
from orchestrator.errors import Problems
from orchestrator.plan.advice import Changes, larger_gpu, nearest
from orchestrator.plan.constants import DEFAULT, Constants
from orchestrator.plan.gangs import Demand, Shapes, demands
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.models import ModelShape, find
from orchestrator.plan.placement import Placement, fewest_gpus, placements
from orchestrator.plan.step import StepTime, colocated_time, step_time
from orchestrator.plan.work import Lengths, Work, work_of
from workers.config import ModelRewardConfig

NOT_MEASURED = (
    "Nothing here was measured on a cluster by this project: these are estimates, checked against published runs "
    "(partly in-sample)."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """A role that does not fit, and what would make it fit."""

    role: str
    short_bytes: float  # per GPU; 0: memory is enough, but one actor needs more GPUs than a node has
    changes: Changes | None  # the nearest change with which it fits; None: none found
    larger: Gpu | None  # the smallest GPU on which it fits unchanged; None: none in the table


def shortage_of(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, demand: Demand) -> Shortage:
    return Shortage(
        role=demand.role,
        short_bytes=demand.short_bytes,
        changes=nearest(config, shapes, gpu, lengths, demand.role),
        larger=larger_gpu(config, shapes, gpu, lengths, demand.role),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Plan of one run."""

    name: str
    config: RunConfig
    shapes: Mapping[str, ModelShape]
    gpu: Gpu
    given: int | None  # available GPUs; None: as many as the recipe needs
    price: float  # US dollars per GPU-hour
    work: Work
    demands: tuple[Demand, ...]
    time: StepTime
    synchronous: StepTime  # with max_staleness 0
    one_ahead: StepTime  # with max_staleness 1
    colocated: StepTime  # all roles time-share all GPUs; `rlhf run` does not support it
    shortages: tuple[Shortage, ...]
    placements: tuple[Placement, ...]  # fastest first; empty if the recipe fits and no number of GPUs was given
    fewest: int | None  # GPUs on which some placement fits with unchanged training; None: none, or one fits already

    @property
    def asked(self) -> int:
        """Number of GPUs that all roles need together."""
        return sum(demand.num_gpus for demand in self.demands)

    @property
    def best(self) -> Placement:
        """Fastest placement on the given GPUs; without placements, the recipe as written."""
        return self.placements[0] if self.placements else Placement(changes={}, demands=self.demands, time=self.time)

    @property
    def changes_training(self) -> bool:
        """Shorter sequences in the best placement than in the recipe."""
        return bool(self.placements) and _changes_training(self.placements[0].changes)

    @property
    def missing_gpus(self) -> int:
        """Number of GPUs that the recipe needs beyond those given."""
        return max(0, self.asked - self.given) if self.given is not None else 0

    @property
    def fits(self) -> bool:
        return not self.shortages and not self.missing_gpus

    def gpu_hours(self, step_s: float, gpus: int, steps: int = 1) -> float:
        return step_s * steps * gpus / 3600

    def gpu_hours_per_1000(self, placement: Placement | None = None) -> float:
        """Return the GPU-hours for 1000 completions (for a dataset: completions in its rows).

        They are those of `placement`, or by default of the recipe as written."""
        time, gpus = (self.time, self.asked) if placement is None else (placement.time, placement.num_gpus)
        return self.gpu_hours(time.step_s, gpus) * 1000 / self.work.sequences

    @property
    def total_gpu_hours(self) -> float | None:
        """GPU-hours of the run without evaluation and checkpoints; None if its number of steps is unknown."""
        return None if self.work.steps is None else self.gpu_hours(self.time.step_s, self.asked, self.work.steps)


def _changes_training(changes: Changes) -> bool:
    return any(key.startswith(("algorithm.", "data.", "rollout.max_")) for key in changes)


def shapes_of(config: RunConfig, before: Sequence[RunConfig] = ()) -> Shapes:
    """Return the shape of every model that the run loads, by role.

    The output of an earlier stage in `before` has the shape of that stage's own model.

    Raises:
        BadInput: if the shape of any model is not found.
    """
    outputs = {str(stage.model_directory): stage for stage in before}
    named = {"policy": config.model.path}
    if config.algorithm.needs.critic:
        named["critic"] = config.critic_model.path if config.critic_model else config.model.path
    if config.teacher is not None:
        named["teacher"] = config.teacher.model.path
    named |= {f"reward.{i}": r.path for i, r in enumerate(config.reward) if isinstance(r, ModelRewardConfig)}
    problems, shapes = Problems(), {}
    for role, path in named.items():
        while path in outputs:
            path = outputs[path].model.path
        assert path is not None
        if shape := find(path):
            shapes[role] = shape
        else:
            key = "model.path" if role == "policy" else f"{role}.path"
            problems.add(
                f"unknown model `{path}`",
                where=key,
                why="not a directory with a config.json, not in the planner's table, not in the Hub cache",
                fix="give a directory with a config.json, or a model of the same size from the planner's table",
            )
    problems.raise_if_any()
    return shapes


def make_plan(
    config: RunConfig,
    gpu: Gpu,
    *,
    before: Sequence[RunConfig] = (),
    given: int | None = None,
    price: float | None = None,
    lengths: Lengths | None = None,
    constants: Constants = DEFAULT,
) -> Plan:
    """Plan `config` on `given` GPUs of type `gpu` (None: as many as it needs).

    Raises:
        BadInput: if the shape of a model is not found.
    """
    lengths = lengths or Lengths()
    shapes = shapes_of(config, before)
    work = work_of(config, lengths)
    needed = demands(config, shapes, gpu, work)
    asked = sum(demand.num_gpus for demand in needed)
    shortages = tuple(shortage_of(config, shapes, gpu, lengths, demand) for demand in needed if not demand.fits)
    fitting = bool(not shortages and (given is None or asked <= given))
    options = [] if fitting and given is None else placements(config, shapes, gpu, lengths, constants, given or asked)
    same_training = fitting or any(not _changes_training(option.changes) for option in options)
    fewest = None if same_training else fewest_gpus(config, shapes, gpu, lengths, constants)

    def timed(staleness: int) -> StepTime:
        return step_time(config.model_copy(update={"max_staleness": staleness}), shapes, gpu, work, constants)

    return Plan(
        name=config.name,
        config=config,
        shapes=shapes,
        gpu=gpu,
        given=given,
        price=gpu.price if price is None else price,
        work=work,
        demands=tuple(needed),
        time=timed(config.max_staleness),
        synchronous=timed(0),
        one_ahead=timed(1),
        colocated=colocated_time(config, shapes, gpu, work, constants, given or asked),
        shortages=shortages,
        placements=tuple(options),
        fewest=fewest,
    )
