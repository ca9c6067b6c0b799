"""Judge of an evaluation: the win rate of a model's completions against another's. See workers/judging.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from orchestrator.errors import JudgeFailed, Problem, redact
from orchestrator.evaluation.suite import JudgeConfig
from workers.chat_endpoint import BudgetSpentError, ChatEndpoint, EndpointRefusedError
from workers.config import JudgeRewardConfig
from workers.config.endpoint import EndpointConfig
from workers.judging import Graded, Pair, compare, grade

CACHE = "judge_cache"
Endpoint = TypeVar("Endpoint", bound=EndpointConfig)
JudgeSettings: TypeAlias = JudgeConfig | JudgeRewardConfig


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
        self, config: JudgeSettings, key: str | None, *, seed: int = 0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._config = config
        self._endpoint = ChatEndpoint(config, key, seed=seed, sleep=sleep)
        self._num_failed = 0

    def judge(self, pairs: Sequence[Pair]) -> Judgements:
        """Compare all pairs, with `concurrency` requests at a time.

        Raises:
            JudgeFailed: the endpoint refuses, the budget is used up, or more than the share `max_failures` of the pairs
                has no verdict.
        """
        config = self._config
        with self._mapped_errors():
            outcomes = compare(self._endpoint, pairs, instructions=config.instructions, both_orders=config.both_orders)
        self._check(sum(not outcome for outcome in outcomes), len(pairs), "pairs")
        usage = self._endpoint.usage
        return Judgements(
            outcomes=tuple(outcomes),
            num_requests=usage.requests,
            num_failed=self._num_failed,
            tokens=usage.tokens,
            num_cached=usage.cached,
            cost=usage.cost(config.price),
        )

    def grade(self, answers: Sequence[Graded]) -> list[float | None]:
        """Grade all answers from 0 to 1; None without a grade. Errors as in `judge`."""
        config = self._config
        assert isinstance(config, JudgeRewardConfig), "a judge of a suite compares"
        with self._mapped_errors():
            grades = grade(self._endpoint, answers, rubric=config.instructions, scale=config.scale)
        self._check(sum(g is None for g in grades), len(answers), "answers")
        return grades

    def cost(self) -> dict[str, float]:
        """Return what was used since the client was made."""
        usage = self._endpoint.usage
        return {
            "num_requests": float(usage.requests),
            "num_cached": float(usage.cached),
            "num_failed": float(self._num_failed),
            "tokens": float(usage.tokens),
            "cost": usage.cost(self._config.price),
        }

    @property
    def _where(self) -> str:
        return f"judge.url = {self._config.url}"

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except EndpointRefusedError as error:
            is_spent = isinstance(error, BudgetSpentError)
            what = "the budget of the judge is used up" if is_spent else "the endpoint refuses the request"
            fix = f"{error.fix}; no verdict is paid twice" if is_spent else error.fix
            raise JudgeFailed(Problem(what=what, where=self._where, why=redact(str(error)), fix=fix)) from None

    def _check(self, failed: int, asked: int, what: str) -> None:
        """Count what has no verdict. Raise JudgeFailed if it is too much."""
        self._num_failed += failed
        if failed > self._config.max_failures * asked:
            raise JudgeFailed(
                Problem(
                    what=f"{failed} of {asked} {what} got no verdict",
                    where=self._where,
                    why=f"the last failure: {redact(self._endpoint.last_failure)}",
                    fix="check the endpoint, try judge.structure: json_object, or raise judge.max_failures",
                )
            )
