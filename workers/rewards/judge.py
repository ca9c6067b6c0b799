"""Judge at an OpenAI-compatible endpoint as a scorer: grades, or win rates in the group of a prompt.

    grade     s(y) = (score − low) / (high − low)                          a rubric, one question per completion
    compare   s(y) = mean over the opponents y' of y of its outcomes       both orders, ties ½

A completion without a verdict gets the mean of its group, so that it teaches nothing; a group without any gets ½.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from workers.chat_endpoint import BudgetSpentError, ChatEndpoint, EndpointRefusedError, Usage
from workers.config import JudgeRewardConfig
from workers.config.endpoint import NoKeyError, read_key
from workers.judging import Graded, Pair, compare, grade
from workers.rewards.base import Completed, RewardError, last_text
from workers.rewards.opponents import opponents
from workers.types import Floats


class JudgeScorer:
    """Client of a judge that scores completions."""

    def __init__(self, config: JudgeRewardConfig, **options: Any) -> None:
        """Prepare the client; no request is made. `options` are those of `ChatEndpoint`.

        Raises:
            RewardError: there is no API key where the settings say.
        """
        self.name, self._config = config.name, config
        try:
            key = read_key(config)
        except NoKeyError as error:
            raise RewardError(f"reward {self.name}: {error}") from None
        self._endpoint = ChatEndpoint(config, key, **options)
        self._told = Usage()

    def score(self, completed: Completed) -> Floats:
        """Return a number from 0 to 1 per completion, NaN where there is no other one to compare it with.

        Raises:
            RewardError: the endpoint refuses, the budget is used up, or more than the share `max_failures` of the
                completions got none.
        """
        texts = [last_text(completion) for completion in completed.completions]
        ask: Callable[[Completed, Sequence[str]], Floats] = self._compare if self._config.compare else self._grade
        try:
            scores = ask(completed, texts)
        except BudgetSpentError as error:
            raise RewardError(f"reward {self.name}: {error}; {error.fix}; no verdict is paid twice") from None
        except EndpointRefusedError as error:
            raise RewardError(f"reward {self.name}: {self._config.url} refuses: {error}; {error.fix}") from None
        groups = [group for group in _groups(completed) if len(group) > 1 or not self._config.compare]
        self._check(scores[[at for group in groups for at in group]])
        return _with_means(scores, groups)

    def take_usage(self) -> Mapping[str, float]:
        """Return what was used since the last call: requests, cached, failed, tokens, and the cost in dollars."""
        now, before = self._endpoint.usage, self._told
        self._told = now
        used = {name: getattr(now, name) - getattr(before, name) for name in ("requests", "cached", "failed", "tokens")}
        return {**used, "cost": now.cost(self._config.price) - before.cost(self._config.price)}

    def _grade(self, completed: Completed, texts: Sequence[str]) -> Floats:
        answers = [Graded(prompt=p.text, answer=text) for p, text in zip(completed.prompts, texts, strict=True)]
        grades = grade(self._endpoint, answers, rubric=self._config.instructions, scale=self._config.scale)
        return np.array([np.nan if g is None else g for g in grades], np.float32)

    def _compare(self, completed: Completed, texts: Sequence[str]) -> Floats:
        wins, compared = np.zeros((2, len(texts)))
        asked: list[tuple[int, int]] = []
        for group in _groups(completed):
            for i, j in opponents([texts[at] for at in group], self._config.opponents):
                first, second = group[i], group[j]
                if texts[first] == texts[second]:  # a tie, of which no judge need be asked
                    wins[[first, second]] += 0.5
                    compared[[first, second]] += 1
                else:
                    asked.append((first, second))
        pairs = [Pair(prompt=completed.prompts[a].text, ours=texts[a], theirs=texts[b]) for a, b in asked]
        config = self._config
        outcomes = compare(self._endpoint, pairs, instructions=config.instructions, both_orders=config.both_orders)
        for (first, second), found in zip(asked, outcomes, strict=True):
            if found:
                mean = sum(found) / len(found)
                wins[first] += mean
                wins[second] += 1 - mean
                compared[[first, second]] += 1
        return np.where(compared, wins / np.maximum(compared, 1), np.nan).astype(np.float32)

    def _check(self, scores: Floats) -> None:
        """Raise RewardError if too many completions got no verdict."""
        failed = int(np.isnan(scores).sum())
        if failed > self._config.max_failures * len(scores):
            why = f"the last failure: {self._endpoint.last_failure}"
            fix = "check the endpoint, try structure: json_object, or raise max_failures"
            raise RewardError(f"reward {self.name}: {failed} completions got no verdict; {why}; {fix}")


def _groups(completed: Completed) -> list[list[int]]:
    """Return the completions of each prompt: consecutive ones of the same prompt."""
    places = range(len(completed.prompts))
    return [list(group) for _, group in groupby(places, key=lambda at: completed.prompts[at].id)]


def _with_means(scores: Floats, groups: Sequence[Sequence[int]]) -> Floats:
    """Return the scores, with the mean of its group in the place of each that is missing."""
    filled = scores.copy()
    for group in groups:
        given = scores[group][~np.isnan(scores[group])]
        filled[[at for at in group if np.isnan(scores[at])]] = given.mean() if len(given) else 0.5
    return filled
