"""Lines that say how far a judge agrees with labels, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.evaluation.figures import Figure
from orchestrator.evaluation.rank_figures import MIN_PROMPTS
from orchestrator.monitor.figures import number

MEANINGS: Mapping[str, str] = {
    "accuracy": "agrees with the labels, ties are half right",
    "kappa": "Cohen's kappa; 0: chance, 1: always right",
    "decided": "agrees with the labels where it decides",
    "ties": "ties, or contradicts itself in the other order",
    "consistency": "gives the same verdict in both orders",
    "first": "prefers the completion shown first; 50 % without position bias",
    "longer": "prefers the longer completion",
    "longer/labels": "the labels prefer the longer completion",
}


def lines(agreement: Mapping[str, Figure]) -> Iterator[str]:
    """Yield a line for each figure, then what they show. Warnings start with WARNING."""
    for name, figure in agreement.items():
        yield f"{name:<14} {_value(name, figure):<22} {MEANINGS[name]}"
    accuracy = agreement.get("accuracy")
    if accuracy is None:
        return
    if accuracy.low is None or accuracy.high is None or accuracy.num_prompts < MIN_PROMPTS:
        yield f"WARNING: {accuracy.num_prompts} prompts show nothing; give {MIN_PROMPTS} or more"
    elif accuracy.high < 0.5:
        yield "WARNING: the judge disagrees with the labels more often than not"
    elif accuracy.low <= 0.5:
        yield "WARNING: the judge is not shown to be better than chance"
    yield from _biases(agreement)


def _biases(agreement: Mapping[str, Figure]) -> Iterator[str]:
    first, longer, labels = (agreement.get(name) for name in ("first", "longer", "longer/labels"))
    if first is not None and first.low is not None and first.high is not None and not first.low <= 0.5 <= first.high:
        place = "first" if first.value > 0.5 else "second"
        yield f"WARNING: the judge prefers what is shown {place}; compare in both orders, as both_orders does"
    if longer is not None and labels is not None and longer.low is not None and longer.low > labels.value:
        yield "WARNING: the judge prefers longer completions more often than the labels do"


def _value(name: str, figure: Figure) -> str:
    scale, unit = (1, "") if name == "kappa" else (100, " %")
    value = number(figure.value * scale) + unit
    if figure.low is None or figure.high is None:
        return value
    return f"{value} [{number(figure.low * scale)}, {number(figure.high * scale)}]"
