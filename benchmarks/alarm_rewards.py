"""What the runs of `benchmarks.alarms` are rewarded with: TRL's signature, completions of the letters a to h."""

from __future__ import annotations

import random

_noise = random.Random(0)


def first_letter(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """How near the first letter is to the prompt's: 1 when it is the same, 0 when it is farthest. An answer without one
    is worth a middling one, so that length says nothing."""
    return [
        1 - abs(ord(c[0]) - ord(p[0])) / 7 if c[:1].isalpha() else 0.5
        for p, c in zip(prompts, completions, strict=True)
    ]


def letters_a(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A proxy that counts: each letter a is worth 1/8, whatever stands around it."""
    return [c.count("a") / 8 for c in completions]


def variety(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """What the proxy was meant to reward: how many different letters there are, of 8."""
    return [len(set(c)) / 8 for c in completions]


def without_a(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """What must not be lost: the share of letters that are no a."""
    return [1 - c.count("a") / max(1, len(c)) for c in completions]


def length(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A reward for every token."""
    return [len(c) / 96 for c in completions]


def constant(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A reward that is broken."""
    return [0.5 for _ in completions]


def noise(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A reward that says nothing about the completion."""
    return [_noise.random() for _ in completions]
