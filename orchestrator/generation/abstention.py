"""Knowledge of a model, by how often its samples are right, and the completion that an abstention is paired with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from orchestrator.generation.completions import Completion
from workers.config import AbstentionConfig


def knowledge(completions: Sequence[Completion], config: AbstentionConfig) -> tuple[bool | None, float]:
    """Return whether the model knows the answer of a prompt, and the share of its completions that are right.

    None: neither, as the share is between `unknown_up_to` and `known_from`.
    """
    share = sum(_is_right(completion, config) for completion in completions) / len(completions)
    return (True if share >= config.known_from else False if share <= config.unknown_up_to else None), share


def unpaired(
    completions: Sequence[Completion], candidates: Collection[int], config: AbstentionConfig
) -> dict[int, str]:
    """Return the reason for which each candidate, a sample, is not paired with an abstention; one of them is.

    It is a right one where the model knows, and a wrong one where it does not: the one that was sampled most often.
    """
    known, _ = knowledge(completions, config)
    if known is None:
        return dict.fromkeys(candidates, "unsure")
    votes = Counter(completion.text.strip() for completion in completions)
    fitting = [
        completion
        for completion in completions
        if completion.sample in candidates
        and _is_right(completion, config) == known
        and completion.text.strip() != config.answer.strip()
    ]
    taken = max(fitting, key=lambda c: (votes[c.text.strip()], -c.sample), default=None)
    return {sample: "one pair per prompt" for sample in candidates if taken is None or sample != taken.sample}


def _is_right(completion: Completion, config: AbstentionConfig) -> bool:
    return completion.score is not None and completion.score >= config.right
