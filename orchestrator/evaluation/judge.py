"""Judge of an evaluation: the win rate of a model's completions against another's. See workers/judging.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from orchestrator.errors import JudgeFailed, Problem, redact
from orchestrator.evaluation.suite import JudgeConfig
from workers.chat_endpoint import BudgetSpentError, ChatEndpoint, EndpointRefusedError
from workers.config.endpoint import EndpointConfig
from workers.judging import Pair, compare

CACHE = "judge_cache"
Endpoint = TypeVar("Endpoint", bound=EndpointConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgements:
    """Verdicts on a sequence of pairs, and their cost."""

    outcomes: tuple[tuple[float, ...], ...]
    """One outcome per pair and order: 1 if ours is better, 0 if theirs is, ½ for a tie. A pair without a verdict in one
    of the orders has no outcome."""
    num_requests: int  # including retries
    num_failed: int  # pairs without a verdict
    tokens: int  # read and written, as reported by the endpoint
    num_cached: int = 0  # questions that were answered before
    cost: float = 0.0  # dollars, by the prices of the settings


def with_cache(config: Endpoint, output: Path) -> Endpoint:
    """Return settings of an endpoint with a directory of its answers: beside `output`, if they have none.

    A result is never overwritten, so that the next evaluation has another directory beside the same answers.
    """
    if config.cache is not None:
        return config
    return config.model_copy(update={"cache": str(output.absolute().parent / CACHE)})


class Judge:
    """Client of one judge. `key` is sent as a bearer token; it appears in no message or result."""

    def __init__(
        self, config: JudgeConfig, key: str | None, *, seed: int = 0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._config = config
        self._endpoint = ChatEndpoint(config, key, seed=seed, sleep=sleep)

    def judge(self, pairs: Sequence[Pair]) -> Judgements:
        """Compare all pairs, with `concurrency` requests at a time.

        Raises:
            JudgeFailed: the endpoint refuses, or more than the share `max_failures` of the pairs has no verdict.
        """
        config, where = self._config, f"judge.url = {self._config.url}"
        try:
            outcomes = compare(self._endpoint, pairs, instructions=config.instructions, both_orders=config.both_orders)
        except EndpointRefusedError as error:
            is_spent = isinstance(error, BudgetSpentError)
            what = "the budget of the judge is used up" if is_spent else "the endpoint refuses the request"
            fix = f"{error.fix}; no verdict is paid twice" if is_spent else error.fix
            raise JudgeFailed(Problem(what=what, where=where, why=redact(str(error)), fix=fix)) from None
        num_failed = sum(not pair for pair in outcomes)
        if num_failed > config.max_failures * len(pairs):
            raise JudgeFailed(
                Problem(
                    what=f"{num_failed} of {len(pairs)} pairs got no verdict",
                    where=where,
                    why=f"the last failure: {redact(self._endpoint.last_failure)}",
                    fix="check the endpoint, try judge.structure: json_object, or raise judge.max_failures",
                )
            )
        usage = self._endpoint.usage
        return Judgements(
            outcomes=tuple(outcomes),
            num_requests=usage.requests,
            num_failed=num_failed,
            tokens=usage.tokens,
            num_cached=usage.cached,
            cost=usage.cost(config.price),
        )
