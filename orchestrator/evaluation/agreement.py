"""Agreement of a judge with gold labels: pairs of which it is known which completion was preferred.

    rows of preference data ──► pairs ──► verdicts in both orders, or grades ──► agreement, kappa, ties, position bias

The unit is the prompt. The names of the figures, over pairs with a verdict:

    accuracy        outcome of the chosen completion: 1 if the judge prefers it, 0 if the rejected one, ½ for a tie
    decided         the same over pairs that are no tie
    kappa           Cohen's kappa (1960) of verdicts and labels, where a tie is a wrong verdict
    ties            share of pairs that are ties: equal grades, two ties, or a contradiction of the two orders
    consistency     share of pairs with the same verdict in both orders
    first           share of verdicts for the completion that is shown first, ties left out; ½ without position bias
    longer          share of decided pairs in which the longer completion wins
    longer/labels   share of the same pairs in which the longer completion is the chosen one

A label is the first or the second place with equal frequency, because orders are balanced. Chance agreement is then
(1 − t)/2 with a share t of ties among the verdicts, whatever the judge's preference for a place, and kappa is
(p − (1 − t)/2) / (1 − (1 − t)/2) with the share p of right verdicts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.data import read_examples
from orchestrator.data.rows import RowProblems
from orchestrator.evaluation import figures, statistics
from orchestrator.evaluation.figures import BootstrapConfig, Figure, by_prompt
from orchestrator.evaluation.judge import Judge
from orchestrator.evaluation.statistics import Values
from workers.judging import Graded, Pair
from workers.rewards.base import last_text
from workers.types import Example, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Judgement of a pair in one order. Example: `Verdict(outcome=1.0, chosen_first=False)`."""

    outcome: float  # 1 for the chosen completion, 0 for the rejected one, ½ for a tie
    chosen_first: bool | None  # whether the chosen completion was shown first; None: each was graded alone


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPair:
    """A pair with its verdicts. Example: `JudgedPair(id="pairs.jsonl:3", prompt="2+2=", chosen="4", rejected="5",
    verdicts=(Verdict(outcome=1.0, chosen_first=True), Verdict(outcome=0.5, chosen_first=False)))`."""

    id: str
    prompt: Text
    chosen: str
    rejected: str
    verdicts: tuple[Verdict, ...]  # empty: none in at least one of the orders

    @property
    def outcome(self) -> float:
        return float(np.mean([verdict.outcome for verdict in self.verdicts]))


def read_pairs(source: str, *, split: str, max_rows: int | None) -> tuple[Example, ...]:
    """Read preference data. Of several rated completions, the best and the worst are a pair.

    Rows whose two completions are equal, or rated alike, are left out.

    Raises:
        BadInput: with every row that cannot be used, or if no row prefers a completion to another.
    """
    problems = RowProblems(source)
    examples = read_examples(source, algorithm="dpo", split=split, max_rows=max_rows, equal_pairs=RowProblems(source))
    pairs = tuple(e for e in examples if e.scores is not None and e.scores[0] > e.scores[-1])
    if not pairs:
        raise problems.stop("no pair is left", why="all completions are rated alike", fix="give rows with a preference")
    return pairs


def judged(judge: Judge, examples: Sequence[Example], *, compares: bool, both_orders: bool) -> list[JudgedPair]:
    """Ask the judge of all pairs. With `compares` it compares the two completions, else it grades each.

    Raises:
        JudgeFailed: the endpoint refuses, the budget is used up, or too many pairs have no verdict.
    """
    texts = [(last_text(e.completions[0]), last_text(e.completions[-1])) for e in examples]
    verdicts = _compared(judge, examples, texts, both_orders) if compares else _graded(judge, examples, texts)
    return [
        JudgedPair(id=e.prompt.id, prompt=e.prompt.text, chosen=chosen, rejected=rejected, verdicts=found)
        for e, (chosen, rejected), found in zip(examples, texts, verdicts, strict=True)
    ]


def _compared(
    judge: Judge, examples: Sequence[Example], texts: Sequence[tuple[str, str]], both_orders: bool
) -> list[tuple[Verdict, ...]]:
    """Compare the completions of each pair. The one that is shown first, or alone first, is drawn by their texts."""
    first = [_draw(chosen, rejected) for chosen, rejected in texts]
    pairs = [
        Pair(prompt=e.prompt.text, ours=chosen if is_first else rejected, theirs=rejected if is_first else chosen)
        for e, (chosen, rejected), is_first in zip(examples, texts, first, strict=True)
    ]
    orders = (True, False) if both_orders else (True,)
    found: list[tuple[Verdict, ...]] = []
    for outcomes, is_first in zip(judge.judge(pairs).outcomes, first, strict=True):
        own = zip(outcomes, orders, strict=True) if outcomes else ()
        found.append(
            tuple(Verdict(outcome=o if is_first else 1 - o, chosen_first=is_first == order) for o, order in own)
        )
    return found


def _graded(judge: Judge, examples: Sequence[Example], texts: Sequence[tuple[str, str]]) -> list[tuple[Verdict, ...]]:
    """Grade both completions of each pair, and compare the grades."""
    answers = [
        Graded(prompt=e.prompt.text, answer=text) for e, both in zip(examples, texts, strict=True) for text in both
    ]
    grades = judge.grade(answers)
    found: list[tuple[Verdict, ...]] = []
    for chosen, rejected in zip(grades[::2], grades[1::2], strict=True):
        if chosen is None or rejected is None:
            found.append(())
        else:
            outcome = 0.5 if chosen == rejected else float(chosen > rejected)
            found.append((Verdict(outcome=outcome, chosen_first=None),))
    return found


def _draw(chosen: str, rejected: str) -> bool:
    digest = hashlib.blake2b(f"{chosen}\0{rejected}".encode("utf-8", "surrogatepass"), digest_size=1).digest()
    return bool(digest[0] % 2)


# ------------------------------------------------------------------------------------------------ figures


def agreement(pairs: Sequence[JudgedPair], bootstrap: BootstrapConfig) -> dict[str, Figure]:
    """Compute the figures of the agreement; those that cannot be computed are left out."""
    found = {name: values for name, values in per_prompt(pairs).items() if values}
    computed = {name: figures.mean(list(values.values()), bootstrap) for name, values in found.items()}
    kappa = _kappa(pairs, bootstrap)
    return computed if kappa is None else {"accuracy": computed.pop("accuracy"), "kappa": kappa, **computed}


def per_prompt(pairs: Iterable[JudgedPair]) -> dict[str, Mapping[str, float]]:
    """Compute the values of every figure but kappa, by prompt."""
    known = [(_key(pair), pair) for pair in pairs if pair.verdicts]
    decided = [(key, pair) for key, pair in known if pair.outcome != 0.5]
    unequal = [(key, pair) for key, pair in decided if len(pair.chosen) != len(pair.rejected)]
    both = [(key, pair) for key, pair in known if len(pair.verdicts) == 2]
    is_longer = {id(pair): len(pair.chosen) > len(pair.rejected) for _, pair in unequal}
    return {
        "accuracy": by_prompt((key, pair.outcome) for key, pair in known),
        "decided": by_prompt((key, float(pair.outcome > 0.5)) for key, pair in decided),
        "ties": by_prompt((key, float(pair.outcome == 0.5)) for key, pair in known),
        "consistency": by_prompt((key, float(len({v.outcome for v in pair.verdicts}) == 1)) for key, pair in both),
        "first": by_prompt((key, _share_of_first(pair)) for key, pair in known),
        "longer": by_prompt((key, float((pair.outcome > 0.5) == is_longer[id(pair)])) for key, pair in unequal),
        "longer/labels": by_prompt((key, float(is_longer[id(pair)])) for key, pair in unequal),
    }


def _share_of_first(pair: JudgedPair) -> float | None:
    """Return the share of decided verdicts for the completion shown first; None: there are none."""
    first = [
        float((v.outcome == 1) == v.chosen_first)
        for v in pair.verdicts
        if v.outcome != 0.5 and v.chosen_first is not None
    ]
    return float(np.mean(first)) if first else None


def _kappa(pairs: Iterable[JudgedPair], bootstrap: BootstrapConfig) -> Figure | None:
    """Compute kappa with a bootstrap interval over prompts; None: a single prompt has none."""
    by_key: dict[str, list[float]] = {}
    for pair in pairs:
        by_key.setdefault(_key(pair), []).extend(verdict.outcome for verdict in pair.verdicts)
    outcomes = [np.asarray(own) for own in by_key.values() if own]
    if len(outcomes) < 2:
        return None
    counts = np.asarray([[len(o), (o == 1).sum(), (o == 0.5).sum()] for o in outcomes], np.float64)

    def statistic(weights: Values) -> Values:
        verdicts, right, ties = (weights @ counts).T
        p, t = right / verdicts, ties / verdicts
        values: Values = (2 * p - (1 - t)) / (1 + t)
        return values

    found = statistics.bootstrap(
        statistic,
        len(outcomes),
        seed=bootstrap.seed,
        confidence=bootstrap.confidence,
        num_draws=bootstrap.num_draws,
    )
    return Figure(value=found.value, low=found.low, high=found.high, num_prompts=len(outcomes), interval="bootstrap")


def _key(pair: JudgedPair) -> str:
    """Return the text by which pairs of the same prompt are one unit."""
    content: Any = pair.prompt
    return content if isinstance(content, str) else json.dumps(content, sort_keys=True, default=str)
