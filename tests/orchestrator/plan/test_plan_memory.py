"""Bytes of each role, with the arithmetic written out, and properties that hold for any numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.plan.gpus import GPUS
from orchestrator.plan.memory import (
    NAIVE_LOGIT_BYTES,
    Memory,
    Sharding,
    activation_bytes,
    checkpointed_bytes,
    engine_memory,
    gathered_bytes,
    layer_activation_bytes,
    learner_memory,
    logits_bytes,
    scorer_memory,
    zero_bytes,
)
from orchestrator.plan.models import TABLE, ModelShape
from orchestrator.plan.time import Engine

L8, L70 = TABLE["llama-3-8b"], TABLE["llama-3-70b"]
GB = 1e9
SHAPES = st.sampled_from(sorted(TABLE.values(), key=lambda s: s.name))


@pytest.mark.parametrize(("ranks", "gigabytes"), [(16, 79.4), (32, 39.7), (64, 19.85), (128, 9.92)])
def test_states_of_70b_under_zero_3(ranks: int, gigabytes: float) -> None:
    """Check 18 bytes per parameter over all ranks: 2 weights, 4 gradients, 4 master, 8 moments."""
    on_gpu, host = zero_bytes(
        L70.num_params, Sharding(ranks=ranks, zero_stage=3), trained=L70.num_params, offload=False
    )
    assert (on_gpu / GB, host) == (pytest.approx(gigabytes, rel=4e-3), 0)


@pytest.mark.parametrize(
    ("stage", "width", "offload", "gpu", "host"),
    [
        # 1000 parameters on 4 ranks
        (0, 2, False, 2000 + 6000 + 12_000 / 4, 0),  # runs as stage 1
        (1, 2, False, 2000 + 6000 + 12_000 / 4, 0),  # gradients of a micro-batch, 2 bytes, and their sum, 4
        (2, 2, False, 2000 + 16_000 / 4, 0),
        (3, 2, False, 18_000 / 4, 0),
        (2, 2, True, 2000 + 4000 / 4, 12_000 / 4),  # master weights and moments in host memory
        (3, 2, True, 2000 / 4, 20_000 / 4),  # at stage 3 also gradients, and a copy of them
        (0, 4, False, 4000 + 4000 + 8000, 0),  # float32 weights are their own master copy
        (2, 4, False, 4000 + (4000 + 4000 + 8000) / 4, 0),  # but stage 2 updates a second copy
        (3, 4, False, 16_000 / 4, 0),
    ],
)
def test_states_of_each_zero_stage(stage: int, width: int, offload: bool, gpu: float, host: float) -> None:
    sharding = Sharding(ranks=4, zero_stage=stage, weight_bytes=width)
    assert zero_bytes(1000, sharding, trained=1000, offload=offload) == (gpu, host)


def test_adapters_leave_the_base_without_gradients() -> None:
    # 2 bytes for each of 1000 frozen and 10 adapter weights over 2 ranks, and 16 more for the adapter weights
    sharding = Sharding(ranks=2, zero_stage=3)
    assert zero_bytes(1010, sharding, trained=10, offload=False) == ((2 * 1010 + 16 * 10) / 2, 0)


def test_activations_and_logits() -> None:
    # 70B, 4096 tokens: 2 x 80 x 8192 x 4096 = 5.37 GB of layer inputs
    assert checkpointed_bytes(L70, 4096) / GB == pytest.approx(5.37, rel=1e-3)
    # 10 x 4096 x 128256 = 5.25 GB; 512 rows at a time 0.66 GB
    assert logits_bytes(4096, L70.vocab, NAIVE_LOGIT_BYTES) / GB == pytest.approx(5.25, rel=1e-3)
    assert logits_bytes(512, L70.vocab, NAIVE_LOGIT_BYTES) / GB == pytest.approx(0.66, rel=6e-3)
    # 8B: 16 x 4096 + 6 x 4096 + 4 x 1024 + 8 x 14336 = 208,896 bytes per token and layer
    assert layer_activation_bytes(L8) == 65_536 + 24_576 + 4096 + 114_688
    # 10 tokens: all of 32 layers; or 32 inputs of 2 x 4096 bytes and one layer
    assert activation_bytes(L8, 10, checkpointing=False) == 10 * 32 * 208_896
    assert activation_bytes(L8, 10, checkpointing=True) == 10 * (32 * 8192 + 208_896)


@pytest.mark.slow
def test_activations_are_what_autograd_keeps() -> None:
    """Recount the activations on the decoder layers of the installed transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, head_dim=32, intermediate_size=896, vocab_size=128)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).model
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []  # keeps tensors alive, so that no address is reused

    def keep(tensor: object) -> object:
        storage = tensor.untyped_storage()  # type: ignore[attr-defined]
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros((1, 512), dtype=torch.int64), use_cache=False)
    measured = sum(size for place, size in kept.items() if place not in weights)
    shape = ModelShape(name="tiny", hidden=256, layers=4, heads=8, kv_heads=2, head_dim=32, intermediate=896, vocab=128)
    assert activation_bytes(shape, 512, checkpointing=False) == pytest.approx(measured, rel=0.05)


def test_gathered_layers() -> None:
    # 70B: a layer has 855,654,400 parameters, the output layer 1,050,673,152: 2 bytes of both are more than of 1e9
    assert L70.layer_params == 855_654_400
    assert gathered_bytes(L70, Sharding(ranks=8, zero_stage=3)) == 2 * (855_654_400 + 1_050_673_152)
    # 8B: two layers, or one and the output layer, are less than the 1e9 that DeepSpeed keeps
    assert gathered_bytes(L8, Sharding(ranks=8, zero_stage=3)) == 2e9
    assert gathered_bytes(L8, Sharding(ranks=8, zero_stage=0)) == 0
    assert gathered_bytes(L8, Sharding(ranks=1, zero_stage=3)) == 0


def test_a_learner_by_hand() -> None:
    """Check 8B on 8 ranks, 16384 tokens with checkpointing, logits 2048 rows at a time."""
    memory = learner_memory(L8, Sharding(ranks=8, zero_stage=3), tokens=16384, checkpointing=True, chunk=2048)
    parts = {name: size / GB for name, size in memory.parts}
    assert parts["states"] == pytest.approx(18 * 8.030 / 8, rel=1e-3)
    assert parts["activations"] == pytest.approx(16384 * (32 * 8192 + 208_896) / GB)
    assert parts["logits"] == pytest.approx(12 * 2048 * 128256 / GB)
    # 2 GB of layers, a bucket of 5e8 gradients in float32, the output layer's gradient 525,336,576 x 2
    assert parts["gathered"] == pytest.approx(2 + 2 + 1.050673)
    assert parts["runtime"] == 5
    assert memory.total / GB == pytest.approx(sum(parts.values()))
    assert "stepping" not in parts  # 4 bytes of 1.0e9 gradients are less than the temporary buffers before


def test_the_peak_may_be_the_optimiser_step() -> None:
    # One rank, one token: the temporary buffers are small, and the optimiser step holds 1e9 gradients in float32
    memory = learner_memory(L8, Sharding(ranks=1, zero_stage=3), tokens=1, checkpointing=True, chunk=1)
    temporary = sum(memory.part(name) for name in ("gathered", "activations", "logits"))
    assert memory.part("stepping") == pytest.approx(4e9 - temporary)


def test_a_reference_whole_and_sharded() -> None:
    for ranks, gigabytes in ((16, 8.8), (32, 4.4), (64, 2.2), (128, 1.1)):
        memory = scorer_memory(L70, Sharding(ranks=ranks, zero_stage=3), tokens=1024, chunk=512)
        assert memory.part("weights") / GB == pytest.approx(gigabytes, rel=5e-3)
    whole = scorer_memory(L70, Sharding(ranks=4, zero_stage=0), tokens=1024, chunk=512)
    assert whole.part("weights") == 2 * L70.num_params
    assert whole.part("gathered") == 0


def test_an_engine_fills_its_limit() -> None:
    engine = Engine(shape=L70, gpu=GPUS["H100"], tensor_parallel=4, utilization=0.9)
    # (4 x 80e9 x 0.9 - 2 x 70.55e9 - 4 x 2e9) / 327,680 bytes per token
    assert engine.kv_tokens == pytest.approx(423_600, rel=1e-3)
    assert Engine(shape=L70, gpu=GPUS["H100"], tensor_parallel=8).kv_tokens == pytest.approx(1.278e6, rel=1e-3)
    memory = engine_memory(engine, longest=4096)
    assert memory.total == pytest.approx(0.9 * 80e9)
    # On two GPUs the weights alone are 70.6 GB each: no memory is left for the one sequence that is needed
    small = Engine(shape=L70, gpu=GPUS["H100"], tensor_parallel=2)
    assert small.kv_tokens < 0
    assert engine_memory(small, longest=4096).total > 0.9 * 80e9


def test_memory_of_nothing() -> None:
    assert Memory(parts=()).total == 0
    assert Memory(parts=(("weights", 2.0),)).part("logits") == 0


@given(SHAPES, st.integers(1, 512), st.integers(1, 4), st.integers(1, 100_000), st.booleans(), st.integers(0, 3))
def test_more_ranks_never_hold_more(
    shape: ModelShape, ranks: int, times: int, tokens: int, checkpointing: bool, stage: int
) -> None:
    """Check that the memory of a rank never grows with the number of ranks, from two on: one rank gathers nothing."""

    def held(n: int) -> float:
        return learner_memory(
            shape, Sharding(ranks=n, zero_stage=stage), tokens=tokens, checkpointing=checkpointing, chunk=2048
        ).total

    assert held((ranks + 1) * times) <= held(ranks + 1) * (1 + 1e-9)


@given(SHAPES, st.integers(1, 64), st.integers(1, 50_000), st.integers(0, 50_000), st.booleans())
def test_more_tokens_never_take_less(
    shape: ModelShape, ranks: int, tokens: int, more: int, checkpointing: bool
) -> None:
    def held(count: int) -> tuple[float, float]:
        sharding = Sharding(ranks=ranks, zero_stage=3)
        learner = learner_memory(shape, sharding, tokens=count, checkpointing=checkpointing, chunk=2048)
        return learner.total, scorer_memory(shape, sharding, tokens=count, chunk=2048).total

    few, many = held(tokens), held(tokens + more)
    assert few[0] <= many[0] * (1 + 1e-9)
    assert few[1] <= many[1]


@given(SHAPES, st.integers(1, 64), st.integers(0, 2), st.integers(1, 30_000))
def test_no_saving_costs_memory(shape: ModelShape, ranks: int, stage: int, tokens: int) -> None:
    def states(zero_stage: int, *, offload: bool = False) -> float:
        sharding = Sharding(ranks=ranks, zero_stage=zero_stage)
        return zero_bytes(shape.num_params, sharding, trained=shape.num_params, offload=offload)[0]

    assert states(stage + 1) <= states(stage)
    assert states(3, offload=True) <= states(3)
    full, saved = (activation_bytes(shape, tokens, checkpointing=c) for c in (False, True))
    assert saved <= full + tokens * 2 * shape.layers * shape.hidden
