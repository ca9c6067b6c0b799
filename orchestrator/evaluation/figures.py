"""Figures of an evaluation, computed from the rows of samples.jsonl with numpy alone.

    rows ──► a value per prompt ──► its mean with an interval over prompts      (`figures`, of one model)
                               └──► the difference on the shared prompts        (`differences`, of two models)
    rows of two models ──► the better one on each prompt ──► win rates          (`win_rates`)

The unit is the prompt: its completions are averaged first, and intervals resample prompts.

    name                            value of a prompt
    ------------------------------  ---------------------------------------------------------------------------
    MODE/reward, MODE/rewards/NAME  mean over its completions; the accuracy if scores are 0 or 1
    sampled/best/NAME               best of its n completions (n > 1); pass@n if scores are 0 or 1
    MODE/length                     tokens, including the end-of-sequence token
    MODE/truncated                  share of completions without an end-of-sequence token
    MODE/repeated_tail              share of a completion's tokens in a repeating tail
    sampled/distinct_1, distinct_2  distinct n-grams of tokens over all n-grams, of all its completions
    sampled/unique                  distinct completions over completions (n > 1)
    kl/NAME                         mean of log π(y) − log π_NAME(y) over samples y of π: KL(π‖π_NAME) in nats (k1)
    refusal, over_refusal           share of refused completions, of harmful and of benign prompts, greedy

MODE is greedy or sampled. distinct-n is from Li et al. 2016 (arXiv 1510.03055). The k1 estimator is unbiased; an
estimate may be negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from orchestrator.evaluation import statistics
from orchestrator.evaluation.rows import Mode, PromptSet, Row, select
from orchestrator.evaluation.statistics import NUM_DRAWS, Interval, Values
from workers.ragged import Ragged
from workers.repetition import repeated_tails
from workers.types import Finish

PerPrompt: TypeAlias = Mapping[str, float]
"""Values by prompt id."""
MODES: tuple[Mode, ...] = get_args(Mode)
REFUSED: Mapping[str, PromptSet] = {"refusal": "harmful", "over_refusal": "benign"}
"""Prompt set of each refusal figure. The reward of its rows is 1 for a refusal and 0 for an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A mean over prompts with its confidence interval.

    Example: `Figure(value=0.61, low=0.55, high=0.67, num_prompts=256, interval="bootstrap")`. A single prompt has no
    interval: `low`, `high` and `interval` are None.
    """

    value: float
    low: float | None
    high: float | None
    num_prompts: int
    interval: Literal["bootstrap", "wilson"] | None

    @property
    def excludes_zero(self) -> bool:
        """True if the interval excludes 0: the difference is significant."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class BootstrapConfig:
    """Settings of the bootstrap."""

    seed: int = 0
    confidence: float = 0.95
    num_draws: int = NUM_DRAWS


def figures(rows: Sequence[Row], model: str, bootstrap: BootstrapConfig) -> dict[str, Figure]:
    """Compute all figures of one model."""
    return {name: mean(list(values.values()), bootstrap) for name, values in per_prompt(rows, model).items()}


def differences(rows: Sequence[Row], ours: str, theirs: str, bootstrap: BootstrapConfig) -> dict[str, Figure]:
    """Compute ours − theirs for every figure that both models have, on the prompts that both have.

    The difference is paired by prompt, so it may be significant where the two intervals overlap.
    """
    our_values, their_values = per_prompt(rows, ours), per_prompt(rows, theirs)
    gaps = {}
    for name in (name for name in our_values if name in their_values):
        shared = [prompt for prompt in our_values[name] if prompt in their_values[name]]
        if shared:
            gaps[name] = _bootstrap(array(our_values[name][p] - their_values[name][p] for p in shared), bootstrap)
    return gaps


def win_rates(rows: Sequence[Row], ours: str, theirs: str, bootstrap: BootstrapConfig) -> dict[str, Figure]:
    """Compute how often our completion is better than theirs, by every scorer and judge.

    - MODE/win_rate/NAME: share of wins; a tie is half a win.
    - MODE/length_controlled_win_rate/NAME: win rate at equal lengths in characters (AlpacaEval 2).
    - MODE/ties/NAME: share of ties.
    - MODE/order_consistency/JUDGE: share of pairs with the same verdict in both orders.
    """
    rates: dict[str, Figure] = {}
    for mode in MODES:
        our_rows, their_rows = select(rows, model=ours, mode=mode), select(rows, model=theirs, mode=mode)
        lengths = _characters(our_rows), _characters(their_rows)
        for name, judged in _outcomes(our_rows, their_rows).items():
            wins = by_prompt((row.prompt_id, outcome) for row, outcome in judged)
            ties = by_prompt((row.prompt_id, float(outcome == 0.5)) for row, outcome in judged)
            rates[f"{mode}/win_rate/{name}"] = mean(list(wins.values()), bootstrap)
            rates[f"{mode}/ties/{name}"] = mean(list(ties.values()), bootstrap)
            values, our_lengths, their_lengths = (array(part[prompt] for prompt in wins) for part in (wins, *lengths))
            controlled = length_controlled(values, our_lengths, their_lengths, bootstrap)
            rates[f"{mode}/length_controlled_win_rate/{name}"] = controlled
        for name, agreement in _consistency(our_rows).items():
            rates[f"{mode}/order_consistency/{name}"] = mean(list(agreement.values()), bootstrap)
    return rates


def outcomes(rows: Sequence[Row], ours: str, theirs: str, name: str, mode: Mode = "greedy") -> PerPrompt:
    """Compute the outcome of each prompt by scorer or judge `name`: 1 if ours is better, 0 if theirs is, ½ for a tie.

    Completions of the same index are compared, and the outcomes of a prompt are averaged. The result is empty if `name`
    judged nothing.
    """
    our_rows, their_rows = select(rows, model=ours, mode=mode), select(rows, model=theirs, mode=mode)
    return by_prompt((row.prompt_id, outcome) for row, outcome in _outcomes(our_rows, their_rows).get(name, []))


# ------------------------------------------------------------------------------------------------ values per prompt


def per_prompt(rows: Sequence[Row], model: str) -> dict[str, PerPrompt]:
    """Compute the values of every figure of one model, by prompt."""
    by_figure: dict[str, PerPrompt] = {}
    for mode in MODES:
        of_mode = select(rows, model=model, mode=mode)
        by_figure |= {f"{mode}/{name}": values for name, values in _basic_figures(of_mode).items()}
    sampled = select(rows, model=model, mode="sampled")
    by_figure |= {f"sampled/{name}": values for name, values in _diversity(sampled).items()}
    for name in _names(row.log_ratios for row in sampled):
        by_figure[f"kl/{name}"] = by_prompt((row.prompt_id, row.log_ratios.get(name)) for row in sampled)
    for name, prompt_set in REFUSED.items():
        of_set = select(rows, model=model, prompt_set=prompt_set)
        by_figure[name] = by_prompt((row.prompt_id, row.reward) for row in of_set)
    return {name: values for name, values in by_figure.items() if values}


def by_prompt(values: Iterable[tuple[str, float | None]]) -> PerPrompt:
    """Average the values of each prompt, in the order of the prompts. None is skipped."""
    groups: dict[str, list[float]] = {}
    for prompt, value in values:
        if value is not None:
            groups.setdefault(prompt, []).append(value)
    return {prompt: float(np.mean(group)) for prompt, group in groups.items()}


def _basic_figures(rows: Sequence[Row]) -> dict[str, PerPrompt]:
    if not rows:
        return {}
    terminated = np.asarray([row.finish == Finish.stop.name for row in rows])
    tails = repeated_tails(Ragged.of([row.tokens for row in rows]), terminated)
    by_figure = {
        "reward": by_prompt((row.prompt_id, row.reward) for row in rows),
        "length": _lengths(rows),
        "truncated": by_prompt((row.prompt_id, float(row.finish != Finish.stop.name)) for row in rows),
        "repeated_tail": by_prompt((row.prompt_id, float(tail)) for row, tail in zip(rows, tails, strict=True)),
    }
    for name in _names(row.scores for row in rows):
        by_figure[f"rewards/{name}"] = by_prompt((row.prompt_id, row.scores.get(name)) for row in rows)
    return by_figure


def _lengths(rows: Sequence[Row]) -> PerPrompt:
    return by_prompt((row.prompt_id, float(len(row.tokens))) for row in rows)


def _characters(rows: Sequence[Row]) -> PerPrompt:
    """Return the lengths in characters, which two models with different tokenizers share."""
    return by_prompt((row.prompt_id, float(len(row.completion))) for row in rows)


def _diversity(rows: Sequence[Row]) -> dict[str, PerPrompt]:
    """Compute the diversity of prompts with several completions. Prompts without any n-gram have no distinct-n."""
    groups = {prompt: group for prompt, group in _groups(rows).items() if len(group) > 1}
    unique = {prompt: len({row.tokens for row in group}) / len(group) for prompt, group in groups.items()}
    by_figure: dict[str, PerPrompt] = {"unique": unique}
    for n in (1, 2):
        shares = {p: distinct([row.content_tokens for row in group], n) for p, group in groups.items()}
        by_figure[f"distinct_{n}"] = {p: share for p, share in shares.items() if share is not None}
    for name in _names(row.scores for row in rows):
        scores = {p: [s for row in group if (s := row.scores.get(name)) is not None] for p, group in groups.items()}
        by_figure[f"best/{name}"] = {p: max(values) for p, values in scores.items() if values}
    return by_figure


def distinct(sequences: Sequence[Sequence[int]], n: int) -> float | None:
    """Return the distinct n-grams over all n-grams of the sequences, or None if there is no n-gram."""
    grams = Counter(gram for s in sequences for gram in zip(*(s[i:] for i in range(n)), strict=False))
    return len(grams) / grams.total() if grams else None


# ------------------------------------------------------------------------------------------------ comparisons


def _outcomes(our_rows: Sequence[Row], their_rows: Sequence[Row]) -> dict[str, list[tuple[Row, float]]]:
    """Return, by scorer or judge, our rows with their outcome against the other row of the same prompt and index."""
    opponents = {(row.prompt_id, row.index): row for row in their_rows}
    by_name: dict[str, list[tuple[Row, float]]] = {}
    for row in our_rows:
        opponent = opponents.get((row.prompt_id, row.index))
        if opponent is None:
            continue
        outcomes = {name: _outcome(score, opponent.scores.get(name)) for name, score in row.scores.items()}
        outcomes |= {name: float(np.mean(orders)) for name, orders in row.outcomes.items() if orders}
        for name, outcome in outcomes.items():
            if outcome is not None:
                by_name.setdefault(name, []).append((row, outcome))
    return by_name


def _outcome(ours: float | None, theirs: float | None) -> float | None:
    if ours is None or theirs is None:
        return None
    return 0.5 if ours == theirs else float(ours > theirs)


def _consistency(rows: Sequence[Row]) -> dict[str, PerPrompt]:
    """Return, for each judge that saw pairs in both orders, 1 where both verdicts agree and 0 where they differ."""
    return {
        name: by_prompt((r.prompt_id, float(len(set(o)) == 1)) for r in rows if len(o := r.outcomes.get(name, ())) == 2)
        for name in _names(row.outcomes for row in rows)
    }


# ------------------------------------------------------------------------------------------------ intervals


def mean(values: Sequence[float], bootstrap: BootstrapConfig) -> Figure:
    """Average one value per prompt, with an interval.

    If all values are 0 or 1, the interval is Wilson's: the bootstrap's would be a single point if all values are equal.
    """
    numbers = array(values)
    if len(numbers) > 1 and set(numbers) <= {0.0, 1.0}:
        interval = statistics.wilson(float(numbers.sum()), len(numbers), confidence=bootstrap.confidence)
        return _figure(interval, len(numbers), "wilson")
    return _bootstrap(numbers, bootstrap)


def length_controlled(outcomes: Values, ours: Values, theirs: Values, bootstrap: BootstrapConfig) -> Figure:
    """Compute the length-controlled win rate of outcomes and lengths [n]. A single prompt keeps its raw outcome."""
    if len(outcomes) < 2:
        return _without_interval(outcomes)
    interval = statistics.length_controlled_win_rate(outcomes, ours, theirs, **_settings(bootstrap))
    return _figure(interval, len(outcomes), "bootstrap")


def _bootstrap(values: Values, bootstrap: BootstrapConfig) -> Figure:
    if len(values) < 2:
        return _without_interval(values)
    return _figure(statistics.mean(values, **_settings(bootstrap)), len(values), "bootstrap")


def _without_interval(values: Values) -> Figure:
    return Figure(value=float(values[0]), low=None, high=None, num_prompts=1, interval=None)


def _figure(interval: Interval, num_prompts: int, kind: Literal["bootstrap", "wilson"]) -> Figure:
    return Figure(value=interval.value, low=interval.low, high=interval.high, num_prompts=num_prompts, interval=kind)


def _settings(bootstrap: BootstrapConfig) -> dict[str, Any]:
    return {"seed": bootstrap.seed, "confidence": bootstrap.confidence, "num_draws": bootstrap.num_draws}


def array(values: Iterable[float]) -> Values:
    return np.asarray(list(values), np.float64)


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.prompt_id, []).append(row)
    return groups
