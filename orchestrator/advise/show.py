"""Print advice as text or JSON, with what was measured, given and assumed."""

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

WIDTH = 80  # columns
SHOWN_MODELS = 3
MANY = 0.02  # share of repeated rows from which they are reported


def show(advice: Advice) -> None:
    """Print the advice for people."""
    first, cluster = advice.first, advice.cluster
    say(f"Try first: {first.method}")
    say(f"  {advice.model} on {cluster.num_gpus} x {cluster.gpu.name}")
    _choice(first)
    if advice.before is not None:
        say("\nBefore that, unless the model already follows instructions: SFT on the demonstrations")
        _command(advice.before)
    for caution in advice.cautions:
        _say(f"{caution.what(advice.facts)} ({', '.join(caution.sources)})", "Caution: ", before="\n")
    if advice.runner_up is not None:
        say(f"\nRunner-up: {advice.runner_up.method}")
        _choice(advice.runner_up)
    for fit in advice.infeasible:
        _say(f"Does not fit: {fit.method}, {_needs(fit)}", before="\n")
    for heading, lines in (
        ("Measured", measured(advice)),
        ("Given", given(advice)),
        ("Assumed", assumed(advice)),
        ("The advice would change if", [f"{change.what}: {change.then}" for change in advice.changes]),
    ):
        if lines:
            say(f"\n{heading}")
            for line in lines:
                _say(line, "  - ")


def _choice(choice: Choice) -> None:
    _say(f"{choice.rule.why} ({', '.join(choice.rule.sources)})", "  why:  ")
    for setting in choice.settings:
        _say(f"{setting.why} ({', '.join(setting.sources)})", "  also: ")
    if choice.fit.adapted:
        _say("full fine-tuning does not fit, LoRA does (arXiv 2106.09685)", "  also: ")
    _say(cost(choice.fit), "  cost: ")
    _command(choice.fit)


def _say(text: str, label: str = "", *, before: str = "") -> None:
    """Print `text` behind `label`, wrapped to 80 columns with a hanging indent."""
    lines = textwrap.wrap(text, WIDTH - len(label), break_long_words=False, break_on_hyphens=False)
    say(before + "\n".join((" " * len(label) if i else label) + line for i, line in enumerate(lines)))


def _command(fit: Feasibility) -> None:
    """Print the command of a run, ready to paste: continued lines end in a backslash."""
    lines = [f"  rlhf run {fit.recipe}"]
    for override in map(shlex.quote, fit.overrides):
        if len(lines[-1]) + len(override) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {override}"
    say("\n".join(lines))


def cost(fit: Feasibility) -> str:
    """Describe the cost of the whole run, or of 1000 completions if its number of steps is unknown."""
    total, money, time = fit.gpu_hours, fit.dollars, fit.seconds
    if total is not None and money is not None and time is not None:
        steps = " and ".join(f"{plan.work.steps} steps" for plan in fit.plans)
        return f"{steps}: {seconds(time)}, {total:,.3g} GPU-hours, {dollars(money)}"
    each = fit.gpu_hours_per_1000
    return "unknown" if each is None else f"{each:.3g} GPU-hours per 1000 completions"


def _needs(fit: Feasibility) -> str:
    gpu = fit.plans[-1].gpu.name
    if fit.fewest is None:
        return f"no number of {gpu} is enough"
    return f"needs at least {fit.fewest} {gpu}{' (with LoRA)' if fit.adapted else ''}"


# ------------------------------------------------------------------------------------------------ basis of the advice


def measured(advice: Advice) -> list[str]:
    """Return what was measured in the data, one line each."""
    facts = advice.facts
    counts = {
        "distinct comparisons": facts.pairs,
        "completions labelled good": facts.good,
        "labelled bad": facts.bad,
        "demonstrations": facts.demonstrations,
        "distinct prompts to sample for": facts.prompts,
    }
    lines = [", ".join(f"{count:,} {name}" for name, count in counts.items() if count)]
    rows = sum(source.num_rows for source in advice.cluster.sources)
    if facts.repeated >= MANY * rows:
        lines.append(f"{facts.repeated:,} of {rows:,} rows repeat an earlier one")
    if facts.contradictory:
        lines.append(f"{facts.contradictory:,} comparisons are contradictory: rows decide them both ways")
    if facts.check is not None and facts.check.column:
        lines.append(f"at least {CHECKABLE:.0%} of a file's prompts have a `{facts.check.column}`")
    if facts.agreement is not None and facts.flipped is not None:
        lines.append(
            f"two annotators agree on {_percent(facts.agreement)} of the comparisons; with equal error rates, "
            f"{facts.flipped:.0%} of the labels are wrong"
        )
    if facts.longer_chosen is not None and facts.length_ratio is not None:
        lines.append(
            f"the chosen completion is longer in {_percent(facts.longer_chosen)} of the pairs; median length ratio "
            f"{facts.length_ratio:.2f}"
        )
    if facts.models:
        most, total = facts.models.most_common(SHOWN_MODELS), facts.models.total()
        authors = ", ".join(f"{name} {count / total:.0%}" for name, count in most)
        own = "" if facts.own is None else f"; {facts.own:.0%} are this model's own"
        lines.append(f"authors of the completions: {authors}{own}")
    if facts.by_tokenizer:
        lines.append(_lengths(facts))
    return lines


def given(advice: Advice) -> list[str]:
    """Return what the user gave as options, one line each."""
    lines = [f"the model is {advice.model}"] if advice.model_given else []
    if advice.facts.declared_checkable:
        lines.append("answers can be checked (--verifiable)")
    return lines


def assumed(advice: Advice) -> list[str]:
    """Return what the advice assumes, one line each."""
    facts, methods = advice.facts, {advice.first.method} | ({advice.runner_up.method} if advice.runner_up else set())
    lines = [] if advice.model_given else [f"the model is {advice.model} (--model)"]
    if facts.check is not None and not facts.check.column:
        lines.append("you write rewards.py with a function `reward` that checks an answer (docs/rewards.md)")
    elif facts.check is not None:
        lines.append(f"`{facts.check.column}` is correct, in the form that {{type: {facts.check.reward}}} expects")
    elif facts.prompts:
        lines.append("answers cannot be checked by a program (otherwise pass --verifiable)")
    if facts.pairs and facts.own is None:
        missing = "--model is not given" if facts.models else "no row names its author"
        lines.append(f"the completions were written by other models ({missing})")
    if facts.pairs and facts.agreement is None:
        lines.append(f"annotators agree as usual, on {USUAL_AGREEMENT:.0%} of the comparisons (none has several votes)")
    if not facts.by_tokenizer:
        lines.append(f"{_lengths(facts)}, at {BYTES_PER_TOKEN:g} bytes per token")
    if facts.response_tokens is None:
        lines.append("completions have half of the recipe's maximum length")
    if Method.iterative_dpo_given in methods:
        lines.append(f"you have a reward model of at most 8B parameters, to replace {REWARD_MODEL}")
    if Method.distill in methods:
        lines.append("a larger model with the same tokenizer is available; the recipe uses a 70B one")
    lines.append("a run has the number of steps in its recipe, or makes one pass over a dataset")
    lines.append("published comparisons apply to this model and these data; check with a run on a part of them")
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


# ------------------------------------------------------------------------------------------------ JSON


def as_json(advice: Advice) -> dict[str, Any]:
    """Return the advice as JSON values."""
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
            "conflicts": facts.conflicts,
            "own_good": facts.own_good,
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
        "cautions": [{"name": c.name, "what": c.what(facts), "sources": list(c.sources)} for c in advice.cautions],
        "measured": measured(advice),
        "given": given(advice),
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
    """Return [value, low, high] of a 95 % interval."""
    return None if interval is None else [interval.value, interval.low, interval.high]
