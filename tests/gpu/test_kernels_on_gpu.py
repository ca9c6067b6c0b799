"""Kernels of a learner on a GPU: log-probabilities in chunks, and the optimiser in host memory."""

from __future__ import annotations

from collections.abc import Callable


def test_log_probabilities_in_chunks(measure: Callable[..., None]) -> None:
    sizes = {"tokens": 4096, "hidden_size": 8192, "vocab": 128256, "chunk": 2048}
    measure("kernels_check.py", "chunked_logprobs", dtype="bfloat16", **sizes)


def test_the_optimiser_in_host_memory_builds_and_updates(measure: Callable[..., None]) -> None:
    measure("kernels_check.py", "cpu_adam", parameters=2**27)
