"""Plan one recipe on one type of GPU: whether it fits, step time, cost, and what would fit if it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig
from orchestrator.config.rounds import largest, of_round, round_values
from orchestrator.errors import Problems
from orchestrator.pipeline.roles import has_reference
from orchestrator.plan.advice import Changes, Shortage, shortage_of
from orchestrator.plan.calls import Call, calls_of, changes_to_end
from orchestrator.plan.constants import DEFAULT, Constants
from orchestrator.plan.evaluation import EvaluationTime, evaluation_time, num_evaluations
from orchestrator.plan.gangs import Demand, Shapes, demands
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.loading import loading_s
from orchestrator.plan.models import ModelShape, find
from orchestrator.plan.placement import Placement, fewest_gpus, placed, placements
from orchestrator.plan.step import StepTime, colocated_time, step_time
from orchestrator.plan.work import Lengths, Work, work_of
from workers.config import ModelScorerConfig

NOT_MEASURED = (
    "Nothing here was measured on a cluster by this project: these are estimates, checked against published runs "
    "(partly in-sample)."
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
    time: StepTime  # of a round with the largest values of `rounds`
    train_s: float | None  # of all steps; None: their number is unknown
    load: Mapping[str, float]  # seconds to start each role
    evaluation: EvaluationTime | None  # None: nothing to evaluate on
    calls: tuple[Call, ...]
    ending: Changes  # with which every call ends within its time limit; empty: all do
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
    def has_room(self) -> bool:
        """True if every role has the memory and the GPUs that it needs."""
        return not self.shortages and not self.missing_gpus

    @property
    def late(self) -> tuple[Call, ...]:
        """Calls that are not certain to end within their time limit."""
        return tuple(call for call in self.calls if not call.ends)

    @property
    def fits(self) -> bool:
        """True if the recipe can run as written: it has room, and every call ends within its time limit."""
        return self.has_room and not self.late

    def gpu_hours(self, step_s: float, gpus: int, steps: int = 1) -> float:
        return step_s * steps * gpus / 3600

    def gpu_hours_per_1000(self, placement: Placement | None = None) -> float:
        """Return the GPU-hours for 1000 completions (for a dataset: completions in its rows).

        They are those of `placement`, or by default of the recipe as written."""
        time, gpus = (self.time, self.asked) if placement is None else (placement.time, placement.num_gpus)
        return self.gpu_hours(time.step_s, gpus) * 1000 / self.work.sequences

    @property
    def load_s(self) -> float:
        """Seconds from the placement of the roles to the first step."""
        return max(self.load.values())

    @property
    def evaluations_s(self) -> float | None:
        """Seconds of all evaluations; None if the number of steps is unknown."""
        if self.evaluation is None:
            return 0.0
        steps = self.work.steps
        return None if steps is None else num_evaluations(self.config, steps) * self.evaluation.seconds

    @property
    def run_s(self) -> float | None:
        """Seconds of the run with loading and evaluations, without checkpoints; None if its steps are unknown."""
        if self.train_s is None or self.evaluations_s is None:
            return None
        return self.load_s + self.train_s + self.evaluations_s

    @property
    def total_gpu_hours(self) -> float | None:
        """GPU-hours of the run with loading and evaluations; None if its number of steps is unknown."""
        return None if self.run_s is None else self.gpu_hours(self.run_s, self.asked)


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
    if has_reference(config) and config.reference.path is not None:
        named["reference"] = config.reference.path
    if config.teacher is not None:
        named["teacher"] = config.teacher.model.path
    named |= {f"reward.{i}": r.path for i, r in enumerate(config.reward) if isinstance(r, ModelScorerConfig)}
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
    alternatives: bool = True,
) -> Plan:
    """Plan `config` on `given` GPUs of type `gpu` (None: as many as it needs).

    Without `alternatives`, no other placements are looked for, which take most of the time.

    Raises:
        BadInput: if the shape of a model is not found.
    """
    lengths = lengths or Lengths()
    written, config = config, largest(config)
    shapes = shapes_of(config, before)
    work = work_of(config, lengths)
    needed = tuple(demands(config, shapes, gpu, work))
    asked = sum(demand.num_gpus for demand in needed)
    shortages = tuple(shortage_of(config, shapes, gpu, lengths, demand) for demand in needed if not demand.fits)
    has_room = not shortages and (given is None or asked <= given)
    synchronous, one_ahead = (step_time(_stale(config, n), shapes, gpu, work, constants) for n in (0, 1))
    time = one_ahead if config.max_staleness else synchronous
    calls = calls_of(config, shapes, gpu, lengths, constants, time)
    ending = changes_to_end(config, shapes, gpu, lengths, constants, calls)
    options: list[Placement] = []
    if alternatives and (given is not None or not has_room):
        options = placements(config, shapes, gpu, lengths, constants, given or asked)
    elif has_room and ending:
        options = [placed(config, ending, shapes, gpu, lengths, constants)]
    enough = not alternatives or has_room or any(not _changes_training(option.changes) for option in options)
    return Plan(
        name=config.name,
        config=written,
        shapes=shapes,
        gpu=gpu,
        given=given,
        price=gpu.price if price is None else price,
        work=work,
        demands=needed,
        time=time,
        train_s=_train_s(written, shapes, gpu, lengths, constants, time),
        load=loading_s(config, shapes, constants),
        evaluation=evaluation_time(config, shapes, gpu, lengths, constants),
        calls=calls,
        ending=ending,
        synchronous=synchronous,
        one_ahead=one_ahead,
        colocated=colocated_time(config, shapes, gpu, work, constants, given or asked),
        shortages=shortages,
        placements=tuple(options),
        fewest=None if enough else fewest_gpus(config, shapes, gpu, lengths),
    )


def _stale(config: RunConfig, max_staleness: int) -> RunConfig:
    return config.model_copy(update={"max_staleness": max_staleness})


def _train_s(
    config: RunConfig, shapes: Shapes, gpu: Gpu, lengths: Lengths, constants: Constants, time: StepTime
) -> float | None:
    """Return the time of all steps: of each round by itself if rounds differ. `time` is that of the largest."""
    steps = work_of(config, lengths).steps
    if steps is None or not round_values(config, 0):
        return None if steps is None else steps * time.step_s
    rounds = (of_round(config, index) for index in range(steps))
    return sum(step_time(one, shapes, gpu, work_of(one, lengths), constants).step_s for one in rounds)
