"""The checks of tests/gpu at tiny sizes on a CPU, so that the code of the checks has run before it meets a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gpu import attention_check, kernels_check
from gpu.device import named
from gpu.figures import Figure, append, read, table
from gpu.process import run

TINY = {"shape": (4, 2, 16), "dtype": "float32"}


def test_packed_attention_is_that_of_each_text_alone() -> None:
    cases = [(40, 2, 1, None), (90, 3, 4, None), (90, 3, 4, 7)]
    figures = list(attention_check.equality("cpu", **TINY, cases=cases))
    assert len(figures) == 2 * len(cases)
    assert [figure for figure in figures if figure.fails] == []


def test_attention_without_its_window_is_found() -> None:
    layout = attention_check.layout_of(attention_check.rows(90, 3, 4), torch.device("cpu"))
    given = attention_check.heads(torch.device("cpu"), (4, 2, 16), len(layout.rows), torch.float32)
    whole, windowed = (attention_check.one_by_one(layout, *given, window) for window in (None, 7))
    assert attention_check.largest_error([whole.detach()], [windowed.detach()]) > 0.1


def test_rows_have_about_the_positions_that_are_asked_for() -> None:
    for positions, prompts, group in ((300, 2, 1), (2048, 8, 1), (2500, 1, 8), (2048, 4, 2)):
        packed = attention_check.rows(positions, prompts, group)
        assert len(packed.row_lengths) == prompts
        assert (packed.row_sizes == group).all()
        assert 0.8 * positions < len(packed.tokens) < 1.15 * positions


def test_time_and_compilations_of_attention() -> None:
    first, _ = attention_check.compilations("cpu", **TINY, longest=120, most=0)
    assert not first.fails
    figures = list(attention_check.speed("cpu", **TINY, positions=[64, 128], groups=[(2, 1), (1, 4)]))
    times = [figure for figure in figures if figure.name.endswith("forward and backward")]
    assert len(times) == 4
    assert all(figure.measured > 0 for figure in times)
    # Two rows of 32 each: 6 · 4 · 16 · 2 · 32² FLOP at 0.35 of 50 GFLOP/s, if the lengths were equal.
    assert times[0].expected == pytest.approx(6 * 4 * 16 * 2 * 32**2 / (0.35 * 50e9) * 1e3, rel=0.3)


def test_log_probabilities_in_chunks() -> None:
    sizes = {"tokens": 40, "hidden_size": 32, "vocab": 100, "chunk": 16}
    for dtype in ("float32", "bfloat16"):
        figures = list(kernels_check.chunked_logprobs("cpu", dtype=dtype, **sizes))
        assert len(figures) == 3
        assert [figure for figure in figures if figure.fails] == []


@pytest.mark.long  # the build takes minutes on two cores
def test_the_optimiser_in_host_memory_builds_and_updates() -> None:
    figures = run("kernels_check.py", "cpu_adam", "cpu", parameters=1000)
    assert len(figures) == 3
    assert [figure for figure in figures if figure.fails] == []


LLAMA = {
    "vocab_size": 60,
    "max_position_embeddings": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}


FURTHER = [("bfloat16", None), ("float32", {"r": 4, "lora_alpha": 8}), ("bfloat16", {"r": 4, "lora_alpha": 8})]


@pytest.mark.stack
@pytest.mark.parametrize(
    ("dtype", "lora"), [("float32", None), *(pytest.param(*case, marks=pytest.mark.long) for case in FURTHER)]
)
def test_a_learner(dtype: str, lora: dict[str, int] | None) -> None:
    settings = {"gradient_checkpointing": True, "param_persistence_threshold": 0}
    common = {"shape": LLAMA, "dtype": dtype, "tokens": 256, "lora": lora, "saves": True}
    figures = run("learner_check.py", "learning", "cpu", **common, settings=settings)
    assert [figure.name.rpartition(": ")[2] for figure in figures] == [
        "rotary buffers not in float32",
        "loss",
        "speed",
        "MFU",
        "gathering all weights",
        "weights not gathered",
        "saving",
        "checkpoint",
        "loading",
        "moved by a step after saving",
        "difference after loading",
    ]
    assert [figure for figure in figures if figure.fails] == []


@pytest.mark.stack
@pytest.mark.long
def test_engine_and_learner_agree_before_and_after_a_publication() -> None:
    shape = {**LLAMA, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    del shape["vocab_size"]
    figures = run("engine_check.py", "agreement", "cpu", shape=shape, dtype="float32", prompts=4, length=12)
    assert len(figures) == 7
    assert [figure for figure in figures if figure.fails] == []


# ------------------------------------------------------------------------------------------------ figures


def test_gpus_are_found_by_the_names_of_their_driver() -> None:
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-80GB", "NVIDIA B200")
    assert [named(name).name for name in names] == ["H100", "H200", "A100-80", "B200"]
    with pytest.raises(LookupError, match=r"Quadro P400 is not in orchestrator/plan/gpus\.py"):
        named("Quadro P400")


def test_a_figure_outside_of_its_limits_fails() -> None:
    assert Figure(name="a", measured=2, unit="s", at_most=1).fails
    assert Figure(name="a", measured=1, unit="s", at_least=2).fails
    assert Figure(name="a", measured=float("nan"), unit="s").fails
    assert not Figure(name="a", measured=1, unit="s", at_most=1, at_least=1).fails


def test_figures_are_written_read_and_shown(tmp_path: Path) -> None:
    figures = [
        Figure(name="peak", measured=28.1, expected=30.2, unit="GB", at_most=33.2),
        Figure(name="speed", measured=5000, expected=10000, unit="tokens/s"),
        Figure(name="error", measured=0.3, unit="", at_most=0.1),
    ]
    append(tmp_path / "figures.jsonl", "learner", figures)
    assert read(tmp_path / "figures.jsonl") == figures
    assert json.loads((tmp_path / "figures.jsonl").read_text().splitlines()[0])["check"] == "learner"
    lines = table(figures).splitlines()
    assert lines[1].split() == ["peak", "28.1", "GB", "30.2", "GB", "<=", "33.2", "within", "its", "limit"]
    assert lines[2].endswith("0.50 x the expected")
    assert lines[3].endswith("FAILS")
