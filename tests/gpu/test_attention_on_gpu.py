"""Packed attention on a GPU: equal to plain attention, compiled once, and as fast and as small as planned."""

from __future__ import annotations

from collections.abc import Callable

SHAPE = (64, 8, 128)  # query heads, key heads and size of a head: Llama 70B
COMMON = {"shape": SHAPE, "dtype": "bfloat16"}


def test_packed_attention_is_that_of_each_text_alone(measure: Callable[..., None]) -> None:
    cases = [
        (300, 2, 1, None),
        (1000, 3, 4, None),
        (2048, 4, 2, None),
        (2500, 1, 8, None),
        (2048, 4, 2, 300),
        (2500, 1, 8, 200),
    ]
    measure("attention_check.py", "equality", **COMMON, cases=cases)


def test_attention_is_compiled_once_for_many_lengths(measure: Callable[..., None]) -> None:
    measure("attention_check.py", "compilations", **COMMON, longest=6000, most=4)


def test_time_and_memory_of_attention(measure: Callable[..., None]) -> None:
    groups = [(8, 1), (4, 2), (1, 16)]
    measure("attention_check.py", "speed", **COMMON, positions=[2048, 8192, 16384, 32768], groups=groups)
