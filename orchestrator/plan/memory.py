"""Bytes on each GPU of a role, part by part. Pure functions; GB = 1e9 bytes.

    learner   weights, gradients, AdamW (ZeRO)   gathered layers   activations   logits   runtime
    scorer    weights                            gathered layers   activations   logits   runtime
    engine    weights                            keys and values                          reserve

Sources: ZeRO (arXiv 1910.02054) for who holds what; DeepSpeed's defaults for what is whole at a time; activations
counted tensor by tensor on the decoder layers of transformers (a test counts them anew with autograd).
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan.models import ModelShape
from orchestrator.plan.time import ENGINE_RESERVE_BYTES, Engine

RUNTIME_BYTES = 5e9  # CUDA context, NCCL buffers, allocator: assumed, 4 to 6 are usual
LOGIT_BYTES = 12  # per logit of a chunk, see heads.py: float32 logits, their exponentials and the product of both
NAIVE_LOGIT_BYTES = 10  # without chunks: bfloat16, float32 and a float32 gradient
DIVERGENCE_FACTOR = 2  # two models' logits at a time
LIVE_PARAMS = 1e9  # DeepSpeed keeps up to so many parameters whole that are used again soon
BUCKET_PARAMS = 5e8  # DeepSpeed reduces gradients in buckets of so many
SUB_GROUP_PARAMS = 1e9  # DeepSpeed's optimiser steps through so many at a time, in float32
TIGHT = 0.9  # of the memory: fits, with little left for what is not counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What one GPU of a role holds at its fullest moment, and its host memory.

    Example: `Memory(parts=(("weights", 2e9), ("runtime", 5e9))).total == 7e9`.
    """

    parts: tuple[tuple[str, float], ...]  # (name, bytes)
    host_bytes: float = 0.0  # per GPU, of its machine

    @property
    def total(self) -> float:
        return sum(size for _, size in self.parts)

    def part(self, name: str) -> float:
        """0 where there is no such part."""
        return dict(self.parts).get(name, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharding:
    """Bytes per parameter that the GPUs of a group hold together, and how many hold them."""

    ranks: int
    zero_stage: int
    weight_bytes: int = 2  # 4: float32


def zero_bytes(params: float, sharding: Sharding, *, trained: float, offload: bool) -> tuple[float, float]:
    """(on the GPU, on its host): weights of `params`; gradients, float32 master weights and AdamW's two moments of
    `trained`. Stage 1 shares out the optimiser, stage 2 gradients as well, stage 3 weights as well; with `offload` the
    master weights and moments, 12 bytes, are in host memory. In float32 the weights are their own master, but stages 1
    and 2 keep a second copy to update.

    Gradients of bfloat16 weights are added up in float32. Until stage 2 those of a micro-batch stand beside their sum,
    and stage 0 is run as stage 1. With `offload` stage 3 has gradients in host memory: their sum, and a copy to update.
    """
    n, stage, width = sharding.ranks, sharding.zero_stage, sharding.weight_bytes
    master = 4 if width == 2 or stage in (1, 2) else 0
    weights = width * params / (n if stage == 3 else 1)
    gradients = (4 * trained / n) if stage >= 2 else (width + (4 if width == 2 else 0)) * trained
    optimiser = (master + 8) * trained / (n if stage >= 1 or width == 2 else 1)
    if offload and stage == 3:
        return (weights, optimiser + 2 * gradients)
    return (weights + gradients, optimiser) if offload else (weights + gradients + optimiser, 0.0)


def layer_activation_bytes(shape: ModelShape) -> float:
    """Kept for the backward pass, per token and layer, in bfloat16: 16h + 6Q + 4K + 8I.

    Two norms keep their input in float32, what they made of it, and the result (8h each); attention its rotated
    queries, keys, values and output, and that once more for the projection (6Q + 4K); the MLP four arrays of its width.
    """
    width = shape.intermediate * (shape.active_experts or 1) + shape.shared_intermediate
    arrays = 8 if shape.gated else 4
    return 16 * shape.hidden + 6 * shape.attention_width + 4 * shape.kv_width + arrays * width


def activation_bytes(shape: ModelShape, tokens: float, *, checkpointing: bool) -> float:
    """Of a micro-batch of `tokens`: of every layer all of them; with `checkpointing` every layer's input, and all of
    the one layer that is being recomputed."""
    if not checkpointing:
        return shape.layers * tokens * layer_activation_bytes(shape)
    return checkpointed_bytes(shape, tokens) + tokens * layer_activation_bytes(shape)


def checkpointed_bytes(shape: ModelShape, tokens: float) -> float:
    """Every layer's input in bfloat16: 2·L·h per token."""
    return 2.0 * shape.layers * shape.hidden * tokens


def logits_bytes(rows: float, vocab: int, each: float = LOGIT_BYTES) -> float:
    """`rows` of logits with what is computed from them."""
    return each * rows * vocab


def gathered_bytes(shape: ModelShape, sharding: Sharding) -> float:
    """Whole under ZeRO-3: what is used again soon, and at least two layers, or one and the output layer. With one rank
    nothing needs to be gathered."""
    if sharding.zero_stage != 3 or sharding.ranks == 1:
        return 0.0
    least = max(2 * shape.layer_params, shape.layer_params + shape.head_params)
    return sharding.weight_bytes * max(min(LIVE_PARAMS, shape.num_params), least)


def learner_memory(
    shape: ModelShape,
    sharding: Sharding,
    *,
    tokens: float,
    checkpointing: bool,
    chunk: int,
    offload: bool = False,
    adapters: float = 0.0,
    logprobs: bool = True,
    teacher: ModelShape | None = None,
) -> Memory:
    """One rank that trains `shape`, or `adapters` parameters in it, on micro-batches of `tokens`. `logprobs`: it has an
    output layer, read in chunks of `chunk` rows. `teacher`: whose output layer stands beside it."""
    trained = adapters or float(shape.num_params)
    states, host = zero_bytes(shape.num_params + adapters, sharding, trained=trained, offload=offload)
    width = sharding.weight_bytes
    gradients = 4.0 * min(BUCKET_PARAMS, trained) if sharding.ranks > 1 else 0.0  # reduced in float32
    gradients += width * shape.head_params if logprobs and not adapters else 0.0
    rows = min(chunk, tokens)
    logits = logits_bytes(rows, shape.vocab) if logprobs else 0.0
    beside = 0.0
    if teacher is not None:
        logits += logits_bytes(rows, teacher.vocab) * (DIVERGENCE_FACTOR - 1)
        beside = 2.0 * teacher.head_params
    passing = [
        ("gathered", gathered_bytes(shape, sharding) + gradients),
        ("activations", activation_bytes(shape, tokens, checkpointing=checkpointing) * width / 2),
        ("logits", logits),
    ]
    # When the optimiser steps, what passed through is gone, and stage 3 copies gradients.
    share = trained / sharding.ranks
    stepping = 4.0 * min(SUB_GROUP_PARAMS, share) if width == 2 and sharding.zero_stage == 3 and not offload else 0.0
    more = max(0.0, stepping - sum(size for _, size in passing))
    parts = [("states", states), *passing, ("stepping", more), ("teacher's head", beside), ("runtime", RUNTIME_BYTES)]
    return Memory(parts=tuple((name, size) for name, size in parts if size), host_bytes=host)


def scorer_memory(shape: ModelShape, sharding: Sharding, *, tokens: float, chunk: int, logprobs: bool = True) -> Memory:
    """One rank of a frozen model that answers for micro-batches of `tokens`."""
    parts = [
        ("weights", sharding.weight_bytes * shape.num_params / (sharding.ranks if sharding.zero_stage == 3 else 1)),
        ("gathered", gathered_bytes(shape, sharding)),
        ("activations", tokens * (layer_activation_bytes(shape) + 2 * shape.hidden) * sharding.weight_bytes / 2),
        ("logits", logits_bytes(min(chunk, tokens), shape.vocab) if logprobs else 0.0),
        ("runtime", RUNTIME_BYTES),
    ]
    return Memory(parts=tuple((name, size) for name, size in parts if size))


def engine_memory(engine: Engine, longest: float) -> Memory:
    """One GPU of a rollout engine: it takes all it is allowed for keys and values, and needs those of one sequence of
    `longest` tokens at least."""
    gpus = engine.tensor_parallel
    needed = longest * engine.shape.kv_bytes_per_token
    parts = (
        ("weights", 2.0 * engine.shape.num_params / gpus),
        ("keys and values", max(engine.kv_bytes, needed) / gpus),
        ("reserve", ENGINE_RESERVE_BYTES),
    )
    return Memory(parts=parts)
