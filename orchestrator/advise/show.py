"""Advice as a person reads it, and for programs. It says what was measured, what was told, and what is assumed."""

from __future__ import annotations

import shlex
import textwrap
from typing import Any

from orchestrator.advise.advice import Advice, Choice
from orchestrator.advise.facts import BYTES_PER_TOKEN, CHECKABLE, Facts
from orchestrator.advise.feasibility import Feasibility
from orchestrator.advise.methods import REWARD_MODEL, Method
from orchestrator.advise.rules import USUAL_AGREEMENT
from orchestrator.evaluation.statistics import Interval
from orchestrator.plan.format import dollars, seconds
from orchestrator.plan.plan import NOT_MEASURED
from orchestrator.terminal import say

WIDTH = 80  # of a terminal, or of a page to paste it into
SHOWN_MODELS = 3
MANY = 0.02  # share of rows from which on repeats are worth a word


def show(advice: Advice) -> None:
    first, cluster = advice.first, advice.cluster
    say(f"Try first: {first.method}")
    say(f"  {advice.model} on {cluster.num_gpus} x {cluster.gpu.name}")
    _choice(first)
    if advice.before is not None:
        say("\nBefore it, unless the model follows instructions already: SFT on the demonstrations")
        _command(advice.before)
    if advice.runner_up is not None:
        say(f"\nRunner-up: {advice.runner_up.method}")
        _choice(advice.runner_up)
    for fit in advice.infeasible:
        _say(f"No room: {fit.method}, {_needs(fit)}", before="\n")
    for head, lines in (
        ("Measured", measured(advice)),
        ("Told", given(advice)),
        ("Assumed", assumed(advice)),
        ("It would be another answer if", [f"{change.what}: {change.then}" for change in advice.changes]),
    ):
        if lines:
            say(f"\n{head}")
            for line in lines:
                _say(line, "  - ")


def _choice(choice: Choice) -> None:
    _say(f"{choice.rule.why} ({', '.join(choice.rule.sources)})", "  why:  ")
    for setting in choice.settings:
        _say(f"{setting.why} ({', '.join(setting.sources)})", "  also: ")
    if choice.fit.adapted:
        _say("whole weights have no room here, adapters (LoRA) do (arXiv 2106.09685)", "  also: ")
    _say(cost(choice.fit), "  cost: ")
    _command(choice.fit)


def _say(text: str, head: str = "", *, before: str = "") -> None:
    """In lines of 80 columns, under one another."""
    lines = textwrap.wrap(text, WIDTH - len(head), break_long_words=False, break_on_hyphens=False)
    say(before + "\n".join((" " * len(head) if i else head) + line for i, line in enumerate(lines)))


def _command(fit: Feasibility) -> None:
    """To be pasted as it is: lines that go on end in a backslash."""
    lines = [f"  rlhf run {fit.recipe}"]
    for override in map(shlex.quote, fit.overrides):
        if len(lines[-1]) + len(override) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {override}"
    say("\n".join(lines))


def cost(fit: Feasibility) -> str:
    """Of the whole run where its end is known, else of a thousand completions."""
    total, money, time = fit.gpu_hours, fit.dollars, fit.seconds
    if total is not None and money is not None and time is not None:
        steps = " and ".join(f"{plan.work.steps} steps" for plan in fit.plans)
        return f"{steps}: {seconds(time)}, {total:,.3g} GPU-hours, {dollars(money)}"
    each = fit.gpu_hours_per_1000
    return "not known" if each is None else f"{each:.3g} GPU-hours per 1000 completions"


def _needs(fit: Feasibility) -> str:
    gpu = fit.plans[-1].gpu.name
    if fit.fewest is None:
        return f"no number of {gpu} is enough"
    return f"the fewest on which it fits: {fit.fewest} {gpu}{' (with adapters)' if fit.adapted else ''}"


# ------------------------------------------------------------------------------------------------ what it rests on


def measured(advice: Advice) -> list[str]:
    facts = advice.facts
    counts = {
        "distinct comparisons": facts.pairs,
        "completions called good": facts.good,
        "called bad": facts.bad,
        "demonstrations": facts.demonstrations,
        "distinct prompts to sample for": facts.prompts,
    }
    lines = [", ".join(f"{count:,} {name}" for name, count in counts.items() if count)]
    rows = sum(source.num_rows for source in advice.cluster.sources)
    if facts.repeated >= MANY * rows:
        lines.append(f"{facts.repeated:,} of {rows:,} rows repeat an earlier one")
    if facts.contradictory:
        lines.append(f"of {facts.contradictory:,} comparisons the data say the one and the opposite")
    if facts.check is not None and facts.check.column:
        lines.append(f"at least {CHECKABLE:.0%} of a file's prompts have a `{facts.check.column}`")
    if facts.agreement is not None and facts.flipped is not None:
        lines.append(
            f"two annotators agree in {_percent(facts.agreement)}; if all err alike, {facts.flipped:.0%} of the labels "
            "are wrong"
        )
    if facts.longer_chosen is not None and facts.length_ratio is not None:
        lines.append(
            f"the chosen is the longer one in {_percent(facts.longer_chosen)}, by a factor of {facts.length_ratio:.2f} "
            "in the median"
        )
    if facts.models:
        most, total = facts.models.most_common(SHOWN_MODELS), facts.models.total()
        named = ", ".join(f"{name} {count / total:.0%}" for name, count in most)
        own = "" if facts.own is None else f"; {facts.own:.0%} are this model's own"
        lines.append(f"who wrote the completions: {named}{own}")
    if facts.by_tokenizer:
        lines.append(_lengths(facts))
    return lines


def given(advice: Advice) -> list[str]:
    lines = [f"the model is {advice.model}"] if advice.model_told else []
    if advice.facts.told_checkable:
        lines.append("answers can be checked (--verifiable)")
    return lines


def assumed(advice: Advice) -> list[str]:
    facts, methods = advice.facts, {advice.first.method} | ({advice.runner_up.method} if advice.runner_up else set())
    lines = [] if advice.model_told else [f"the model is {advice.model} (--model)"]
    if facts.check is not None and not facts.check.column:
        lines.append("you write rewards.py with a function `reward` that checks an answer (docs/rewards.md)")
    elif facts.check is not None:
        lines.append(f"`{facts.check.column}` is right, and what {{type: {facts.check.reward}}} can compare with")
    elif facts.prompts:
        lines.append("answers cannot be checked by a program (else --verifiable)")
    if facts.pairs and facts.own is None:
        missing = "--model is not given" if facts.models else "no row says who wrote them"
        lines.append(f"the completions are other models' ({missing})")
    if facts.pairs and facts.agreement is None:
        lines.append(f"annotators agree as usual, in {USUAL_AGREEMENT:.0%} (no comparison has several votes)")
    if not facts.by_tokenizer:
        lines.append(f"{_lengths(facts)}, at {BYTES_PER_TOKEN:g} bytes a token")
    if facts.response_tokens is None:
        lines.append("completions are half as long as the recipe allows")
    if Method.iterative_dpo_given in methods:
        lines.append(f"you have a reward model of 8B or less, to be put in the place of {REWARD_MODEL}")
    if Method.distill in methods:
        lines.append("a better model with the same tokenizer is at hand; the recipe names a 70B one")
    lines.append("a run has as many steps as its recipe says, or one pass over a dataset")
    lines.append("what published comparisons found holds for this model and these data; a run on some of them tells")
    return [*lines, NOT_MEASURED]


def _lengths(facts: Facts) -> str:
    parts = [
        f"{what} {tokens:.0f}"
        for what, tokens in (("prompts", facts.prompt_tokens), ("completions", facts.response_tokens))
        if tokens is not None
    ]
    longest = "" if facts.longest is None else f", 99 % of the rows at most {facts.longest}"
    return f"mean tokens: {', '.join(parts)}{longest}"


def _percent(interval: Interval) -> str:
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


# ------------------------------------------------------------------------------------------------ for programs


def as_json(advice: Advice) -> dict[str, Any]:
    facts = advice.facts
    return {
        "model": advice.model,
        "gpus": advice.cluster.num_gpus,
        "gpu": advice.cluster.gpu.name,
        "first": _choice_as_json(advice.first),
        "runner_up": None if advice.runner_up is None else _choice_as_json(advice.runner_up),
        "before": None if advice.before is None else advice.before.command,
        "no_room": [{"method": fit.method.name, "fewest_gpus": fit.fewest} for fit in advice.infeasible],
        "facts": {
            "pairs": facts.pairs,
            "good": facts.good,
            "bad": facts.bad,
            "demonstrations": facts.demonstrations,
            "prompts": facts.prompts,
            "repeated": facts.repeated,
            "contradictory": facts.contradictory,
            "check": None if facts.check is None else {"reward": facts.check.reward, "column": facts.check.column},
            "agreement": _interval(facts.agreement),
            "flipped": facts.flipped,
            "longer_chosen": _interval(facts.longer_chosen),
            "length_ratio": facts.length_ratio,
            "own": facts.own,
            "prompt_tokens": facts.prompt_tokens,
            "response_tokens": facts.response_tokens,
            "longest": facts.longest,
        },
        "measured": measured(advice),
        "told": given(advice),
        "assumed": assumed(advice),
        "changes": [{"what": change.what, "then": change.then} for change in advice.changes],
    }


def _choice_as_json(choice: Choice) -> dict[str, Any]:
    return {
        "method": choice.method.name,
        "rule": choice.rule.name,
        "why": choice.rule.why,
        "sources": list(choice.rule.sources),
        "settings": [{"name": s.name, "why": s.why, "sources": list(s.sources)} for s in choice.settings],
        "adapters": sorted(choice.fit.adapted),
        "recipe": str(choice.fit.recipe),
        "overrides": list(choice.fit.overrides),
        "command": choice.fit.command,
        "seconds": choice.fit.seconds,
        "gpu_hours": choice.fit.gpu_hours,
        "dollars": choice.fit.dollars,
    }


def _interval(interval: Interval | None) -> list[float] | None:
    """[value, low, high], at 95 %."""
    return None if interval is None else [interval.value, interval.low, interval.high]
