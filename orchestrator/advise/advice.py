"""What to try first, and what next to it: rules over facts and room, and what would change the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

from orchestrator.advise.facts import Check, Facts, measure
from orchestrator.advise.feasibility import Cluster, Feasibility
from orchestrator.advise.methods import LARGE_PARAMS, Method
from orchestrator.advise.reading import read
from orchestrator.advise.rules import ENOUGH_PAIRS, METHODS, SETTINGS, Rule, Setting, written_by_itself
from orchestrator.errors import BadInput, Problem
from orchestrator.plan.gpus import CPU_RANK, Gpu
from orchestrator.plan.models import find

DEFAULT_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
HUB_NAMES = {"llama-3-8b": DEFAULT_MODEL, "llama-3-70b": "meta-llama/Llama-3.3-70B-Instruct"}


FitOf: TypeAlias = Callable[[Method], Feasibility | None]
"""How a method fits and what it costs; None: no file has what it learns from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A method, the rule that names it, and how to start it here."""

    rule: Rule
    settings: tuple[Setting, ...]
    fit: Feasibility

    @property
    def method(self) -> Method:
        return self.rule.method


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Something that is not so, and what would be advised if it were.

    Example: `Change(what="the answers could be checked", then="GRPO")`.
    """

    what: str
    then: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    cluster: Cluster
    model: str  # as it was told, or the one that is assumed
    model_told: bool
    first: Choice
    runner_up: Choice | None  # None: these data allow no second method that has room
    infeasible: tuple[Feasibility, ...]  # methods that the data allow before these, and the GPUs do not
    before: Feasibility | None  # SFT on the demonstrations that are there as well
    changes: tuple[Change, ...]

    @property
    def facts(self) -> Facts:
        return self.cluster.facts


def advise(names: Sequence[str], count: int | None, gpu: Gpu, *, model: str | None, verifiable: bool) -> Advice:
    """For the data `names` and `count` GPUs of kind `gpu`.

    Raises:
        BadInput: with everything that is wrong in the data; for a model that the planner does not know; when nothing
            that the data allow has room.
    """
    if count is None or gpu is CPU_RANK:
        what = f"--gpus {gpu.name}"
        fix = "say how many there are, and of which kind: --gpus 64xH100"
        raise BadInput(Problem(what=what, why="advice depends on what fits into them", fix=fix))
    path = HUB_NAMES.get(model, model) if model is not None else None
    large = _is_large(path or DEFAULT_MODEL, told=model)
    sources = read(names)
    facts = measure(sources, path, verifiable=verifiable)
    cluster = Cluster(gpu=gpu, num_gpus=count, model=path, large=large, sources=tuple(sources), facts=facts)
    _require_prompts(facts)
    fit_of = cache(lambda method: cluster.fit(method, _overrides(method, facts)))
    found, infeasible = decide(facts, fit_of)
    if not found:
        raise _nothing_fits(cluster, infeasible)
    choices = [Choice(rule=rule, settings=_settings(rule.method, facts), fit=fit) for rule, fit in found]
    return Advice(
        cluster=cluster,
        model=model or DEFAULT_MODEL,
        model_told=model is not None,
        first=choices[0],
        runner_up=choices[1] if len(choices) > 1 else None,
        infeasible=tuple(infeasible),
        before=fit_of(Method.sft) if facts.demonstrations and choices[0].method != Method.sft else None,
        changes=tuple(_changes(facts, fit_of, choices[0], infeasible)),
    )


def decide(facts: Facts, fit_of: FitOf) -> tuple[list[tuple[Rule, Feasibility]], list[Feasibility]]:
    """(the first two rules that hold with different methods that have room, methods before them that have none)."""
    found: list[tuple[Rule, Feasibility]] = []
    infeasible: list[Feasibility] = []
    for rule in METHODS:
        asked = {r.method for r, _ in found} | {fit.method for fit in infeasible}
        if len(found) == 2 or rule.method in asked or not rule.when(facts):
            continue
        fit = fit_of(rule.method)
        if fit is not None and fit.fits:
            found.append((rule, fit))
        elif fit is not None:
            infeasible.append(fit)
    return found, infeasible


def _settings(method: Method, facts: Facts) -> tuple[Setting, ...]:
    return tuple(s for s in SETTINGS if method in s.methods and s.when(facts))


def _overrides(method: Method, facts: Facts) -> tuple[str, ...]:
    return tuple(override for setting in _settings(method, facts) for override in setting.overrides(facts))


def _is_large(path: str, *, told: str | None) -> bool:
    shape = find(path)
    if shape is None:
        why = "it is no directory with a config.json, not in the planner's table, and not in the hub cache"
        fix = "give a directory that holds a config.json, or a model of the same size that it knows: llama-3-70b"
        raise BadInput(Problem(what=f"--model {told}", why=why, fix=fix))
    return shape.num_params >= LARGE_PARAMS


def _require_prompts(facts: Facts) -> None:
    if facts.told_checkable and not facts.prompts:
        why = "answers are checked of completions that are sampled for prompts, and no row has a `prompt`"
        raise BadInput(Problem(what="--verifiable", why=why, fix="give a file of prompts as well"))


def _nothing_fits(cluster: Cluster, infeasible: Sequence[Feasibility]) -> BadInput:
    there = f"{cluster.num_gpus} x {cluster.gpu.name}"
    fewest = [(fit.fewest, fit.method) for fit in infeasible if fit.fewest is not None]
    needs = [f"{method} needs {count}" for count, method in fewest]  # with adapters where that is fewer
    why = "; ".join(needs) or f"no number of {cluster.gpu.name} has room for any of them"
    fix = f"--gpus {min(fewest)[0]}x{cluster.gpu.name}, or a smaller --model" if fewest else "give a smaller --model"
    return BadInput(Problem(what=f"no method that these data allow fits into {there}", why=why, fix=fix))


# ------------------------------------------------------------------------------------------------ what if


WHAT_IFS: tuple[tuple[str, Callable[[Facts], bool], Callable[[Facts], Facts]], ...] = (
    # (what is not so, whether it could be asked, the facts if it were)
    (
        "the answers could be checked: a solution, tests or a schema for each prompt (or --verifiable)",
        lambda f: f.check is None and f.prompts > 0,
        lambda f: replace(f, check=Check(reward="function")),
    ),
    (
        "the answers could not be checked after all",
        lambda f: f.check is not None,
        lambda f: replace(f, check=None),
    ),
    (
        "most completions were this model's own samples",
        lambda f: f.pairs > 0 and not written_by_itself(f),
        lambda f: replace(f, own=1.0),
    ),
    (
        "most completions were other models'",
        lambda f: f.pairs > 0 and written_by_itself(f),
        lambda f: replace(f, own=0.0),
    ),
    (
        f"there were {ENOUGH_PAIRS} distinct pairs or more",
        lambda f: 0 < f.pairs < ENOUGH_PAIRS,
        lambda f: replace(f, pairs=ENOUGH_PAIRS),
    ),
    (
        f"there were fewer than {ENOUGH_PAIRS} distinct pairs",
        lambda f: f.pairs >= ENOUGH_PAIRS,
        lambda f: replace(f, pairs=ENOUGH_PAIRS - 1),
    ),
    (
        "each row had a `prompt` of its own to sample for",
        lambda f: f.prompts == 0,
        lambda f: replace(f, prompts=1),
    ),
)


def _changes(facts: Facts, fit_of: FitOf, first: Choice, infeasible: Sequence[Feasibility]) -> list[Change]:
    """What would lead to another method, tried out on the rules themselves."""
    gpu = first.fit.plans[-1].gpu.name
    found = [Change(what=f"there were {fit.fewest} {gpu}", then=str(fit.method)) for fit in infeasible if fit.fewest]
    for what, possible, changed in WHAT_IFS:
        if possible(facts):
            other = first_method(changed(facts), fit_of)
            if other is not None and other != first.method:
                found.append(Change(what=what, then=str(other)))
    return found


def first_method(facts: Facts, fit_of: FitOf) -> Method | None:
    """That has room, or of which these files cannot say."""
    fits_found = ((rule.method, fit_of(rule.method)) for rule in METHODS if rule.when(facts))
    return next((method for method, fit in fits_found if fit is None or fit.fits), None)
