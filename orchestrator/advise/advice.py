"""Choose a method and a runner-up by rules on the data and on what fits, and find what would change the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

from orchestrator.advise.facts import Check, Facts, measure
from orchestrator.advise.feasibility import Cluster, Feasibility
from orchestrator.advise.methods import LARGE_PARAMS, Method
from orchestrator.advise.reading import read
from orchestrator.advise.rules import CAUTIONS, ENOUGH_PAIRS, METHODS, SETTINGS, Caution, Rule, Setting, is_on_policy
from orchestrator.errors import BadInput, Problem
from orchestrator.plan.gpus import CPU_RANK, Gpu
from orchestrator.plan.models import find

DEFAULT_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
HUB_NAMES = {"llama-3-8b": DEFAULT_MODEL, "llama-3-70b": "meta-llama/Llama-3.3-70B-Instruct"}


FitOf: TypeAlias = Callable[[Method], Feasibility | None]
"""Function that returns whether a method fits and what it costs; None if no file has training data for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A method, the rule that selects it, and how to start it on this cluster."""

    rule: Rule
    settings: tuple[Setting, ...]
    fit: Feasibility

    @property
    def method(self) -> Method:
        return self.rule.method


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A hypothetical change, and the method that would be advised after it.

    Example: `Change(what="the answers could be checked", then="GRPO")`.
    """

    what: str
    then: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    cluster: Cluster
    model: str  # as given, or the default
    model_given: bool
    first: Choice
    runner_up: Choice | None  # None: the data allow no second method that fits
    infeasible: tuple[Feasibility, ...]  # methods with a higher priority that do not fit
    before: Feasibility | None  # SFT on demonstrations that the data contain as well
    changes: tuple[Change, ...]
    cautions: tuple[Caution, ...]  # what to do about the data first

    @property
    def facts(self) -> Facts:
        return self.cluster.facts


def advise(names: Sequence[str], count: int | None, gpu: Gpu, *, model: str | None, verifiable: bool) -> Advice:
    """Advise a method for the data `names` on `count` GPUs of type `gpu`.

    Args:
        model: Model to train, by name or directory; None: an 8B model.
        verifiable: A program can check the answers.

    Raises:
        BadInput: if the data have errors (all are listed), the planner does not know the model, or no method fits.
    """
    if count is None or gpu is CPU_RANK:
        what = f"--gpus {gpu.name}"
        fix = "give the number and type of GPUs: --gpus 64xH100"
        raise BadInput(Problem(what=what, why="the advice depends on what fits on the cluster", fix=fix))
    path = HUB_NAMES.get(model, model) if model is not None else None
    large = _is_large(path or DEFAULT_MODEL, option=model)
    sources = read(names)
    facts = measure(sources, path, verifiable=verifiable)
    cluster = Cluster(gpu=gpu, num_gpus=count, model=path, large=large, sources=tuple(sources), facts=facts)
    _require_prompts(facts)
    fit_of = cache(lambda method: cluster.fit(method, _overrides(method, facts)))
    selected, infeasible = decide(facts, fit_of)
    if not selected:
        raise _nothing_fits(cluster, infeasible)
    choices = [Choice(rule=rule, settings=_settings(rule.method, facts), fit=fit) for rule, fit in selected]
    return Advice(
        cluster=cluster,
        model=model or DEFAULT_MODEL,
        model_given=model is not None,
        first=choices[0],
        runner_up=choices[1] if len(choices) > 1 else None,
        infeasible=tuple(infeasible),
        before=fit_of(Method.sft) if facts.demonstrations and choices[0].method != Method.sft else None,
        changes=tuple(_changes(facts, fit_of, choices[0], infeasible)),
        cautions=tuple(caution for caution in CAUTIONS if caution.when(facts)),
    )


def decide(facts: Facts, fit_of: FitOf) -> tuple[list[tuple[Rule, Feasibility]], list[Feasibility]]:
    """Return the first two rules that hold and whose methods fit, and the methods before them that do not fit."""
    selected: list[tuple[Rule, Feasibility]] = []
    infeasible: list[Feasibility] = []
    for rule in METHODS:
        seen = {r.method for r, _ in selected} | {fit.method for fit in infeasible}
        if len(selected) == 2 or rule.method in seen or not rule.when(facts):
            continue
        fit = fit_of(rule.method)
        if fit is not None and fit.fits:
            selected.append((rule, fit))
        elif fit is not None:
            infeasible.append(fit)
    return selected, infeasible


def _settings(method: Method, facts: Facts) -> tuple[Setting, ...]:
    return tuple(s for s in SETTINGS if method in s.methods and s.when(facts))


def _overrides(method: Method, facts: Facts) -> tuple[str, ...]:
    return tuple(override for setting in _settings(method, facts) for override in setting.overrides(facts))


def _is_large(path: str, *, option: str | None) -> bool:
    shape = find(path)
    if shape is None:
        why = "not a directory with a config.json, not in the planner's table, not in the Hub cache"
        fix = "give a directory with a config.json, or a model of the same size from the planner's table: llama-3-70b"
        raise BadInput(Problem(what=f"--model {option}", why=why, fix=fix))
    return shape.num_params >= LARGE_PARAMS


def _require_prompts(facts: Facts) -> None:
    if facts.declared_checkable and not facts.prompts:
        why = "only sampled answers can be checked, and no row has a `prompt` to sample for"
        raise BadInput(Problem(what="--verifiable", why=why, fix="add a file of prompts"))


def _nothing_fits(cluster: Cluster, infeasible: Sequence[Feasibility]) -> BadInput:
    available = f"{cluster.num_gpus} x {cluster.gpu.name}"
    fewest = [(fit.fewest, fit.method) for fit in infeasible if fit.fewest is not None]
    needs = [f"{method} needs {count}" for count, method in fewest]  # with LoRA where that needs fewer
    why = "; ".join(needs) or f"no number of {cluster.gpu.name} is enough for any of them"
    fix = f"--gpus {min(fewest)[0]}x{cluster.gpu.name}, or a smaller --model" if fewest else "give a smaller --model"
    return BadInput(Problem(what=f"no method for these data fits on {available}", why=why, fix=fix))


# ------------------------------------------------------------------------------------------------ what if


WHAT_IFS: tuple[tuple[str, Callable[[Facts], bool], Callable[[Facts], Facts]], ...] = (
    # (hypothetical change, whether it applies to the facts, the facts after it)
    (
        "the answers could be checked: a solution, tests or a schema for each prompt (or --verifiable)",
        lambda f: f.check is None and f.prompts > 0,
        lambda f: replace(f, check=Check(reward="function")),
    ),
    (
        "the answers could not be checked",
        lambda f: f.check is not None,
        lambda f: replace(f, check=None),
    ),
    (
        "most completions were this model's own samples",
        lambda f: f.pairs > 0 and not is_on_policy(f),
        lambda f: replace(f, own=1.0),
    ),
    (
        "most completions were written by other models",
        lambda f: f.pairs > 0 and is_on_policy(f),
        lambda f: replace(f, own=0.0),
    ),
    (
        f"there were at least {ENOUGH_PAIRS} distinct pairs",
        lambda f: 0 < f.pairs < ENOUGH_PAIRS,
        lambda f: replace(f, pairs=ENOUGH_PAIRS),
    ),
    (
        f"there were fewer than {ENOUGH_PAIRS} distinct pairs",
        lambda f: f.pairs >= ENOUGH_PAIRS,
        lambda f: replace(f, pairs=ENOUGH_PAIRS - 1),
    ),
    (
        "each row had its own `prompt`",
        lambda f: f.prompts == 0,
        lambda f: replace(f, prompts=1),
    ),
)


def _changes(facts: Facts, fit_of: FitOf, first: Choice, infeasible: Sequence[Feasibility]) -> list[Change]:
    """Return the hypothetical changes after which the rules select another method."""
    gpu = first.fit.plans[-1].gpu.name
    changes = [Change(what=f"there were {fit.fewest} {gpu}", then=str(fit.method)) for fit in infeasible if fit.fewest]
    for what, applies, changed in WHAT_IFS:
        if applies(facts):
            other = first_method(changed(facts), fit_of)
            if other is not None and other != first.method:
                changes.append(Change(what=what, then=str(other)))
    return changes


def first_method(facts: Facts, fit_of: FitOf) -> Method | None:
    """Return the first method whose rule holds and that fits, or whose fit is unknown for lack of data."""
    candidates = ((rule.method, fit_of(rule.method)) for rule in METHODS if rule.when(facts))
    return next((method for method, fit in candidates if fit is None or fit.fits), None)
