"""Does a method have room on the cluster, and what would a run of its recipe on these data cost? Asks the planner."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.advise.facts import Facts, can_be_checked
from orchestrator.advise.methods import GIVEN_REWARD_MODEL, REWARD_MODEL, Method, recipe_of
from orchestrator.advise.reading import Source
from orchestrator.config import Recipe, RunConfig, load
from orchestrator.data.formats import ACCEPTS, Format
from orchestrator.plan.advice import as_overrides
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.work import Lengths

ADAPTERS = "model.lora={r: 32, lora_alpha: 64}"
ADAPTER_RATE = 10.0  # times the learning rate of whole weights
CHECKED = (Method.grpo, Method.iterative_dpo)


@dataclass(frozen=True, kw_only=True, slots=True)
class Feasibility:
    """One method on the cluster. `overrides`: what turns its recipe into a run on these data and GPUs."""

    method: Method
    recipe: Path
    overrides: tuple[str, ...]
    plans: tuple[Plan, ...]  # of its stages
    adapted: frozenset[str]  # stages that fit with LoRA only

    @property
    def fits(self) -> bool:
        return all(map(_fits, self.plans))

    @property
    def fewest(self) -> int | None:
        """GPUs that would be enough, where these are not; None: no number is."""
        needed = [plan.fewest for plan in self.plans if not _fits(plan)]
        known = [count for count in needed if count is not None]
        return max(known) if known and len(known) == len(needed) else None

    @property
    def seconds(self) -> float | None:
        """Of the whole run on these GPUs, one stage after the other; None: it does not fit, or its end is not known."""
        return self._sum(lambda plan, steps: plan.best.time.step_s * steps)

    @property
    def gpu_hours(self) -> float | None:
        return self._sum(lambda plan, steps: plan.gpu_hours(plan.best.time.step_s, plan.best.num_gpus, steps))

    @property
    def dollars(self) -> float | None:
        hours = self.gpu_hours
        return None if hours is None else hours * self.plans[-1].price

    @property
    def gpu_hours_per_1000(self) -> float | None:
        """For a thousand completions of the last stage; None: it does not fit."""
        return self.plans[-1].gpu_hours_per_1000(self.plans[-1].best) if self.fits else None

    @property
    def command(self) -> str:
        return shlex.join(["rlhf", "run", str(self.recipe), *self.overrides])

    def _sum(self, of_plan: Callable[[Plan, int], float]) -> float | None:
        if not self.fits:
            return None
        known = [of_plan(plan, plan.work.steps) for plan in self.plans if plan.work.steps is not None]
        return math.fsum(known) if len(known) == len(self.plans) and all(map(math.isfinite, known)) else None


def _fits(plan: Plan) -> bool:
    """In some placement, with what it learns unchanged."""
    return bool(plan.placements) and not plan.changes_learning


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What is there: GPUs, the model to train, and data."""

    gpu: Gpu
    num_gpus: int
    model: str | None  # its directory or hub name; None: the recipes' own
    large: bool  # nearer to 70B than to 8B
    sources: tuple[Source, ...]
    facts: Facts

    def fit(self, method: Method, settings: Sequence[str] = ()) -> Feasibility | None:
        """`method` with whole weights, or with adapters in the stages where these do not fit. `settings`: further
        overrides. None: no source has what it learns from.

        Raises:
            BadInput: when the project's recipes are not here.
        """
        if not self._feeds(method):
            return None
        whole = self._planned(method, settings)
        if whole.fits:
            return whole
        adapted = self._planned(method, settings, frozenset(plan.name for plan in whole.plans if not _fits(plan)))
        return adapted if adapted.fits else min(whole, adapted, key=lambda fit: fit.fewest or math.inf)

    def _feeds(self, method: Method) -> bool:
        """Whether every stage of its recipe finds data, and distillation a larger teacher than the model."""
        if method == Method.distill and self.large:
            return False
        formats = {source.format for source in self.sources}
        return all(
            bool(formats & set(ACCEPTS[config.algorithm.type]))
            if config.data.dataset is not None
            else any(source.prompts for source in self.sources)
            for config in load(recipe_of(method, large=self.large)).stages
        )

    def _planned(self, method: Method, settings: Sequence[str], adapted: Collection[str] = frozenset()) -> Feasibility:
        recipe = recipe_of(method, large=self.large)
        stages = load(recipe).stages
        overrides = [
            prefix + override
            for config, prefix in zip(stages, _prefixes(stages), strict=True)
            for override in (
                *self._model(config, stages),
                *self._data(method, config, stages),
                *(settings if config is stages[-1] else ()),
                *(_with_adapters(config) if config.name in adapted else ()),
            )
        ]
        planned = load(recipe, [override.replace(REWARD_MODEL, GIVEN_REWARD_MODEL) for override in overrides])
        plans = tuple(self._plan(planned, config) for config in planned.stages)
        for plan, prefix in zip(plans, _prefixes(stages), strict=True):
            overrides += [prefix + change for change in as_overrides(plan.best.changes)]
        return Feasibility(
            method=method, recipe=recipe, overrides=tuple(overrides), plans=plans, adapted=frozenset(adapted)
        )

    def _plan(self, recipe: Recipe, config: RunConfig) -> Plan:
        facts = self.facts
        lengths = Lengths(
            prompt=_at_least_one(facts.prompt_tokens),
            response=_at_least_one(facts.response_tokens),
            rows=next((s.num_rows for s in self.sources if s.name == config.data.dataset), None),
        )
        return make_plan(config, self.gpu, before=recipe.before(config), given=self.num_gpus, lengths=lengths)

    def _model(self, config: RunConfig, stages: Sequence[RunConfig]) -> list[str]:
        """The model to train in the place of the recipe's own; a reward model that is smaller there stays."""
        path, trained = config.model.path, stages[-1].model.path
        return [f"model.path={self.model}"] if self.model not in (None, path) and path == trained else []

    def _data(self, method: Method, config: RunConfig, stages: Sequence[RunConfig]) -> list[str]:
        if config is not stages[-1]:  # a reward model comes first
            given = [f"data.dataset={self._largest(ACCEPTS['reward_model']).name}"]
            if config.data.eval_dataset is not None:  # the recipe's own pairs, with which these have nothing to do
                given += ["data.eval_dataset=null", "evaluation.every=null"]
            return given
        if config.data.dataset is not None:
            return [f"data.dataset={self._largest(ACCEPTS[config.algorithm.type]).name}"]
        check = self.facts.check if method in CHECKED else None
        given = [f"data.prompts={self._prompts(check.column if check else '')}"]
        if method == Method.iterative_dpo_given:
            given.append(f"reward=[{{type: model, path: {REWARD_MODEL}, max_length: 4096}}]")
        elif check is not None and check.reward != "math":
            given.append(f"reward={check.setting}")
        return given

    def _prompts(self, column: str) -> str:
        """The source with the most prompts, of those with `column` where some have it."""
        having = [source for source in self.sources if source.prompts]
        checked = [source for source in having if column and can_be_checked(source, column)]
        return max(checked or having, key=lambda source: len(source.prompts)).name

    def _largest(self, formats: Sequence[Format]) -> Source:
        return max((s for s in self.sources if s.format in formats), key=lambda source: source.num_rows)


def _prefixes(stages: Sequence[RunConfig]) -> list[str]:
    """Of overrides: none for the last stage."""
    return [f"stages.{config.name}." for config in stages[:-1]] + [""]


def _with_adapters(config: RunConfig) -> list[str]:
    return [ADAPTERS, f"algorithm.learning_rate={config.algorithm.learning_rate * ADAPTER_RATE:.3g}"]


def _at_least_one(tokens: float | None) -> float | None:
    return None if tokens is None else max(1.0, tokens)
