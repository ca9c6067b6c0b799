"""Settings that differ from round to round of iterative DPO, and the config of one round.

    rounds: {temperature: [0.8, 0.8, 1.3], beta: {first: 0.1, last: 0.05}, prompts: disjoint, policy: base}

The values of a round depend on the config and the round's index alone, so that a resumed run uses the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field

from workers.config import Count, NonNegative, Positive, Sampled, Settings

if TYPE_CHECKING:
    from orchestrator.config.run import RunConfig

Rate = Annotated[float, Field(gt=0, le=1)]
GroupSize = Annotated[int, Field(ge=2)]
Number: TypeAlias = int | float


class LinearRates(Settings):
    """Learning rates that change linearly from the first round to the last."""

    first: Rate  # learning rate of the first round
    last: Rate  # learning rate of the last round


class Linear(Settings):
    """Values that change linearly from the first round to the last."""

    first: Positive  # value of the first round
    last: Positive  # value of the last round


class MixConfig(Settings):
    """Pairs that a round trains on beside those of its own samples: of earlier rounds, and of `data.dataset`."""

    earlier_rounds: NonNegative = 0.0  # number of pairs of earlier rounds per prompt of a round, at most; 0: none
    last: Count | None = 1  # number of rounds before a round that these pairs are drawn from; None: all
    dataset: NonNegative = 0.0  # number of pairs of data.dataset per prompt of a round, at most; 0: none

    @property
    def is_on(self) -> bool:
        return bool(self.earlier_rounds or self.dataset)


class RoundsConfig(Settings):
    """Settings of single rounds of iterative DPO, in place of those of the whole run.

    A list has a value per round, of which the last one holds for all later rounds; `{first: …, last: …}` changes
    linearly over the rounds of the run.
    """

    # sampling temperature of each round; None: rollout.temperature
    temperature: Annotated[tuple[Positive, ...], Field(min_length=1)] | Linear | None = None
    # number of completions sampled per prompt, in each round; None: algorithm.num_generations
    num_generations: Annotated[tuple[GroupSize, ...], Field(min_length=1)] | None = None
    # number of prompts sampled in each round; None: algorithm.prompts_per_step
    prompts_per_step: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    # peak learning rate of each round; None: algorithm.learning_rate
    learning_rate: Annotated[tuple[Rate, ...], Field(min_length=1)] | LinearRates | None = None
    # coefficient of the log-ratio to the reference, in each round; None: algorithm.beta
    beta: Annotated[tuple[Positive, ...], Field(min_length=1)] | Linear | None = None
    # number of passes over each round's pairs; None: algorithm.num_iterations
    num_iterations: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    # prompts of a round; stream: the next ones of data.prompts in random order, again from all after the last; fixed:
    # the same ones in every round; disjoint: as stream, refused if a prompt would come twice; files: those of one file
    # of data.prompts per round; cycle_files: the same, from the first file again after the last
    prompts: Literal["stream", "fixed", "disjoint", "files", "cycle_files"] = "stream"
    # weights that a round starts to learn from; previous: those of the round before; base: those of the model that the
    # run starts from, with a fresh optimiser. Samples are always of the latest policy
    policy: Literal["previous", "base"] = "previous"
    mix: MixConfig = MixConfig()  # pairs of earlier rounds and of data.dataset, mixed into each round


SECTIONS: Mapping[str, str] = {
    # scheduled setting → section of the config that it belongs to
    "temperature": "rollout",
    "num_generations": "algorithm",
    "prompts_per_step": "algorithm",
    "learning_rate": "algorithm",
    "beta": "algorithm",
    "num_iterations": "algorithm",
}


def of_round(config: RunConfig, index: int) -> RunConfig:
    """Return the config of the round `index`, from 0: the values of its round, in the sections that they belong to."""
    values = {name: _value(schedule, config, index) for name, schedule in _schedules(config.rounds).items()}
    return _with(config, values)


def largest(config: RunConfig) -> RunConfig:
    """Return the config of a round that has the largest value of each schedule."""
    values = {
        name: max(schedule if isinstance(schedule, tuple) else (schedule.first, schedule.last))
        for name, schedule in _schedules(config.rounds).items()
    }
    return _with(config, values)


def learner_settings(config: RunConfig, index: int) -> dict[str, Number | bool]:
    """Return the settings of the algorithm that the round `index` has in place of those of the run.

    Example: `{"learning_rate": 5e-7, "beta": 0.05}`.
    """
    own = config.rounds
    changed = [name for name in _schedules(config.rounds) if SECTIONS[name] == "algorithm"]
    changed += ["reset_optimizer"] if own.policy == "base" else []
    algorithm = of_round(config, index).algorithm
    return {name: getattr(algorithm, name) for name in changed}


def prompts_per_round(config: RunConfig) -> tuple[int, ...]:
    """Return the number of prompts of each round of the run."""
    assert isinstance(config.algorithm, Sampled)
    given = config.rounds.prompts_per_step or (config.algorithm.prompts_per_step,)
    return tuple(given[min(index, len(given) - 1)] for index in range(config.algorithm.max_steps or 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class NumMixed:
    """Number of pairs that are mixed into a round, at most."""

    earlier: int  # of earlier rounds
    dataset: int  # of data.dataset


def mixed_per_round(config: RunConfig) -> tuple[NumMixed, ...]:
    """Return the number of pairs that are mixed into each round of the run, at most."""
    own = config.rounds.mix
    return tuple(
        NumMixed(earlier=round(own.earlier_rounds * prompts) if index else 0, dataset=round(own.dataset * prompts))
        for index, prompts in enumerate(prompts_per_round(config))
    )


def round_values(config: RunConfig, index: int) -> dict[str, Number]:
    """Return the scheduled values of the round `index`, by the name of the setting. Empty without schedules."""
    return {name: _value(schedule, config, index) for name, schedule in _schedules(config.rounds).items()}


def _schedules(own: RoundsConfig) -> dict[str, Any]:
    found = {
        "temperature": own.temperature,
        "num_generations": own.num_generations,
        "prompts_per_step": own.prompts_per_step,
        "learning_rate": own.learning_rate,
        "beta": own.beta,
        "num_iterations": own.num_iterations,
    }
    return {name: schedule for name, schedule in found.items() if schedule is not None}


def _value(schedule: Any, config: RunConfig, index: int) -> Number:
    if isinstance(schedule, tuple):
        return cast(Number, schedule[min(index, len(schedule) - 1)])
    count = config.algorithm.max_steps or 1
    share = min(index, count - 1) / max(count - 1, 1)
    return float(schedule.first + share * (schedule.last - schedule.first))


def _with(config: RunConfig, values: Mapping[str, Number]) -> RunConfig:
    sections: dict[str, dict[str, Any]] = {"rollout": {}, "algorithm": {}}
    for name, value in values.items():
        sections[SECTIONS[name]][name] = value
    if config.rounds.policy == "base":
        sections["algorithm"]["reset_optimizer"] = True
    update = {name: getattr(config, name).model_copy(update=own) for name, own in sections.items() if own}
    return config.model_copy(update=update) if update else config
