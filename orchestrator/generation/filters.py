"""Filters of completions: each names the reason for which one is dropped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from orchestrator.evaluation.rank_scores import final_answer
from orchestrator.generation.completions import Completion
from workers.config import FiltersConfig, GenerateConfig


class Filters:
    """Filters of single completions. The first that a completion fails is the reason."""

    def __init__(self, config: FiltersConfig, language_of: Callable[[str], str] | None = None) -> None:
        """Prepare the filters. `language_of` returns the language of a text; None: that of the classifier."""
        self._config = config
        self._pattern = None if config.pattern is None else re.compile(config.pattern)
        self._language_of = language_of or (language_classifier() if config.languages else None)

    def reason(self, completion: Completion) -> str:
        """Return the reason for which a completion is dropped; empty: it is kept."""
        own = self._config
        if not completion.text.strip():
            return "empty"
        if own.truncated == "drop" and completion.finish != "stop":
            return "truncated"
        if own.min_score is not None and (completion.score is None or completion.score < own.min_score):
            return "score"
        if completion.tokens < own.min_tokens or (own.max_tokens is not None and completion.tokens > own.max_tokens):
            return "length"
        if own.max_repetition is not None and completion.repetition > own.max_repetition:
            return "repetition"
        if self._pattern is not None and not self._pattern.search(completion.text):
            return "format"
        if self._language_of is not None and self._language_of(completion.text) not in own.languages:
            return "language"
        return ""


def language_classifier() -> Callable[[str], str]:
    """Return the function that names the language of a text by its ISO 639-1 code: that of py3langid."""
    import py3langid

    return lambda text: str(py3langid.classify(text)[0])


def outvoted(group: Sequence[Completion], config: GenerateConfig) -> set[int]:
    """Return the samples of a prompt that are not kept because of the vote on its final answer.

    Of equally frequent answers, the one that was sampled first wins.
    """
    if config.keep == "all":
        return set()
    answers = [final_answer(completion.text) for completion in group]
    winner, votes = Counter(answers).most_common(1)[0]
    if votes < config.min_agreement * len(group):
        return {completion.sample for completion in group}
    return {completion.sample for completion, answer in zip(group, answers, strict=True) if answer != winner}
