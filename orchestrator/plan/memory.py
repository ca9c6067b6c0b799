"""Bytes on each GPU of a role, part by part. Pure functions; GB = 1e9 bytes.

    learner   weights, gradients, AdamW (ZeRO)   gathered layers   activations   logits   runtime
    scorer    weights                            gathered layers   activations   logits   runtime
    engine    weights                            keys and values                          reserve

Sources: ZeRO (arXiv 1910.02054) for the sharded states; DeepSpeed's defaults for the layers gathered at a time;
activations counted tensor by tensor on the decoder layers of transformers (a test recounts them with autograd).
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan.models import ModelShape
from orchestrator.plan.time import ENGINE_RESERVE_BYTES, Engine

RUNTIME_BYTES = 5e9  # CUDA context, NCCL buffers, allocator: assumed, 4 to 6 GB are usual
LOGIT_BYTES = 12  # per logit of a chunk, see heads.py: float32 logits, their exponentials and the product of both
NAIVE_LOGIT_BYTES = 10  # without chunks: bfloat16, float32 and a float32 gradient
DIVERGENCE_FACTOR = 2  # logits of two models at a time
LIVE_PARAMS = 1e9  # gathered parameters that DeepSpeed keeps for reuse
BUCKET_PARAMS = 5e8  # gradients that DeepSpeed reduces at a time
SUB_GROUP_PARAMS = 1e9  # parameters that DeepSpeed's optimiser updates at a time, in float32
TIGHT = 0.9  # share of the memory above which little is left for what is not counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Peak memory of one GPU of a role, and its share of host memory.

    Example: `Memory(parts=(("weights", 2e9), ("runtime", 5e9))).total == 7e9`.
    """

    parts: tuple[tuple[str, float], ...]  # (name, bytes)
    host_bytes: float = 0.0  # host memory per GPU

    @property
    def total(self) -> float:
        return sum(size for _, size in self.parts)

    def part(self, name: str) -> float:
        """Return the bytes of a part; 0 if there is no such part."""
        return dict(self.parts).get(name, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharding:
    """ZeRO partitioning of a model over the ranks of a gang."""

    ranks: int
    zero_stage: int
    weight_bytes: int = 2  # 4: float32


def zero_bytes(params: float, sharding: Sharding, *, trained: float, offload: bool) -> tuple[float, float]:
    """Return the bytes of one rank's model states as (GPU bytes, host bytes).

    The states are the weights of `params` parameters, and gradients, float32 master weights and AdamW's two moments of
    `trained` parameters. Stage 1 partitions the optimiser states, stage 2 also the gradients, stage 3 also the weights.
    With `offload` the master weights and moments (12 bytes) are in host memory. Float32 weights are their own master
    copy, except that stages 1 and 2 update a second copy.

    Gradients of bfloat16 weights are accumulated in float32. Below stage 2 the gradients of a micro-batch are held
    beside their sum, and stage 0 runs as stage 1. With `offload` stage 3 has gradients in host memory: their sum, and
    a copy to update.
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
    """Return the bytes saved for the backward pass per token and layer, in bfloat16: 16h + 6Q + 4K + 8I.

    Each of the two norms saves its float32 input, the normalised value and the result (8h). Attention saves the rotated
    queries, keys, values, its output, and the output again for the projection (6Q + 4K). The MLP saves four arrays of
    its width.
    """
    width = shape.intermediate * (shape.active_experts or 1) + shape.shared_intermediate
    arrays = 8 if shape.gated else 4
    return 16 * shape.hidden + 6 * shape.attention_width + 4 * shape.kv_width + arrays * width


def activation_bytes(shape: ModelShape, tokens: float, *, checkpointing: bool) -> float:
    """Return the activation bytes of a micro-batch of `tokens`.

    With `checkpointing` these are the inputs of all layers, and the activations of the layer being recomputed."""
    if not checkpointing:
        return shape.layers * tokens * layer_activation_bytes(shape)
    return checkpointed_bytes(shape, tokens) + tokens * layer_activation_bytes(shape)


def checkpointed_bytes(shape: ModelShape, tokens: float) -> float:
    """Return the bytes of every layer's input in bfloat16: 2·L·h per token."""
    return 2.0 * shape.layers * shape.hidden * tokens


def logits_bytes(rows: float, vocab: int, each: float = LOGIT_BYTES) -> float:
    """Return the bytes of `rows` rows of logits and of their intermediate results, `each` bytes per logit."""
    return each * rows * vocab


def gathered_bytes(shape: ModelShape, sharding: Sharding) -> float:
    """Return the bytes of gathered parameters under ZeRO-3; 0 with a single rank.

    DeepSpeed keeps `LIVE_PARAMS` gathered for reuse, and at least two layers, or one layer and the output layer."""
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
    """Return the memory of one rank that trains `shape` on micro-batches of `tokens`.

    Args:
        adapters: Number of adapter parameters; 0 trains all weights.
        logprobs: The model has an output layer, evaluated in chunks of `chunk` rows.
        teacher: Model whose output layer is loaded as well.
    """
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
    # During the optimiser step the temporary buffers are free again, and stage 3 copies gradients.
    share = trained / sharding.ranks
    stepping = 4.0 * min(SUB_GROUP_PARAMS, share) if width == 2 and sharding.zero_stage == 3 and not offload else 0.0
    more = max(0.0, stepping - sum(size for _, size in passing))
    parts = [("states", states), *passing, ("stepping", more), ("teacher's head", beside), ("runtime", RUNTIME_BYTES)]
    return Memory(parts=tuple((name, size) for name, size in parts if size), host_bytes=host)


def scorer_memory(shape: ModelShape, sharding: Sharding, *, tokens: float, chunk: int, logprobs: bool = True) -> Memory:
    """Return the memory of one rank of a frozen model that scores micro-batches of `tokens`."""
    parts = [
        ("weights", sharding.weight_bytes * shape.num_params / (sharding.ranks if sharding.zero_stage == 3 else 1)),
        ("gathered", gathered_bytes(shape, sharding)),
        ("activations", tokens * (layer_activation_bytes(shape) + 2 * shape.hidden) * sharding.weight_bytes / 2),
        ("logits", logits_bytes(min(chunk, tokens), shape.vocab) if logprobs else 0.0),
        ("runtime", RUNTIME_BYTES),
    ]
    return Memory(parts=tuple((name, size) for name, size in parts if size))


def engine_memory(engine: Engine, longest: float) -> Memory:
    """Return the memory of one GPU of a rollout engine.

    The KV cache takes all memory the engine may use, and at least that of one sequence of `longest` tokens."""
    gpus = engine.tensor_parallel
    needed = longest * engine.shape.kv_bytes_per_token
    parts = (
        ("weights", 2.0 * engine.shape.num_params / gpus),
        ("keys and values", max(engine.kv_bytes, needed) / gpus),
        ("reserve", ENGINE_RESERVE_BYTES),
    )
    return Memory(parts=parts)
