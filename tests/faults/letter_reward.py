"""Reward functions of the runs in these tests."""

import random


def letters_a(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Return the share of the letter a in each completion: a reward that any policy can learn."""
    return [c.count("a") / max(1, len(c)) for c in completions]


def random_rewards(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Return random rewards, different on every call."""
    return [random.random() for _ in completions]
