"""The plan of one recipe on one kind of GPU: does it fit, how long, what does it cost, and if not, what would."""

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
from workers.needs import NEEDS

NOT_MEASURED = "Nothing here was measured on a cluster by this project: arithmetic, back-tested in part in-sample."


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """A role that does not fit, and what would make it."""

    role: str
    short_bytes: float  # per GPU; 0: there is memory, but one actor asks for more GPUs than a node has
    changes: Changes | None  # the nearest; None: none was found
    larger: Gpu | None  # on which it fits unchanged


def shortage_of(config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, demand: Demand) -> Shortage:
    return Shortage(
        role=demand.role,
        short_bytes=demand.short_bytes,
        changes=nearest(config, shapes, gpu, lengths, demand.role),
        larger=larger_gpu(config, shapes, gpu, lengths, demand.role),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Of one run. `given` is the number of GPUs there are; None: as many as the recipe asks for."""

    name: str
    config: RunConfig
    shapes: Mapping[str, ModelShape]
    gpu: Gpu
    given: int | None
    price: float  # US dollars per GPU-hour
    work: Work
    demands: tuple[Demand, ...]
    time: StepTime
    in_step: StepTime  # with max_staleness 0
    one_ahead: StepTime  # with max_staleness 1
    together: StepTime  # colocated, which `rlhf run` does not do
    shortages: tuple[Shortage, ...]
    placements: tuple[Placement, ...]  # fastest first; none where the recipe fits and no number of GPUs was given
    fewest: int | None  # GPUs on which it fits with what it learns unchanged; None: no number does, or it fits already

    @property
    def asked(self) -> int:
        """GPUs, by all roles."""
        return sum(demand.num_gpus for demand in self.demands)

    @property
    def best(self) -> Placement:
        """The fastest that fits into the GPUs there are; the recipe as it is written where no number was given, or none
        fits."""
        return self.placements[0] if self.placements else Placement(changes={}, demands=self.demands, time=self.time)

    @property
    def changes_learning(self) -> bool:
        """Whether what fits has other completions than the recipe asks for."""
        return bool(self.placements) and _changes_learning(self.placements[0].changes)

    @property
    def too_many(self) -> int:
        """GPUs that the recipe asks for and that are not there."""
        return max(0, self.asked - self.given) if self.given is not None else 0

    @property
    def fits(self) -> bool:
        return not self.shortages and not self.too_many

    def gpu_hours(self, step_s: float, gpus: int, steps: int = 1) -> float:
        return step_s * steps * gpus / 3600

    def gpu_hours_per_1000(self, placement: Placement | None = None) -> float:
        """For a thousand completions (of a dataset: those in its rows), of the recipe as it is written or of one of its
        placements."""
        time, gpus = (self.time, self.asked) if placement is None else (placement.time, placement.num_gpus)
        return self.gpu_hours(time.step_s, gpus) * 1000 / self.work.sequences

    @property
    def total_gpu_hours(self) -> float | None:
        """Of the run, evaluation and checkpoints left out; None: how many steps it has is not known."""
        return None if self.work.steps is None else self.gpu_hours(self.time.step_s, self.asked, self.work.steps)


def _changes_learning(changes: Changes) -> bool:
    return any(key.startswith(("algorithm.", "data.", "rollout.max_")) for key in changes)


def shapes_of(config: RunConfig, before: Sequence[RunConfig] = ()) -> Shapes:
    """Every model that the run loads, by role. What an earlier stage will have made has the shape of what it starts
    from.

    Raises:
        BadInput: with every model whose shape is not known here.
    """
    made = {str(stage.model_directory): stage for stage in before}
    named = {"policy": config.model.path}
    if NEEDS[config.algorithm.type].critic:
        named["critic"] = config.critic_model.path if config.critic_model else config.model.path
    if config.teacher is not None:
        named["teacher"] = config.teacher.model.path
    named |= {f"reward.{i}": r.path for i, r in enumerate(config.reward) if isinstance(r, ModelRewardConfig)}
    problems, shapes = Problems(), {}
    for role, path in named.items():
        while path in made:
            path = made[path].model.path
        assert path is not None
        if shape := find(path):
            shapes[role] = shape
        else:
            key = "model.path" if role == "policy" else f"{role}.path"
            problems.add(
                f"{path} is not known to the planner",
                where=key,
                why="it is no directory with a config.json, not in the planner's table, and not in the hub cache",
                fix="give a directory that holds the model's config.json, or a model of the same size that it knows",
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
    """The plan of `config` on GPUs of kind `gpu`, of which `given` are there.

    Raises:
        BadInput: when a model is not known here.
    """
    lengths = lengths or Lengths()
    shapes = shapes_of(config, before)
    work = work_of(config, lengths)
    found = demands(config, shapes, gpu, work)
    asked = sum(demand.num_gpus for demand in found)
    shortages = tuple(shortage_of(config, shapes, gpu, lengths, demand) for demand in found if not demand.fits)
    fitting = bool(not shortages and (given is None or asked <= given))
    options = [] if fitting and given is None else placements(config, shapes, gpu, lengths, constants, given or asked)
    as_it_is = fitting or any(not _changes_learning(option.changes) for option in options)
    fewest = None if as_it_is else fewest_gpus(config, shapes, gpu, lengths, constants)

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
        demands=tuple(found),
        time=timed(config.max_staleness),
        in_step=timed(0),
        one_ahead=timed(1),
        together=colocated_time(config, shapes, gpu, work, constants, given or asked),
        shortages=shortages,
        placements=tuple(options),
        fewest=fewest,
    )
