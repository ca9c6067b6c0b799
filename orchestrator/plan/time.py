"""Seconds of each phase, from model shapes, lengths and a GPU's peak rates. Pure functions.

Symbols: N parameters (in a mixture of experts, those used for a token), L layers, h hidden, V vocabulary, n GPUs,
P prompt and O response tokens, G completions per prompt, F peak FLOP/s, W memory bytes/s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from orchestrator.plan.constants import Constants
from orchestrator.plan.gpus import GPUS_PER_NODE, Gpu
from orchestrator.plan.models import ModelShape

ENGINE_RESERVE_BYTES = 2e9  # per GPU of an engine: graphs, workspace, communication
STRIDE_TOKENS = 16  # tokens by which the simulated engine advances at a time
SIMULATED = 1024  # sequences; the rest of a longer queue runs at the throughput of a full engine
SHUFFLE = 79  # stride of the shuffle, so that similar lengths do not follow each other


def forward_flops(shape: ModelShape, context: float) -> float:
    """Return the FLOP per token of a causal sequence of `context` tokens: 2N + 2·L·heads·head_dim·context.

    A token attends to half of the sequence on average; scores and weighted sum cost 2 FLOP each per channel and
    position."""
    return 2.0 * shape.active_params + 2.0 * shape.layers * shape.attention_width * context


def learning_s(
    shape: ModelShape,
    gpu: Gpu,
    *,
    tokens: float,
    context: float,
    gpus: int,
    constants: Constants,
    frozen: bool = False,
    mfu: float = 0.0,
) -> float:
    """Return the time of a forward and a backward pass over `tokens`.

    It is three times a forward pass, or twice if the weights are `frozen` under adapters. Recomputation is part of the
    efficiency. A nonzero `mfu` replaces `constants.train_mfu`."""
    flops = learning_passes(frozen=frozen) * tokens * forward_flops(shape, context)
    return flops / (gpus * gpu.flops * (mfu or constants.train_mfu))


def learning_passes(*, frozen: bool) -> float:
    """Return the cost of a forward and a backward pass in forward passes."""
    return 2.0 if frozen else 3.0


def scoring_s(shape: ModelShape, gpu: Gpu, *, tokens: float, context: float, gpus: int, constants: Constants) -> float:
    """Return the time of one forward pass over `tokens`."""
    return tokens * forward_flops(shape, context) / (gpus * gpu.flops * constants.score_mfu)


def zero3_traffic_s(
    shape: ModelShape, *, micro_steps: int, gpus: int, constants: Constants, frozen: bool = False
) -> float:
    """Return the time of ZeRO-3 communication between nodes, which grows with micro-steps, not with tokens.

    Each micro-step gathers the weights for the forward and for the backward pass, and reduces gradients unless the
    weights are `frozen`: 2N bytes each time, of which (nodes - 1)/nodes come from other nodes."""
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    if nodes == 1:
        return 0.0
    per_step = learning_passes(frozen=frozen) * 2.0 * shape.num_params * (nodes - 1) / nodes
    return micro_steps * per_step / (constants.node_bytes_per_s * constants.node_efficiency)


# ------------------------------------------------------------------------------------------------ generation


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A rollout engine on `tensor_parallel` GPUs."""

    shape: ModelShape
    gpu: Gpu
    tensor_parallel: int
    utilization: float = 0.9  # share of each GPU's memory
    max_running: int = 512  # sequences

    @property
    def kv_bytes(self) -> float:
        """Bytes left for the KV cache on all its GPUs; negative if not even the weights fit."""
        usable = self.gpu.memory_bytes * self.utilization - ENGINE_RESERVE_BYTES
        return self.tensor_parallel * usable - 2.0 * self.shape.num_params

    @property
    def kv_tokens(self) -> float:
        return self.kv_bytes / self.shape.kv_bytes_per_token


def decode_step_s(engine: Engine, *, running: float, context: float, constants: Constants) -> float:
    """Return the time to decode one token for each running sequence.

    It is the longer of memory reads (weights and KV cache) and computation, plus the engine's overhead per sequence."""
    gpus, shape = engine.tensor_parallel, engine.shape
    read = weights_read(shape, running) + running * context * shape.kv_bytes_per_token
    reading = read / (gpus * engine.gpu.bytes_per_s * constants.decode_mbu)
    computing = running * forward_flops(shape, context) / (gpus * engine.gpu.flops * constants.decode_mfu)
    return max(reading, computing) + constants.sequence_s * running


def weights_read(shape: ModelShape, running: float) -> float:
    """Return the bytes of bfloat16 weights that a decoding step reads.

    In a mixture of experts, B tokens that independently choose k of E experts leave an expert idle with probability
    (1 - k/E)^B."""
    if not shape.experts:
        return 2.0 * shape.num_params
    used = 1.0 - math.pow(1.0 - shape.active_experts / shape.experts, running)
    expert_params = shape.layers * shape.experts * (3 if shape.gated else 2) * shape.hidden * shape.intermediate
    return 2.0 * (shape.num_params - (1.0 - used) * expert_params)


def prefill_s(engine: Engine, prompt: float, constants: Constants) -> float:
    """Return the prefill time of one sequence."""
    rate = engine.tensor_parallel * engine.gpu.flops * constants.prefill_mfu
    return prompt * forward_flops(engine.shape, prompt) / rate


def throughput(
    engine: Engine, *, prompt: float, response: float, constants: Constants, batch: float = math.inf
) -> float:
    """Return the response tokens per second of an engine that is always full; 0 if not one sequence fits.

    At most `batch` sequences run at once."""
    running = min(engine.max_running, batch, math.floor(engine.kv_tokens / (prompt + response)))
    if running < 1:
        return 0.0
    step = decode_step_s(engine, running=running, context=prompt + response / 2, constants=constants)
    return response / (response * step / running + prefill_s(engine, prompt, constants))


@lru_cache(maxsize=512)
def generation_s(
    engine: Engine,
    *,
    sequences: int,
    prompt: float,
    response: float,
    longest: int,
    group: int,
    constants: Constants,
) -> float:
    """Return one engine's time for `sequences` completions of mean length `response`, none above `longest`.

    The time is infinite if they do not fit. The simulated engine admits sequences in order while fewer than its maximum
    run and their KV cache fits; a group's prompt is computed once. So a batch takes as long as its longest sequences,
    which run nearly alone.
    """
    simulated = min(sequences, SIMULATED)
    lengths = response_lengths(simulated, mean=response, longest=longest, sigma=constants.length_sigma)
    duration = _simulate(engine, lengths, prompt, group, constants)
    if sequences > simulated:
        rate = throughput(engine, prompt=prompt, response=response, constants=constants)
        duration += math.inf if rate <= 0 else (sequences - simulated) * response / rate
    return duration + constants.generate_overhead_s


def _simulate(engine: Engine, lengths: NDArray[np.float64], prompt: float, group: int, constants: Constants) -> float:
    admission = prefill_s(engine, prompt, constants) / group
    capacity = engine.kv_tokens
    if prompt + lengths.max() > capacity:
        return math.inf
    remaining = np.empty(0)  # response tokens left, of the running sequences
    done = np.empty(0)  # response tokens generated so far
    duration, queue = 0.0, 0
    while queue < len(lengths) or len(remaining):
        used = len(done) * prompt + float(done.sum())
        first = queue
        while queue < len(lengths) and len(done) + queue - first < engine.max_running:
            if used + prompt + lengths[queue] / 2 > capacity:
                break
            used += prompt
            queue += 1
        if queue > first:
            remaining = np.concatenate([remaining, lengths[first:queue]])
            done = np.concatenate([done, np.zeros(queue - first)])
            duration += (queue - first) * admission
        stride = min(STRIDE_TOKENS, float(remaining.max()))
        context = prompt + float(done.mean())
        duration += stride * decode_step_s(engine, running=len(done), context=context, constants=constants)
        remaining, done = remaining - stride, done + stride
        running = remaining > 0
        remaining, done = remaining[running], done[running]
    return duration


@lru_cache(maxsize=512)
def response_lengths(count: int, *, mean: float, longest: int, sigma: float) -> NDArray[np.float64]:
    """Return lengths [count]: the quantiles (i + ½)/count of a log-normal with mean `mean`, capped at `longest`.

    They are shuffled so that neighbours differ. The result is deterministic."""
    if mean >= longest:
        return np.full(count, float(longest))
    normal = NormalDist()

    def capped_mean(mu: float) -> float:
        at = (math.log(longest) - mu) / sigma
        below = math.exp(mu + sigma * sigma / 2) * normal.cdf(at - sigma)
        return below + longest * (1 - normal.cdf(at))

    low, high = math.log(max(mean, 1e-9)) - 10, math.log(longest) + 10
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if capped_mean(middle) < mean else (low, middle)
    points = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    lengths = np.minimum(np.exp(high + sigma * points), longest)
    stride = SHUFFLE
    while math.gcd(stride, count) > 1:
        stride += 1
    shuffled: NDArray[np.float64] = lengths[np.arange(count) * stride % count]
    return shuffled


# ------------------------------------------------------------------------------------------------ weights


def sharded_s(num_bytes: float, constants: Constants) -> float:
    """Return the time if every GPU sends its shard to the engines that need it."""
    return constants.publish_latency_s + num_bytes / constants.sharded_bytes_per_s


def broadcast_s(num_bytes: float, constants: Constants) -> float:
    """Return the time if one rank sends all weights to all engines."""
    return constants.publish_latency_s + num_bytes / constants.broadcast_bytes_per_s


def through_files_s(num_bytes: float, constants: Constants) -> float:
    """Return the time to write to a shared directory and read from it."""
    return constants.publish_latency_s + 2 * num_bytes / constants.disk_bytes_per_s
