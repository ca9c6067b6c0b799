"""The reward of the runs here."""

import random


def letters_a(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A reward any policy can learn: the share of the letter a."""
    return [c.count("a") / max(1, len(c)) for c in completions]


def moody(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Another one every time it is asked."""
    return [random.random() for _ in completions]
