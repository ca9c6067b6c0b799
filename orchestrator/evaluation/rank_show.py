"""Tables of a ranking for the terminal: best answers of the first prompts, and the gold score of best of n by score."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from statistics import fmean
from typing import TextIO, cast

from rich.console import Console
from rich.table import Table

from orchestrator.evaluation.figures import Figure
from orchestrator.evaluation.rank_figures import MIN_PROMPTS
from orchestrator.evaluation.rank_result import Gains, Ranking, Selection
from orchestrator.evaluation.show import format_figure
from orchestrator.monitor.figures import number, one_line, shorten
from orchestrator.terminal import Forgiving

SHOWN = 8  # prompts in the table of answers
WIDTH = 40  # characters of a prompt, an answer or a score's name
UNMEASURED = (
    "WARNING: without a gold score nothing shows that the best answers are better than a random sample; "
    "give --gold, such as --gold math"
)


def show(ranking: Ranking, stream: TextIO | None = None) -> None:
    """Print the ranking to standard output, or to `stream`."""
    console = Console(file=cast(TextIO, Forgiving(stream or sys.stdout)), highlight=False, markup=False, soft_wrap=True)
    console.print(_answers(ranking))
    if len(ranking.ranked) > SHOWN:
        console.print(f"… and {len(ranking.ranked) - SHOWN} more prompts")
    if ranking.gold is not None:
        console.print(f"\ngold score of the best of n, {ranking.gold.name}, over {_prompts(ranking.gold.mean)}")
        console.print(_curves(ranking))
    console.print()
    for line in (*lines(ranking), *(f"note: {note}" for note in _notes(ranking))):
        console.print(line)


def lines(ranking: Ranking) -> Iterator[str]:
    """Yield what each score gains or does not gain, and what it costs. Warnings start with WARNING."""
    for name, selected in ranking.by.items():
        yield f"{name}: not measured" if selected.gains is None else _verdict(name, selected.gains)
        yield f"  {_cost(selected)}"
    if ranking.gold is None:
        yield UNMEASURED


def _verdict(name: str, gains: Gains) -> str:
    last = gains.curve[-1]
    found = (
        f"{_interval(last.gold)} against {number(last.gold.value - last.gain.value)}, {_signed(last.gain)}; "
        f"ahead of {_share(gains.wins)} of the samples, behind {_share(gains.losses)}"
    )
    match gains.verdict:
        case "better":
            return f"{name}: best of {last.n} is better than a random sample: {found}"
        case "worse":
            return f"WARNING: {name}: best of {last.n} is worse than a random sample: {found}; use another --by"
    is_small = last.gold.num_prompts < MIN_PROMPTS
    fix = f"a verdict needs at least {MIN_PROMPTS} prompts" if is_small else "give more prompts, or another --by"
    return f"WARNING: {name}: best of {last.n} is not shown to be better than a random sample: {found}; {fix}"


def _cost(selected: Selection) -> str:
    spent = selected.cost
    text = (
        f"cost: {spent['generated_tokens']:,.0f} tokens sampled, {spent['scored_tokens']:,.0f} scored, "
        f"{number(spent['device_seconds'])} s of devices"
    )
    if "judge_requests" in spent:
        text += f", {spent['judge_requests']:,.0f} requests to the judge, {spent['judge_cost']:.2f} dollars"
    last = selected.gains.curve[-1] if selected.gains is not None else None
    if last is not None and last.tokens_per_gain is not None and last.device_seconds_per_gain is not None:
        tokens, seconds = last.tokens_per_gain / 100, last.device_seconds_per_gain / 100
        text += f"; for 0.01 gained on a prompt: {number(tokens)} tokens, {number(seconds)} s"
    ratio = selected.best_length.value / selected.mean_length.value
    return f"{text}; length of the best: {ratio:.2f} × the mean"


def _notes(ranking: Ranking) -> Iterator[str]:
    yield from ranking.notes
    for name, selected in ranking.by.items():
        if selected.num_ties:
            yield f"{name} is equal for all answers to {selected.num_ties} of {len(ranking.ranked)} prompts"
        if selected.num_abstained:
            yield f"{selected.num_abstained} answers have no score by {name} and are ranked last"
    gold = ranking.gold
    if gold is not None and gold.num_ties:
        yield f"the gold score is equal for all answers to {gold.num_ties} of {_prompts(gold.mean)}: no choice matters"
    if gold is not None and gold.num_left_out:
        yield f"{gold.num_left_out} prompts have no gold score: its scorer abstained on one of their answers"
    if ranking.dropped:
        yield f"{ranking.dropped} prompts are left out: they are longer than rollout.max_prompt_length"


# ------------------------------------------------------------------------------------------------ tables


def _answers(ranking: Ranking) -> Table:
    by = next(iter(ranking.by))
    table = _table("prompt", "best answer")
    for name in (_label(by), "mean"):
        table.add_column(name, justify="right")
    for ranked in ranking.ranked[:SHOWN]:
        prompt = ranked.prompt if isinstance(ranked.prompt, str) else str(ranked.prompt[-1]["content"])
        best = ranked.completions[0]
        scores = [s for completion in ranked.completions if (s := completion["scores"][by]) is not None]
        texts = (shorten(one_line(text), WIDTH) for text in (prompt, best["completion"]))
        table.add_row(*texts, *(number(s) for s in (scores[0], fmean(scores)) if scores))
    return table


def _curves(ranking: Ranking) -> Table:
    gold = ranking.gold
    assert gold is not None
    table = _table("by")
    for n in gold.best:
        table.add_column(f"n = {n}", justify="right", no_wrap=True)
    for name, selected in ranking.by.items():
        points = () if selected.gains is None else selected.gains.curve
        table.add_row(_label(name), *(f"{point.gold.value:.3f}" for point in points))
    table.add_row("the gold score itself", *(f"{best.value:.3f}" for best in gold.best.values()))
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, justify="left")
    return table


def _label(name: str) -> str:
    """Shorten the path in a score's name: function=a/b/rewards.py:score becomes function=rewards.py:score."""
    kind, equals, value = name.partition("=")
    return shorten(f"{kind}{equals}{value.rstrip('/').rpartition('/')[2]}", WIDTH)


def _share(figure: Figure) -> str:
    return f"{100 * figure.value:.1f} %"


def _interval(figure: Figure) -> str:
    return format_figure("gold", figure)


def _signed(figure: Figure) -> str:
    return ("+" if figure.value > 0 else "") + _interval(figure)


def _prompts(figure: Figure) -> str:
    return f"{figure.num_prompts} prompts"
