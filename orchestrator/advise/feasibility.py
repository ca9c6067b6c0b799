"""Ask the planner whether a method fits on the cluster, and what a run of its recipe on these data costs."""

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
ADAPTER_RATE = 10.0  # learning rate of adapters, relative to that of full fine-tuning
CHECKED = (Method.grpo, Method.iterative_dpo)


@dataclass(frozen=True, kw_only=True, slots=True)
class Feasibility:
    """Plans of one method on the cluster."""

    method: Method
    recipe: Path
    overrides: tuple[str, ...]  # turn the recipe into a run on these data and GPUs
    plans: tuple[Plan, ...]  # one per stage
    adapted: frozenset[str]  # stages that fit with LoRA only

    @property
    def fits(self) -> bool:
        return all(map(_fits, self.plans))

    @property
    def fewest(self) -> int | None:
        """Number of GPUs that would be enough if these are not; None: no number is."""
        needed = [plan.fewest for plan in self.plans if not _fits(plan)]
        counts = [count for count in needed if count is not None]
        return max(counts) if counts and len(counts) == len(needed) else None

    @property
    def seconds(self) -> float | None:
        """Duration of all stages on these GPUs; None: it does not fit, or its number of steps is unknown."""
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
        """GPU-hours for 1000 completions of the last stage; None: it does not fit."""
        return self.plans[-1].gpu_hours_per_1000(self.plans[-1].best) if self.fits else None

    @property
    def command(self) -> str:
        return shlex.join(["rlhf", "run", str(self.recipe), *self.overrides])

    def _sum(self, of_plan: Callable[[Plan, int], float]) -> float | None:
        if not self.fits:
            return None
        values = [of_plan(plan, plan.work.steps) for plan in self.plans if plan.work.steps is not None]
        return math.fsum(values) if len(values) == len(self.plans) and all(map(math.isfinite, values)) else None


def _safety_prompts(config: RunConfig, recipe: Path) -> list[str]:
    """Return overrides with absolute paths of the project's safety prompts, for a recipe beside the code."""
    safety = (("eval_harmful", config.data.eval_harmful), ("eval_benign", config.data.eval_benign))
    root = recipe.parents[2]
    return [f"data.{key}={root / source}" for key, source in safety if source is not None and recipe.is_absolute()]


def _fits(plan: Plan) -> bool:
    """Return True if the plan fits in some placement with unchanged training."""
    return bool(plan.placements) and not plan.changes_training


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """GPUs, the model to train, and the data."""

    gpu: Gpu
    num_gpus: int
    model: str | None  # directory or Hub name; None: the model of the recipe
    large: bool  # use the 70B recipes instead of the 8B ones
    sources: tuple[Source, ...]
    facts: Facts

    def fit(self, method: Method, settings: Sequence[str] = ()) -> Feasibility | None:
        """Plan `method` with full fine-tuning, or with LoRA in the stages that do not fit otherwise.

        `settings` are further overrides. The result is None if no source has training data for the method.

        Raises:
            BadInput: if the project's recipes are not found.
        """
        if not self._has_data_for(method):
            return None
        full = self._planned(method, settings)
        if full.fits:
            return full
        adapted = self._planned(method, settings, frozenset(plan.name for plan in full.plans if not _fits(plan)))
        return adapted if adapted.fits else min(full, adapted, key=lambda fit: fit.fewest or math.inf)

    def _has_data_for(self, method: Method) -> bool:
        """Return True if the data cover every stage of the recipe (for distillation: and the teacher is larger)."""
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
                *_safety_prompts(config, recipe),
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
        """Replace the recipe's model by the model to train, except in a stage with another model (a reward model)."""
        path, trained = config.model.path, stages[-1].model.path
        return [f"model.path={self.model}"] if self.model not in (None, path) and path == trained else []

    def _data(self, method: Method, config: RunConfig, stages: Sequence[RunConfig]) -> list[str]:
        if config.data.dataset is not None:
            trained = "reward_model" if config is not stages[-1] else config.algorithm.type
            overrides = [f"data.dataset={self._largest(ACCEPTS[trained]).name}"]
            if config.data.eval_dataset is not None:  # pairs of the recipe, unrelated to these data
                overrides += ["data.eval_dataset=null", "evaluation.every=null"]
            return overrides
        check = self.facts.check if method in CHECKED else None
        overrides = [f"data.prompts={self._prompts(check.column if check else '')}"]
        if method == Method.iterative_dpo_given:
            overrides.append(f"reward=[{{type: model, path: {REWARD_MODEL}, max_length: 4096}}]")
        elif check is not None and check.reward != "math":
            overrides.append(f"reward={check.setting}")
        if config.data.eval_prompts is not None:  # prompts of the recipe, unrelated to these data
            overrides.append("data.eval_prompts=null")
        if config.evaluation.num_samples:
            overrides.append("evaluation.num_samples=0")
        return overrides

    def _prompts(self, column: str) -> str:
        """Return the source with the most prompts, preferring sources with `column`."""
        candidates = [source for source in self.sources if source.prompts]
        checked = [source for source in candidates if column and can_be_checked(source, column)]
        return max(checked or candidates, key=lambda source: len(source.prompts)).name

    def _largest(self, formats: Sequence[Format]) -> Source:
        return max((s for s in self.sources if s.format in formats), key=lambda source: source.num_rows)


def _prefixes(stages: Sequence[RunConfig]) -> list[str]:
    """Return the override prefix of each stage; it is empty for the last one."""
    return [f"stages.{config.name}." for config in stages[:-1]] + [""]


def _with_adapters(config: RunConfig) -> list[str]:
    return [ADAPTERS, f"algorithm.learning_rate={config.algorithm.learning_rate * ADAPTER_RATE:.3g}"]


def _at_least_one(tokens: float | None) -> float | None:
    return None if tokens is None else max(1.0, tokens)
