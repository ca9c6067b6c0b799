"""Every figure of an evaluation, from the rows of samples.jsonl alone. Pure arithmetic; numpy is all it needs.

    rows ──► a number for each prompt ──► its mean with an interval over prompts      (`figures`, of one model)
                                     └──► the difference on the prompts in common     (`differences`, of two)
    rows of two models ──► who was better on each prompt ──► win rates                (`win_rates`)

The unit is the prompt: its completions are averaged first, and it is prompts that an interval draws again.

    name                            of each prompt
    ------------------------------  ---------------------------------------------------------------------------
    MODE/reward, MODE/rewards/NAME  mean over its completions; of scores that are 0 or 1 the accuracy
    sampled/best/NAME               the best of its n completions (n > 1); of scores that are 0 or 1, pass@n
    MODE/length                     tokens, with the one that ends it
    MODE/truncated                  share of completions that did not end by themselves
    MODE/repeated_tail              share of a completion's tokens in a tail that repeats itself
    sampled/distinct_1, distinct_2  different n-grams of tokens over all n-grams, of its completions together
    sampled/unique                  different completions over completions (n > 1)
    kl/NAME                         mean of log π(y) − log π_NAME(y) over samples y of π: KL(π‖π_NAME) in nats (k1)
    refusal, over_refusal           share of refused completions, of harmful and of benign prompts, greedy

MODE is greedy or sampled. distinct-n is Li et al. 2016 (arXiv 1510.03055); the k1 estimator is unbiased, and a single
value of it may be negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from orchestrator.evaluation import statistics
from orchestrator.evaluation.rows import Mode, PromptSet, Row, of
from orchestrator.evaluation.statistics import NUM_DRAWS, Interval, Values
from workers.repetition import repeated_tails
from workers.types import Finish, Ragged

PerPrompt: TypeAlias = Mapping[str, float]
"""A number for each prompt, by its id."""
MODES: tuple[Mode, ...] = get_args(Mode)
REFUSED: Mapping[str, PromptSet] = {"refusal": "harmful", "over_refusal": "benign"}
"""Of these prompts the reward is whether a completion refuses: 1 or 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A mean over prompts with its interval.

    Example: `Figure(value=0.61, low=0.55, high=0.67, num_prompts=256, interval="bootstrap")`. Of one prompt there is
    no interval: `low`, `high` and `interval` are None.
    """

    value: float
    low: float | None
    high: float | None
    num_prompts: int
    interval: Literal["bootstrap", "wilson"] | None

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference was shown at all."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class BootstrapConfig:
    """How intervals are drawn."""

    seed: int = 0
    confidence: float = 0.95
    num_draws: int = NUM_DRAWS


def figures(rows: Sequence[Row], model: str, bootstrap: BootstrapConfig) -> dict[str, Figure]:
    """All figures of one model."""
    return {name: mean(list(values.values()), bootstrap) for name, values in per_prompt(rows, model).items()}


def differences(rows: Sequence[Row], ours: str, theirs: str, bootstrap: BootstrapConfig) -> dict[str, Figure]:
    """Ours − theirs, of every figure that both models have, on the prompts they have in common. What prompts have in
    common cancels, so this may show a difference where two intervals overlap."""
    mine, others = per_prompt(rows, ours), per_prompt(rows, theirs)
    found = {}
    for name in (name for name in mine if name in others):
        both = [prompt for prompt in mine[name] if prompt in others[name]]
        if both:
            found[name] = _bootstrap(array(mine[name][p] - others[name][p] for p in both), bootstrap)
    return found


def win_rates(rows: Sequence[Row], ours: str, theirs: str, bootstrap: BootstrapConfig) -> dict[str, Figure]:
    """How often one model's completion is better than the other's, by every scorer and judge: MODE/win_rate/NAME.

    MODE/length_controlled_win_rate/NAME is what it would be at equal lengths, in characters (AlpacaEval 2);
    MODE/ties/NAME the share of ties; MODE/order_consistency/JUDGE how often a judge said the same whichever completion
    came first.
    """
    found: dict[str, Figure] = {}
    for mode in MODES:
        own, other = of(rows, model=ours, mode=mode), of(rows, model=theirs, mode=mode)
        lengths = _characters(own), _characters(other)
        for name, outcomes in _outcomes(own, other).items():
            won = by_prompt((row.prompt_id, outcome) for row, outcome in outcomes)
            found[f"{mode}/win_rate/{name}"] = mean(list(won.values()), bootstrap)
            found[f"{mode}/ties/{name}"] = mean(
                list(by_prompt((row.prompt_id, float(outcome == 0.5)) for row, outcome in outcomes).values()), bootstrap
            )
            values, mine, others = (array(part[prompt] for prompt in won) for part in (won, *lengths))
            found[f"{mode}/length_controlled_win_rate/{name}"] = length_controlled(values, mine, others, bootstrap)
        for name, agreed in _consistency(own).items():
            found[f"{mode}/order_consistency/{name}"] = mean(list(agreed.values()), bootstrap)
    return found


def outcomes(rows: Sequence[Row], ours: str, theirs: str, name: str, mode: Mode = "greedy") -> PerPrompt:
    """Of each prompt: 1 where `name`, a scorer or a judge, finds our completion better, 0 where theirs, ½ for a tie;
    the mean over completions with the same index. Empty where `name` has judged nothing."""
    found = _outcomes(of(rows, model=ours, mode=mode), of(rows, model=theirs, mode=mode)).get(name, [])
    return by_prompt((row.prompt_id, outcome) for row, outcome in found)


# ------------------------------------------------------------------------------------------------ for each prompt


def per_prompt(rows: Sequence[Row], model: str) -> dict[str, PerPrompt]:
    """Every figure of one model, as a number for each prompt it has one for."""
    found: dict[str, PerPrompt] = {}
    for mode in MODES:
        some = of(rows, model=model, mode=mode)
        found |= {f"{mode}/{name}": values for name, values in _of_mode(some).items()}
    sampled = of(rows, model=model, mode="sampled")
    found |= {f"sampled/{name}": values for name, values in _diversity(sampled).items()}
    for name in _names(row.log_ratios for row in sampled):
        found[f"kl/{name}"] = by_prompt((row.prompt_id, row.log_ratios.get(name)) for row in sampled)
    for name, prompt_set in REFUSED.items():
        found[name] = by_prompt((row.prompt_id, row.reward) for row in of(rows, model=model, prompt_set=prompt_set))
    return {name: values for name, values in found.items() if values}


def by_prompt(values: Iterable[tuple[str, float | None]]) -> PerPrompt:
    """The mean over each prompt's values, in the order of the prompts; None says that there is no value."""
    found: dict[str, list[float]] = {}
    for prompt, value in values:
        if value is not None:
            found.setdefault(prompt, []).append(value)
    return {prompt: float(np.mean(some)) for prompt, some in found.items()}


def _of_mode(rows: Sequence[Row]) -> dict[str, PerPrompt]:
    if not rows:
        return {}
    terminated = np.asarray([row.finish == Finish.stop.name for row in rows])
    tails = repeated_tails(Ragged.of([row.tokens for row in rows]), terminated)
    found = {
        "reward": by_prompt((row.prompt_id, row.reward) for row in rows),
        "length": _lengths(rows),
        "truncated": by_prompt((row.prompt_id, float(row.finish != Finish.stop.name)) for row in rows),
        "repeated_tail": by_prompt((row.prompt_id, float(tail)) for row, tail in zip(rows, tails, strict=True)),
    }
    for name in _names(row.scores for row in rows):
        found[f"rewards/{name}"] = by_prompt((row.prompt_id, row.scores.get(name)) for row in rows)
    return found


def _lengths(rows: Sequence[Row]) -> PerPrompt:
    return by_prompt((row.prompt_id, float(len(row.tokens))) for row in rows)


def _characters(rows: Sequence[Row]) -> PerPrompt:
    """Two models may have different tokens; characters are the same to both."""
    return by_prompt((row.prompt_id, float(len(row.completion))) for row in rows)


def _diversity(rows: Sequence[Row]) -> dict[str, PerPrompt]:
    """Of prompts with several completions; a prompt whose completions are too short for an n-gram has none."""
    groups = {prompt: group for prompt, group in _groups(rows).items() if len(group) > 1}
    unique = {prompt: len({row.tokens for row in group}) / len(group) for prompt, group in groups.items()}
    found: dict[str, PerPrompt] = {"unique": unique}
    for n in (1, 2):
        shares = {p: distinct([row.written for row in group], n) for p, group in groups.items()}
        found[f"distinct_{n}"] = {p: share for p, share in shares.items() if share is not None}
    for name in _names(row.scores for row in rows):
        given = {p: [s for row in group if (s := row.scores.get(name)) is not None] for p, group in groups.items()}
        found[f"best/{name}"] = {p: max(some) for p, some in given.items() if some}
    return found


def distinct(sequences: Sequence[Sequence[int]], n: int) -> float | None:
    """Different n-grams over all n-grams of the sequences together; None: there is none."""
    grams = Counter(gram for s in sequences for gram in zip(*(s[i:] for i in range(n)), strict=False))
    return len(grams) / grams.total() if grams else None


# ------------------------------------------------------------------------------------------------ of two models


def _outcomes(own: Sequence[Row], other: Sequence[Row]) -> dict[str, list[tuple[Row, float]]]:
    """By scorer or judge: our rows with their outcome against the other's of the same prompt and index."""
    theirs = {(row.prompt_id, row.index): row for row in other}
    found: dict[str, list[tuple[Row, float]]] = {}
    for row in own:
        against = theirs.get((row.prompt_id, row.index))
        if against is None:
            continue
        told = {name: _better(score, against.scores.get(name)) for name, score in row.scores.items()}
        told |= {name: float(np.mean(orders)) for name, orders in row.outcomes.items() if orders}
        for name, outcome in told.items():
            if outcome is not None:
                found.setdefault(name, []).append((row, outcome))
    return found


def _better(ours: float | None, theirs: float | None) -> float | None:
    if ours is None or theirs is None:
        return None
    return 0.5 if ours == theirs else float(ours > theirs)


def _consistency(own: Sequence[Row]) -> dict[str, PerPrompt]:
    """Of judges that were asked in both orders."""
    return {
        name: by_prompt((r.prompt_id, float(len(set(o)) == 1)) for r in own if len(o := r.outcomes.get(name, ())) == 2)
        for name in _names(row.outcomes for row in own)
    }


# ------------------------------------------------------------------------------------------------ intervals


def mean(values: Sequence[float], bootstrap: BootstrapConfig) -> Figure:
    """Of a number per prompt. Where each is 0 or 1 it is a proportion, with Wilson's interval: the bootstrap's would be
    a single point when all are equal."""
    numbers = array(values)
    if len(numbers) > 1 and set(numbers) <= {0.0, 1.0}:
        found = statistics.wilson(float(numbers.sum()), len(numbers), confidence=bootstrap.confidence)
        return _figure(found, len(numbers), "wilson")
    return _bootstrap(numbers, bootstrap)


def length_controlled(won: Values, ours: Values, theirs: Values, bootstrap: BootstrapConfig) -> Figure:
    """`statistics.length_controlled_win_rate` of outcomes and lengths [n]; of one prompt it is the outcome itself."""
    if len(won) < 2:
        return _of_one(won)
    found = statistics.length_controlled_win_rate(won, ours, theirs, **_given(bootstrap))
    return _figure(found, len(won), "bootstrap")


def _bootstrap(values: Values, bootstrap: BootstrapConfig) -> Figure:
    if len(values) < 2:
        return _of_one(values)
    return _figure(statistics.mean(values, **_given(bootstrap)), len(values), "bootstrap")


def _of_one(values: Values) -> Figure:
    return Figure(value=float(values[0]), low=None, high=None, num_prompts=1, interval=None)


def _figure(found: Interval, num_prompts: int, kind: Literal["bootstrap", "wilson"]) -> Figure:
    return Figure(value=found.value, low=found.low, high=found.high, num_prompts=num_prompts, interval=kind)


def _given(bootstrap: BootstrapConfig) -> dict[str, Any]:
    return {"seed": bootstrap.seed, "confidence": bootstrap.confidence, "num_draws": bootstrap.num_draws}


def array(values: Iterable[float]) -> Values:
    return np.asarray(list(values), np.float64)


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.prompt_id, []).append(row)
    return found
