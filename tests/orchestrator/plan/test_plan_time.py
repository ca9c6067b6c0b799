"""Seconds of each phase, with the arithmetic written out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.plan.constants import DEFAULT
from orchestrator.plan.gpus import GPUS, of_ray, parse_gpus
from orchestrator.plan.models import TABLE, ModelShape
from orchestrator.plan.time import (
    Engine,
    broadcast_s,
    decode_step_s,
    forward_flops,
    generation_s,
    learning_s,
    prefill_s,
    response_lengths,
    scoring_s,
    sharded_s,
    through_files_s,
    throughput,
    weights_read,
    zero3_traffic_s,
)

H100 = GPUS["H100"]
L70 = TABLE["llama-3-70b"]
# A model of round numbers: 1 layer, 2N = 2e9 FLOP per token, 4 bytes of keys and values per token and unit of width
ROUND = ModelShape(name="round", hidden=1, layers=1, heads=1, kv_heads=1, head_dim=1, intermediate=333_333_333, vocab=1)


def test_flops_of_a_token() -> None:
    # 70B at 512 tokens: 2 x 70.554e9 + 2 x 80 x 8192 x 512 = 141.107e9 + 0.671e9; of 1024 x 1024 tokens: 148.7 PFLOP
    assert forward_flops(L70, 512) == 2 * L70.num_params + 2 * 80 * 8192 * 512
    assert 1024 * 1024 * forward_flops(L70, 512) == pytest.approx(148.7e15, rel=1e-3)
    # a mixture counts only the parameters used for a token
    mixtral = TABLE["mixtral-8x7b"]
    assert forward_flops(mixtral, 0) == 2 * mixtral.active_params


def test_learning_and_scoring() -> None:
    # 3 x 148.66 PFLOP / (64 x 989 TFLOP/s x 0.35) = 20.1 s; one pass at 0.45: 5.22 s
    tokens = 1024 * 1024.0
    learn = learning_s(L70, H100, tokens=tokens, context=512, gpus=64, constants=DEFAULT)
    score = scoring_s(L70, H100, tokens=tokens, context=512, gpus=64, constants=DEFAULT)
    assert learn == pytest.approx(3 * 148.66e15 / (64 * 989e12 * 0.35), rel=1e-3)
    assert score == pytest.approx(5.22, rel=1e-2)
    half = learning_s(L70, H100, tokens=tokens, context=512, gpus=64, constants=DEFAULT, mfu=0.7)
    assert half == pytest.approx(learn / 2)
    # A frozen base passes gradients through and gets none: 2 of 3
    frozen = learning_s(L70, H100, tokens=tokens, context=512, gpus=64, constants=DEFAULT, frozen=True)
    assert frozen == pytest.approx(learn * 2 / 3)


@pytest.mark.parametrize(("bandwidth", "seconds"), [(400e9, 2.6), (200e9, 5.3), (100e9, 10.6), (50e9, 21.2)])
def test_zero_3_between_nodes(bandwidth: float, seconds: float) -> None:
    """Check 70B, 2 micro-steps, 8 nodes: 2 x 3 x 141.1 GB x 7/8 over 0.7 of the link bandwidth."""
    constants = replace(DEFAULT, node_bytes_per_s=bandwidth)
    assert zero3_traffic_s(L70, micro_steps=2, gpus=64, constants=constants) == pytest.approx(seconds, rel=2e-2)
    assert zero3_traffic_s(L70, micro_steps=2, gpus=8, constants=constants) == 0
    frozen = zero3_traffic_s(L70, micro_steps=2, gpus=64, constants=constants, frozen=True)
    assert frozen == pytest.approx(seconds * 2 / 3, rel=2e-2)


def test_a_decoding_step() -> None:
    engine = Engine(shape=ROUND, gpu=H100, tensor_parallel=2)
    n = ROUND.num_params  # 1,000,000,000 and a few
    assert n == pytest.approx(1e9, rel=1e-6)
    # Reading 2e9 bytes and 10 sequences of 100 tokens with 4 bytes each, from 2 x 3.35e12 x 0.6; and 80 us each
    expected = (2 * n + 10 * 100 * 4) / (2 * 3.35e12 * 0.6) + 10 * 80e-6
    assert decode_step_s(engine, running=10, context=100, constants=DEFAULT) == pytest.approx(expected)
    # With 100,000 sequences computing takes longer than reading: 1e5 x 2e9 FLOP at 2 x 989e12 x 0.7
    expected = 1e5 * (2 * n + 2 * 100) / (2 * 989e12 * 0.7) + 1e5 * 80e-6
    assert decode_step_s(engine, running=1e5, context=100, constants=DEFAULT) == pytest.approx(expected)
    # 500 prompt tokens at 0.55 of 2 x 989e12
    expected = 500 * (2 * n + 2 * 500) / (2 * 989e12 * 0.55)
    assert prefill_s(engine, 500, DEFAULT) == pytest.approx(expected)


def test_experts_that_no_token_chooses_are_not_read() -> None:
    shape = TABLE["mixtral-8x7b"]
    # One token uses 2 of 8 experts and leaves 6 idle; very many tokens use all of them
    assert weights_read(shape, 1) == pytest.approx(2 * shape.active_params, rel=1e-6)
    assert weights_read(shape, 1000) == pytest.approx(2 * shape.num_params)
    # Two tokens leave an expert idle with probability (3/4)^2: 7/16 of them are read on average
    all_experts = 32 * 8 * 3 * 4096 * 14336
    assert weights_read(shape, 2) == pytest.approx(2 * (shape.num_params - 9 / 16 * all_experts))


def test_throughput_of_a_full_engine() -> None:
    engine = Engine(shape=ROUND, gpu=H100, tensor_parallel=1, max_running=8)
    step = decode_step_s(engine, running=8, context=150, constants=DEFAULT)
    # 8 sequences generate 100 tokens each in 100 steps; each also costs its prefill
    expected = 100 / (100 * step / 8 + prefill_s(engine, 100, DEFAULT))
    assert throughput(engine, prompt=100, response=100, constants=DEFAULT) == pytest.approx(expected)
    assert throughput(Engine(shape=L70, gpu=H100, tensor_parallel=2), prompt=1, response=1, constants=DEFAULT) == 0


def test_one_sequence_alone() -> None:
    """Check 32 tokens: 16 steps at a length of 10 tokens, 16 at 26."""
    engine = Engine(shape=ROUND, gpu=H100, tensor_parallel=1)
    steps = [decode_step_s(engine, running=1, context=c, constants=DEFAULT) for c in (10, 26)]
    expected = prefill_s(engine, 10, DEFAULT) + 16 * sum(steps)
    took = generation_s(engine, sequences=1, prompt=10.0, response=32.0, longest=32, group=1, constants=DEFAULT)
    assert took == pytest.approx(expected)


def test_sequences_that_do_not_fit_together_run_one_after_another() -> None:
    one = Engine(shape=ROUND, gpu=H100, tensor_parallel=1, max_running=1)

    def duration(count: int) -> float:
        return generation_s(one, sequences=count, prompt=10.0, response=64.0, longest=64, group=1, constants=DEFAULT)

    assert duration(2) == pytest.approx(2 * duration(1))
    # The time is infinite if not one sequence fits
    large = Engine(shape=L70, gpu=H100, tensor_parallel=2)
    assert (
        generation_s(large, sequences=1, prompt=10.0, response=10.0, longest=10, group=1, constants=DEFAULT) == math.inf
    )


def test_lengths_have_their_mean_and_their_cap() -> None:
    lengths = response_lengths(1024, mean=512.0, longest=2048, sigma=0.6)
    assert lengths.mean() == pytest.approx(512, rel=2e-3)
    assert lengths.max() == 2048
    assert len(np.unique(np.sort(lengths)[:-32])) > 900  # quantiles, not copies
    # The lengths are shuffled: neighbours differ
    assert abs(np.corrcoef(lengths[:-1], lengths[1:])[0, 1]) < 0.5  # sorted: 1
    assert (response_lengths(4, mean=600.0, longest=512, sigma=0.6) == 512).all()


def test_publication() -> None:
    # 141 GB: 0.9 + 141/500 if all GPUs send; 0.9 + 141/11.5 from one rank; 1 GB through files is written and read
    assert sharded_s(141e9, DEFAULT) == pytest.approx(0.9 + 0.282)
    assert broadcast_s(141e9, DEFAULT) == pytest.approx(0.9 + 141 / 11.5)
    assert through_files_s(1e9, DEFAULT) == pytest.approx(0.9 + 2)


def test_parsing_of_gpus() -> None:
    assert parse_gpus("64xH100") == (64, H100)
    assert parse_gpus("h200") == (None, GPUS["H200"])
    assert parse_gpus("8xA100") == (8, GPUS["A100-80"])
    assert of_ray("A100") is GPUS["A100-80"]
    assert of_ray("AMD-Instinct-MI300X-OAM") is GPUS["MI300X"]
    assert of_ray("H20") is GPUS["H20"]
    assert of_ray("H200") is GPUS["H200"]
    assert of_ray("T4") is None


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 64), st.integers(1, 64), st.floats(1, 2000), st.floats(10, 2000), st.sampled_from([1, 2, 4, 8, 16])
)
def test_generation_never_gets_shorter_with_more_to_do(
    sequences: int, more: int, prompt: float, response: float, group: int
) -> None:
    engine = Engine(shape=TABLE["llama-3-8b"], gpu=H100, tensor_parallel=1, max_running=64)

    def duration(count: int) -> float:
        return generation_s(
            engine,
            sequences=count,
            prompt=prompt,
            response=response,
            longest=4096,
            group=group,
            constants=DEFAULT,
        )

    few, many = duration(sequences), duration(sequences + more)
    # The quantiles depend on the number of sequences: the longest of few may exceed the longest of many
    assert few <= many * 1.02
    assert math.isfinite(many)
