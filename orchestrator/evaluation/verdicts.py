"""Verdicts of a suite's judge: on the completions of both models, and on labelled pairs, which say what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.errors import JudgeFailed
from orchestrator.evaluation.agreement import agreement, judged
from orchestrator.evaluation.figures import BootstrapConfig, Figure
from orchestrator.evaluation.judge import Judge, with_cache
from orchestrator.evaluation.rows import Row, select
from orchestrator.evaluation.suite import JudgeConfig, SuiteConfig
from workers.judging import Pair
from workers.types import Example

MODEL, AGAINST = "model", "against"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """Verdicts of a judge, and their cost."""

    rows: Sequence[Row]  # all rows, those of MODEL with the outcomes against AGAINST
    agreement: Mapping[str, Figure] = field(default_factory=dict)  # with labels; empty: there are none
    cost: Mapping[str, float] = field(default_factory=dict)  # requests, tokens, dollars; empty: no judge was asked
    failure: JudgeFailed | None = None  # the judge failed; what it said before is kept


def verdicts(
    suite: SuiteConfig,
    key: str | None,
    rows: Sequence[Row],
    labelled: Sequence[Example],
    output: Path,
    log: Callable[[str], None],
) -> Verdicts:
    """Ask the suite's judge, if it has one, of what there is to judge.

    Args:
        rows: completions of the evaluated models.
        labelled: pairs with known preferences.
        output: directory of the result. Answers are kept beside it.
    """
    if suite.judge is None:
        return Verdicts(rows=rows)
    config = with_cache(suite.judge, output)
    judge = Judge(config, key, seed=suite.seed)
    found, failure = Verdicts(rows=rows), None
    try:
        if any(row.model == AGAINST for row in rows):
            found = replace(found, rows=_with_outcomes(config, judge, rows, log))
        if labelled:
            log(f"{config.name} compares {len(labelled)} pairs with labels")
            pairs = judged(judge, labelled, compares=True, both_orders=config.both_orders)
            bootstrap = BootstrapConfig(seed=suite.seed, confidence=suite.confidence, num_draws=suite.num_draws)
            found = replace(found, agreement=agreement(pairs, bootstrap))
    except JudgeFailed as error:
        failure = error
    return replace(found, cost={f"judge_{name}": n for name, n in judge.cost().items()}, failure=failure)


def _with_outcomes(config: JudgeConfig, judge: Judge, rows: Sequence[Row], log: Callable[[str], None]) -> Sequence[Row]:
    """Let the judge compare both models' completions. Return all rows, those of MODEL with the outcomes.

    Raises:
        JudgeFailed: the endpoint refuses, or too many pairs have no verdict.
    """
    theirs = {(row.prompt_id, row.index): row for row in select(rows, model=AGAINST, mode=config.mode)}
    own = [row for row in select(rows, model=MODEL, mode=config.mode) if (row.prompt_id, row.index) in theirs]
    pairs = [
        Pair(prompt=row.prompt, ours=row.completion, theirs=theirs[row.prompt_id, row.index].completion) for row in own
    ]
    log(f"{config.name} compares {len(pairs)} pairs, {'in both orders' if config.both_orders else 'in one order'}")
    found = judge.judge(pairs).outcomes
    outcomes = {id(row): outcome for row, outcome in zip(own, found, strict=True) if outcome}
    return [replace(row, outcomes={config.name: outcomes[id(row)]}) if id(row) in outcomes else row for row in rows]
