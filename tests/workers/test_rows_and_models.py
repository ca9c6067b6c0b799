"""Rows for different models: attention windows, rotary positions by length, rows apart, no randomness in a loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fakes import experience
from torch.nn.attention import flex_attention as flex
from torch_engine import learner_of
from transformers.masking_utils import AttentionMaskInterface, sliding_window_causal_mask_function

from configs.quickstart.tiny import create_model
from orchestrator.config.alarms import AlarmsConfig, EngineMismatch
from orchestrator.driver.alarm_actions import MISMATCH
from orchestrator.monitor.alarms import Alarm, AlarmMonitor
from tests.families.rows import LENGTHS, forward_alone, forward_packed, packed, rows_of
from tests.families.tiny import tokenizer, write_tiny
from workers.engines import attention, hf_packing
from workers.engines.attention import AttentionError, PackedMask, packed_attention, packed_mask
from workers.engines.base import ModelError
from workers.engines.divergence import OutputLayer, Target, divergences
from workers.engines.hf_check import check_rows
from workers.engines.hf_models import load_policy, set_loss_mode
from workers.engines.layout import PACKED, Packing, layout_of
from workers.engines.logits import LogitTransform, fit
from workers.packing import plan_apart, shares
from workers.ragged import Ragged
from workers.stats import merge_stats
from workers.types import Scores

CPU = torch.device("cpu")
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
}


def write(directory: Path, **config: Any) -> str:
    create_model(directory, {**SHAPE, **config}, tokenizer(), seed=0)
    return str(directory)


# ------------------------------------------------------------------------------------------------ masks by hand


def test_a_window_is_counted_in_positions_of_the_text() -> None:
    # Prompt p0 p1, completions a0 a1 and b0 b1 at positions 2 3: in the flat array b0 is three places behind p1.
    batch = packed([(np.asarray([3, 4]), [np.asarray([5, 6, 1]), np.asarray([7, 8, 1])])])
    mask = packed_mask(layout_of(batch, CPU), sliding_window_causal_mask_function(2))
    prompt, completions = mask.masks
    assert prompt is None, "two tokens are within a window of two"
    assert completions is not None
    seen = [[[0, 1, 1, 0], [0, 0, 1, 1]]] * 2  # in p0 p1 x0 x1: x0 attends to p1 and itself, x1 to x0 and itself
    assert completions[:, 0].int().tolist() == seen


def test_a_window_that_no_row_fills_costs_nothing() -> None:
    batch = packed(rows_of([(5, (3, 4)), (7, (2,))]))
    layout = layout_of(batch, CPU)
    masks = packed_mask(layout, sliding_window_causal_mask_function(9)).masks
    assert all(found is part.mask for found, part in zip(masks, layout.rectangles, strict=True))


def test_attention_that_sees_ahead_is_refused() -> None:
    layout = layout_of(packed(rows_of([(5, (3,))])), CPU)
    with pytest.raises(AttentionError, match="its tokens attend to later ones"):
        packed_mask(layout, lambda b, h, q, k: q >= 0)


def heads(count: int, size: int, places: int, seed: int) -> torch.Tensor:
    return torch.randn(1, count, places, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"position_bias": torch.zeros(1)}, "position_bias"), ({"dropout": 0.1}, "dropout")],
)
def test_unsupported_arguments_of_attention_are_refused(arguments: dict[str, Any], named: str) -> None:
    layout = layout_of(packed(rows_of([(5, (3,))])), CPU)
    q, k, v = (heads(2, 4, 7, seed) for seed in range(3))
    with pytest.raises(AttentionError, match=named):
        packed_attention(torch.nn.Identity(), q, k, v, packed_mask(layout), **arguments)
    with pytest.raises(AttentionError, match="makes its attention masks itself"):
        packed_attention(torch.nn.Identity(), q, k, v, torch.zeros(1, 1, 7, 7))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 4])
def test_attention_on_gpus_equals_attention_on_cpus(window: int | None, softcap: float | None) -> None:
    """Compare with flex_attention, uncompiled. Sinks need its log-sum-exp, which it returns on GPUs only."""
    layout = layout_of(packed(rows_of()), CPU)
    places = len(layout.rows)
    query, key, value = heads(4, 16, places, 0), heads(2, 16, places, 1), heads(2, 8, places, 2)
    visible = None if window is None else sliding_window_causal_mask_function(window)
    ours, _ = packed_attention(
        torch.nn.Identity(), query, key, value, packed_mask(layout, visible), scaling=0.4, softcap=softcap
    )
    score = {} if softcap is None else {"score_mod": attention._capped(softcap)}
    theirs = flex.flex_attention(
        query, key, value, block_mask=attention._blocks(layout, visible), scale=0.4, enable_gqa=True, **score
    )
    torch.testing.assert_close(ours, theirs.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 270])
def test_a_block_mask_is_that_of_torch_without_its_memory(window: int | None) -> None:
    """Test rows longer and shorter than a block, prompts shared across blocks, and an end within a block."""
    layout = layout_of(packed(rows_of([(300, (90, 5)), (2, (3,)), (100, (60, 60, 60)), (7, (140,))])), CPU)
    visible = None if window is None else sliding_window_causal_mask_function(window)
    ours = attention._blocks(layout, visible)
    theirs = flex.create_block_mask(ours.mask_mod, None, None, len(layout.rows), len(layout.rows), device="cpu")
    assert ours.seq_lengths == theirs.seq_lengths
    assert int(theirs.full_kv_num_blocks.sum()) > 0
    for name in ("kv_num_blocks", "full_kv_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for kind in ("kv", "full_kv"):
        count = getattr(theirs, f"{kind}_num_blocks")[0, 0]
        for own, others, n in zip(*(getattr(m, f"{kind}_indices")[0, 0] for m in (ours, theirs)), count, strict=True):
            assert torch.equal(own[:n], others[:n])


def test_a_sink_takes_its_part_of_the_softmax() -> None:
    # A token attends to itself: weight e^s / (e^s + e^sink) with s = 0 and sink = log 3 is a quarter of its value.
    layout = layout_of(packed([(np.asarray([3]), [np.asarray([4])])]), CPU)
    zero, value = torch.zeros(1, 1, 1, 2), torch.tensor([[[[8.0, 4.0]]]])
    out, _ = packed_attention(
        torch.nn.Identity(), zero, zero, value, packed_mask(layout), s_aux=torch.tensor([math.log(3)])
    )
    assert out.flatten().tolist() == pytest.approx([2.0, 1.0])


# ------------------------------------------------------------------------------------------------ logits


def test_a_transform_and_its_slope_by_hand() -> None:
    both = LogitTransform(scale=0.5, cap=2.0)
    assert both(torch.tensor([4.0])).tolist() == pytest.approx([2 * math.tanh(1)])
    x = torch.tensor([-3.0, 0.1, 2.0], dtype=torch.float64, requires_grad=True)
    (2 * torch.tanh(0.5 * x / 2)).sum().backward()
    slope = both.slope(both(x.detach().clone()))
    assert isinstance(slope, torch.Tensor)
    assert x.grad is not None
    torch.testing.assert_close(slope, x.grad)


def test_what_is_neither_a_factor_nor_a_soft_cap_is_not_fitted() -> None:
    given = torch.tensor([1e-3, -0.1, 10.0, -1000.0, 1e5])
    assert fit(given, given * 3, 1.0) == LogitTransform(scale=3.0)
    capped = fit(given, 30 * torch.tanh(given / 30), 1.0)
    assert capped is not None
    assert capped.cap == pytest.approx(30)
    assert fit(given, given + 1, 1.0) is None
    assert fit(given, given.abs(), 1.0) is None


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_divergence_is_of_the_transformed_logits(beta: float) -> None:
    """Compare with autograd over whole distributions: a student with a factor, a teacher with a soft-cap."""
    g = torch.Generator().manual_seed(0)
    hidden, weight, theirs, their_weight = (
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((5, 4), (7, 4), (5, 3), (7, 3))
    )
    hidden.requires_grad_()
    weight.requires_grad_()
    layer = OutputLayer(weight=their_weight, transform=LogitTransform(cap=1.5))
    student = LogitTransform(scale=0.5, cap=2.0)
    found, _ = divergences(hidden, weight, None, Target(hidden=theirs, layer=layer, beta=beta), 0.7, 2, student)
    found.sum().backward()
    ours = (hidden.grad, weight.grad)
    hidden.grad = weight.grad = None
    p = (2.0 * torch.tanh(0.5 * (hidden @ weight.T) / 2.0) / 0.7).log_softmax(-1)
    q = (1.5 * torch.tanh(theirs @ their_weight.T / 1.5) / 0.7).log_softmax(-1)
    m = (beta * q.exp() + (1 - beta) * p.exp()).log()
    of_teacher, of_student = (
        (q.exp() * (q - (m if beta else p))).sum(-1),
        (p.exp() * (p - (m if beta < 1 else q))).sum(-1),
    )
    expected = {0.0: of_teacher, 1.0: of_student}.get(beta, beta * of_teacher + (1 - beta) * of_student)
    torch.testing.assert_close(found, expected)
    expected.sum().backward()
    torch.testing.assert_close(ours, (hidden.grad, weight.grad))


# ----------------------------------------------------------------------------------------------- models without packing


def test_without_packing_rows_of_equal_width_share_a_batch() -> None:
    # Widths 9 2 8 2, two completions in the last: 9 and 8 fill 18 of 20, 2 + 2·2 fill 6.
    planned = plan_apart(np.asarray([9, 2, 8, 2]), np.asarray([1, 1, 1, 2]), num_ranks=2, budget=20)
    assert [[rows.tolist() for rows in rank] for rank in planned] == [[[0, 2]], [[1, 3]]]
    planned = plan_apart(np.asarray([9, 2, 8, 2]), np.asarray([1, 1, 1, 2]), num_ranks=1, budget=10)
    assert [rows.tolist() for rows in planned[0]] == [[0], [2], [1, 3]], "2 · 8 is over 10, 3 · 2 is not"


def test_a_row_is_as_wide_as_its_longest_completion() -> None:
    prompts, completions = Ragged.of([[3] * 4, [3]]), Ragged.of([[1] * 2, [1] * 7, [1]])
    offsets = np.asarray([0, 2, 3])
    planned = shares(prompts, completions, offsets, np.arange(2), num_ranks=1, budget=20, apart=True)
    # 4 + 7 − 1 = 10 positions twice, then 1: together they would be 30.
    assert [rows.tolist() for rows in planned[0]] == [[0], [1]]


def test_without_packing_completions_of_one_prompt_are_right(tmp_path: Path) -> None:
    write_tiny(tmp_path, "mamba2")
    policy = load_policy(str(tmp_path), "float32", chunk=7).eval()
    assert policy.packing == Packing(apart=True)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs, _ = forward_packed(policy, packed(rows_of()))
        torch.testing.assert_close(logprobs, forward_alone(plain, rows_of())[0], atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------- positions that depend on the length

LONG = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 50.0},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "rope_theta": 50.0,
        "short_factor": [1.0, 1.1, 1.3, 1.7],
        "long_factor": [1.0, 2.0, 3.0, 5.0],
        "original_max_position_embeddings": 24,
    },
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_text_changes_no_short_one(kind: str, tmp_path: Path) -> None:
    limit = {"max_position_embeddings": 24} if kind == "dynamic" else {}
    path = write(tmp_path, model_type="llama", rope_parameters=LONG[kind], **limit)
    policy = load_policy(path, "float32", chunk=7).eval()
    assert policy.packing.max_shared_length == 24
    # One prompt, texts of 6, 24 and 25 tokens: the last exceeds the limit although only 24 of its tokens are inputs.
    rows = [*rows_of([(5, (1, 19, 20))]), *rows_of(seed=3)]
    assert any(len(p) + len(c) > 60 for p, group in rows for c in group)
    with torch.no_grad():
        ours, _ = forward_packed(policy, packed(rows))
        expected = []
        for prompt, group in rows:
            for completion in group:  # a new model, because dynamic frequencies never shrink again
                plain = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
                expected.append(forward_alone(plain, [(prompt, [completion])])[0])
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_short_texts_of_such_a_model_share_their_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, model_type="llama", rope_parameters=LONG["longrope"])
    packing = load_policy(path, "float32", chunk=7).packing
    layout = layout_of(packed(rows_of([(5, (3, 4))])), CPU)
    assert layout.arranged(packing) is layout
    assert layout.arranged(PACKED) is layout


# ------------------------------------------------------------------------------------------------ dropout


def test_a_model_that_has_dropout_has_none_in_a_loss(tmp_path: Path) -> None:
    """Check GPT-2, which has dropout of 0.1: with it the first DPO loss was 0.5238 instead of log 2."""
    write_tiny(tmp_path, "gpt2")
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.resid_pdrop > 0
    policy = load_policy(str(tmp_path), "float32", chunk=7)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    set_loss_mode(policy)
    before, _ = forward_packed(policy, packed(rows_of()))
    after, _ = forward_packed(policy, packed(rows_of()))
    policy.eval()
    assert torch.equal(before, after)
    torch.testing.assert_close(before, forward_packed(policy, packed(rows_of()))[0])
    checkpointed = [m for m in policy.modules() if getattr(m, "gradient_checkpointing", False)]
    assert checkpointed


# ------------------------------------------------------------------------------------------------ the check at load


@pytest.fixture
def afterwards() -> Iterator[None]:
    """Restore our registrations in transformers after each test."""
    yield
    hf_packing.register()


def windowless(**_: Any) -> PackedMask:
    """Register packed attention that ignores windows."""
    assert attention.READING.layout is not None
    return packed_mask(attention.READING.layout)


def test_a_check_at_load_says_how_close_rows_are(tmp_path: Path) -> None:
    path = write(tmp_path, model_type="mistral", sliding_window=6)
    found = check_rows(load_policy(path, "float32", chunk=7), CPU, path=path, longest=96)
    assert found.difference < 1e-5
    assert found.tokens == 2 * 6 + 32


@pytest.mark.usefixtures("afterwards")
def test_an_ignored_window_is_found_at_load(tmp_path: Path) -> None:
    path = write(tmp_path, model_type="mistral", sliding_window=16)  # the short texts have 9 and 14 tokens
    policy = load_policy(path, "float32", chunk=7)
    AttentionMaskInterface.register(hf_packing.NAME, windowless)
    with pytest.raises(ModelError, match=r"packed rows differ from .* suspected: operations that depend on the length"):
        check_rows(policy, CPU, path=path, longest=96)


def test_a_wrong_logit_transform_is_found_at_load(tmp_path: Path) -> None:
    path = write(tmp_path, model_type="llama")
    policy = load_policy(path, "float32", chunk=7)
    policy._transform = LogitTransform(input_scale=1.5)
    with pytest.raises(ModelError, match="suspected: layers that mix the texts of a row, or operations after"):
        check_rows(policy, CPU, path=path, longest=96)


# --------------------------------------------------------------------------------------------- mismatch with the engine


@pytest.mark.usefixtures("afterwards")
def test_a_run_whose_learner_ignores_the_window_stops_in_its_first_step(tmp_path: Path) -> None:
    """Check that the mismatch alarm stops a run whose learner ignores windows that the engine applies."""
    path = Path(write(tmp_path, model_type="mistral", sliding_window=6))
    rows = rows_of(LENGTHS)
    with torch.no_grad():
        sampled, _ = forward_alone(
            transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), rows
        )
    groups = [(prompt.tolist(), [c.tolist() for c in completions]) for prompt, completions in rows]
    given = experience(groups, logprobs=sampled.tolist())
    rewards = Scores(rewards=np.arange(len(given.completions), dtype=np.float32), by_scorer={})

    def verdict(*, ignores_window: bool) -> Alarm | None:
        learner, _ = learner_of(path, {"type": "grpo"})
        if ignores_window:
            AttentionMaskInterface.register(hf_packing.NAME, windowless)
        metrics = merge_stats([learner.step(0, [given], [rewards], None, None)])
        monitor = AlarmMonitor(AlarmsConfig(engine_mismatch=EngineMismatch(max_difference=MISMATCH["float32"])))
        monitor.update(1, metrics)
        return monitor.verdict

    assert verdict(ignores_window=False) is None
    stopped = verdict(ignores_window=True)
    assert stopped is not None
    assert (stopped.name, stopped.action, stopped.step) == ("engine_mismatch", "stop", 1)
