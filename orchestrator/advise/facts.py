"""Measure the facts about the data that the rules depend on; None for what the data do not show.

    dataset files ──read──► examples and prompts ──measure──► Facts

Nothing is guessed here. `show.assumed` lists what the rules assume where a fact is None.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.advise.reading import Source
from orchestrator.audit.agreement import agreement_of
from orchestrator.audit.contradictions import contradicting_comparisons
from orchestrator.audit.length import lengths_of
from orchestrator.audit.reading import of_examples
from orchestrator.data.audit import RowKeys, comparisons, distinct_prompts, repeated
from orchestrator.data.formats import Format
from orchestrator.data.tokens import TokenCounter, num_bytes
from orchestrator.evaluation.statistics import Interval
from workers.types import Example

BYTES_PER_TOKEN = 4.0  # of English text; assumed without a tokenizer
COUNTED_ROWS = 2000  # first rows of each file, in which tokens are counted
CHECKABLE = 0.9  # share of prompts that must have a value to check answers against
CHECKS: Mapping[str, tuple[str, str]] = {
    # column → (type of reward, its setting that names the column)
    "solution": ("math", "solution_column"),
    "tests": ("code", "tests_column"),
    "test_list": ("code", "tests_column"),
    "schema": ("json_schema", "schema_column"),
}
LENGTH_PERCENTILE = 99.0
MIN_OWN = 100  # labelled completions of the model to train, from which on their share of good ones counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Reward type that checks answers, and the column it reads. With --verifiable: `function`, no column."""

    reward: str
    column: str = ""

    @property
    def setting(self) -> str:
        """Value of the recipe's `reward` key."""
        if not self.column:
            return "[{type: function, function: 'rewards.py:reward'}]"
        default = next(name for name, (kind, _) in CHECKS.items() if kind == self.reward)
        named = "" if self.column == default else f", {CHECKS[self.column][1]}: {self.column}"
        return f"[{{type: {self.reward}{named}}}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Facts about all files together. None, or an empty Counter: the data do not show it.

    Example: `Facts(pairs=61_000, prompts=61_000, longer_chosen=wilson(39_000, 61_000))`.
    """

    pairs: int = 0  # distinct comparisons; every two rated or ranked completions with different scores are one
    good: int = 0  # completions labelled good
    bad: int = 0  # completions labelled bad
    demonstrations: int = 0
    prompts: int = 0  # distinct prompts that completions can be sampled for
    repeated: int = 0  # rows that repeat an earlier one
    contradictory: int = 0  # comparisons that rows decide both ways
    conflicts: int = 0  # comparisons that rows of two objectives (column `objective`) decide in opposite ways
    check: Check | None = None  # None: answers cannot be checked
    declared_checkable: bool = False  # by --verifiable
    agreement: Interval | None = None  # share of comparisons on which two annotators agree
    longer_chosen: Interval | None = None  # share of pairs whose chosen completion is longer; a tie counts one half
    length_ratio: float | None = None  # median of chosen length / rejected length
    models: Counter[str] = field(default_factory=Counter)  # authors of the completions, where rows name them
    own: float | None = None  # share of these completions that the model to train wrote
    own_good: float | None = None  # share of good labels among the completions that the model to train wrote
    prompt_tokens: float | None = None  # mean
    response_tokens: float | None = None  # mean
    longest: int | None = None  # 99th percentile of the tokens of a prompt with its completion
    by_tokenizer: bool = False  # False: tokens are bytes / 4

    @property
    def labels(self) -> int:
        return self.good + self.bad

    @property
    def flipped(self) -> float | None:
        """Share s of wrong labels, if annotators err independently and equally often.

        Two annotators agree if both are right or both are wrong: agreement = (1 − s)² + s²."""
        if self.agreement is None:
            return None
        return (1 - math.sqrt(max(0.0, 2 * self.agreement.value - 1))) / 2


def measure(sources: Sequence[Source], model: str | None, *, verifiable: bool) -> Facts:
    """Measure the facts of all `sources`.

    Args:
        model: Model to train, by name or directory; None: not given.
        verifiable: The user declares that answers can be checked.
    """
    examples = [example for source in sources for example in source.examples]
    paired = [e for e in examples if e.scores is not None and len(e.completions) > 1]
    labelled = [e for e in examples if e.scores is not None and len(e.completions) == 1]
    judged = comparisons(paired)
    columns = of_examples("", paired, with_words=False)
    agreed, lengths = agreement_of(columns), lengths_of(columns, with_model=False)
    models = _models(sources)
    tokens = TokenCounter.of(Path(model)) if model is not None and Path(model).is_dir() else None
    check = _check(sources)
    return Facts(
        pairs=len(judged),
        good=sum(e.scores == (1.0,) for e in labelled),
        bad=sum(e.scores == (0.0,) for e in labelled),
        demonstrations=sum(e.scores is None for e in examples),
        prompts=distinct_prompts([p for source in sources for p in source.prompts]),
        repeated=sum(len(repeated(RowKeys.of(source.examples))) for source in sources),
        contradictory=sum(bool(votes[0] and votes[1]) for votes in judged.values()),
        check=check or (Check(reward="function") if verifiable else None),
        declared_checkable=verifiable,
        agreement=None if agreed is None else agreed.percent,
        conflicts=contradicting_comparisons(columns),
        models=models,
        own=_own(models, model),
        own_good=_own_good(labelled, model),
        by_tokenizer=tokens is not None,
        longer_chosen=None if lengths is None else lengths.longer,
        length_ratio=None if lengths is None else lengths.ratio,
        **_lengths(sources, tokens),
    )


def _check(sources: Sequence[Source]) -> Check | None:
    """Return the column that answers can be checked with, from the largest source that has one."""
    for source in sorted(sources, key=lambda source: -len(source.prompts)):
        for column, (reward, _) in CHECKS.items():
            if can_be_checked(source, column):
                return Check(reward=reward, column=column)
    return None


def can_be_checked(source: Source, column: str) -> bool:
    """Return True if at least `CHECKABLE` of the prompts have a value in `column`."""
    filled = sum(prompt.columns.get(column) not in (None, "", [], {}) for prompt in source.prompts)
    return bool(source.prompts) and filled >= CHECKABLE * len(source.prompts)


def _models(sources: Sequence[Source]) -> Counter[str]:
    models: Counter[str] = Counter()
    for source in sources:
        for example in source.examples:
            models.update(_authors(example))
    return models


def _authors(example: Example) -> Iterator[str]:
    """Return the authors of a row's completions: `model`, `models`, or `chosen_model` and `rejected_model`."""
    columns = example.prompt.columns
    listed = columns.get("models")
    names = [columns.get("model")] * len(example.completions) + [columns.get("chosen_model")]
    names += [columns.get("rejected_model"), *(listed if isinstance(listed, list) else ())]
    return (name for name in names if isinstance(name, str))


def _own(models: Counter[str], model: str | None) -> float | None:
    if model is None or not models:
        return None
    return sum(count for name, count in models.items() if _plain(name) == _plain(model)) / models.total()


def _own_good(labelled: Sequence[Example], model: str | None) -> float | None:
    """Return the share of good labels of the model's own completions; None: fewer than MIN_OWN have a label."""
    if model is None:
        return None
    own = [e for e in labelled if any(_plain(name) == _plain(model) for name in _authors(e))]
    return sum(e.scores == (1.0,) for e in own) / len(own) if len(own) >= MIN_OWN else None


def _plain(name: str) -> str:
    """Return a model's short name, such as `llama-3.1-8b-instruct`; an instruct model is not its base."""
    return name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")


def _lengths(sources: Sequence[Source], tokens: TokenCounter | None) -> dict[str, Any]:
    """Return mean tokens of prompts and completions, and the longest row, over the first rows of each file."""
    prompts: list[float] = []
    responses: list[float] = []
    rows: list[float] = []
    for source in sources:
        for prompt in source.prompts[:COUNTED_ROWS] if not source.examples else ():
            prompts.append(len(tokens.prompt(prompt.text)) if tokens else num_bytes(prompt.text) / BYTES_PER_TOKEN)
        for e in source.examples[:COUNTED_ROWS]:
            before = len(tokens.prompt(e.prompt.text)) if tokens else num_bytes(e.prompt.text) / BYTES_PER_TOKEN
            after = [len(tokens.completion(c)) if tokens else num_bytes(c) / BYTES_PER_TOKEN for c in e.completions]
            if source.format != Format.text:  # plain text has no prompt
                prompts.append(before)
            responses += after
            rows.append(before + max(after))
    return {
        "prompt_tokens": float(np.mean(prompts)) if prompts else None,
        "response_tokens": float(np.mean(responses)) if responses else None,
        "longest": math.ceil(np.percentile(rows, LENGTH_PERCENTILE)) if rows else None,
    }
