"""Best-of-n sampling from the base model as a method, from the answers that all runs sampled before their first step.

    answers of the base, one run of each seed ──► for each n: chance of each answer to be the best of n by the scorer
                                              ──► win rate, KL

Nothing is resampled: an estimate is the mean over all subsets of n of the N answers. Its KL to the base is at most
log n − (n − 1)/n nats, and this upper bound is reported; the KL itself is smaller where few answers are possible (arXiv
2401.01879).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from orchestrator.compare.recipe import BestOfNConfig
from orchestrator.compare.run_curves import AXES, EvalPoint, RunCurve, RunEntry, Table, scores_of, values_of
from orchestrator.errors import BadInput, Problem
from orchestrator.evaluation.best_of import chances
from orchestrator.evaluation.statistics import Values


def best_of_n_curves(
    config: BestOfNConfig,
    entries: Sequence[RunEntry],
    tables: Sequence[Table],
    prompts: Sequence[str],
    gold: str | None,
) -> list[RunCurve]:
    """Return a curve for each n, with two points: the base, and best-of-n. It costs no training.

    Raises:
        BadInput: if no run scored its answers with the scorer, or too few answers were sampled.
    """
    pool = list(_one_of_each_seed(config, entries, tables))
    if not pool:
        names = sorted({name for table in tables for row in table[0] for name in dict(row["scores"])})
        why, fix = f"the scorers of the runs are: {', '.join(names)}", "name the one that the methods are trained on"
        raise BadInput(Problem(what=f"best_of_n.scorer = {config.scorer}", where="tasks", why=why, fix=fix))
    ratings = np.concatenate([scores_of(e, rows, prompts, config.scorer) for e, rows in pool], axis=1)  # [prompts, N]
    golds = np.concatenate([scores_of(e, rows, prompts, gold) for e, rows in pool], axis=1)
    lengths = np.concatenate([values_of(rows, prompts, "length") for _, rows in pool], axis=1)
    if max(config.n) >= ratings.shape[1]:
        what = f"best_of_n.n = {max(config.n)}, of {ratings.shape[1]} answers"
        why, fix = "the chosen answer is compared with an answer that is not among the n", "raise num_samples"
        raise BadInput(Problem(what=what, where="tasks", why=why, fix=fix))
    base = _point(0, golds, lengths, n=1, ratings=ratings)
    return [
        RunCurve(
            name=f"{config.name}-{n}",
            method=config.name,
            setting=f"n {n}",
            seed=0,
            ended="nothing is trained",
            evals=(base, _point(1, golds, lengths, n=n, ratings=ratings)),
            is_trained=False,
        )
        for n in config.n
    ]


def kl_bound(n: int) -> float:
    """Return the upper bound in nats of the KL of best-of-n to the model it samples from (arXiv 2401.01879).

    >>> round(kl_bound(4), 3)
    0.636
    """
    return math.log(n) - (n - 1) / n


def _one_of_each_seed(
    config: BestOfNConfig, entries: Sequence[RunEntry], tables: Sequence[Table]
) -> Iterator[tuple[RunEntry, list[Mapping[str, object]]]]:
    """Yield the first run of each seed that has the scorer, with its answers before the first step.

    Runs of the same seed sample the same answers from the base.
    """
    seen = set()
    for entry, table in zip(entries, tables, strict=True):
        rows = [row for row in table[0] if row["mode"] == "sampled"]
        seed = entry.record.setting("seed", 0)
        if seed not in seen and rows and all(dict(row["scores"]).get(config.scorer) is not None for row in rows):
            seen.add(seed)
            yield entry, rows


def _point(step: int, gold: Values, lengths: Values, *, n: int, ratings: Values) -> EvalPoint:
    weights = np.stack([chances(row, n) for row in ratings])
    return EvalPoint(
        step=step,
        spent=dict.fromkeys(AXES, 0.0),
        gold=gold,
        kl=np.full(len(gold), kl_bound(n)),
        length=(weights * lengths).sum(1),
        weights=weights,
        over_base=np.asarray([_win_rate(*rows, n) for rows in zip(ratings, gold, strict=True)]),
    )


def _win_rate(ratings: Values, gold: Values, n: int) -> float:
    """Return how often the best of n answers by `ratings` [N] beats, by `gold` [N], another answer of the same N.

    The answer of rank r (0 is the worst) is the best of C(r, n − 1) subsets of n. An answer above it is in none of
    them, and one below it is missing in C(r − 1, n − 1). Answers of equal rating are ranked by their index, which does
    not depend on their gold scores.
    """
    order = np.argsort(ratings, kind="stable")
    ranked, count = gold[order], len(gold)
    outcomes = (ranked[:, None] > ranked[None, :]) + 0.5 * (ranked[:, None] == ranked[None, :])
    total = 0.0
    for r in range(n - 1, count):
        above, below = math.comb(r, n - 1), math.comb(r - 1, n - 1) if r else 0
        total += above * outcomes[r, r + 1 :].sum() + below * outcomes[r, :r].sum()
    return float(total / (math.comb(count, n) * (count - n)))
