"""Attention over packed rows against scaled-dot-product attention of each text alone; compilations, time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu import process
from gpu.device import gpu_of, peak_bytes, reset_peak, synchronize
from gpu.figures import Figure
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.masking_utils import sliding_window_causal_mask_function

from orchestrator.plan.constants import DEFAULT
from workers.engines.attention import BLOCK, packed_attention, packed_mask
from workers.engines.layout import Layout, layout_of
from workers.packing import Packed, pack
from workers.ragged import Ragged

MODULE = torch.nn.Identity()
ROUNDING = 3.0  # times the error of plain attention in the same dtype, which packed attention may have
FLOAT32 = 1e-5  # error of float32, which is not exact either


def rows(positions: int, prompts: int, group: int, seed: int = 0) -> Packed:
    """Return rows of `group` completions each, about `positions` in all, of unequal lengths."""
    rng = np.random.default_rng(seed)
    prompt = max(1, positions // prompts // (group + 2))
    completion = max(2, (positions // prompts - prompt) // group)

    def tokens(mean: int) -> list[int]:
        return [3] * max(2, mean + int(rng.integers(-mean // 8 - 1, mean // 8 + 1)))

    prompt_tokens = Ragged.of([[3] * prompt for _ in range(prompts)])
    completions = Ragged.of([tokens(completion) for _ in range(prompts * group)])
    return pack(prompt_tokens, completions, np.arange(prompts + 1) * group, np.arange(prompts))


def heads(device: torch.device, shape: tuple[int, int, int], places: int, dtype: torch.dtype) -> list[Tensor]:
    """Return random queries, keys and values; `shape`: query heads, key heads, and the size of a head."""
    torch.manual_seed(places)
    query_heads, key_heads, size = shape
    counts = (query_heads, key_heads, key_heads)
    return [torch.randn(1, n, places, size, device=device, dtype=dtype, requires_grad=True) for n in counts]


def one_by_one(layout: Layout, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Attend within each text alone (a prompt, or a prompt and one completion): [1, S, Hq, D]."""
    out = torch.zeros_like(query)
    for row in range(int(layout.rows[-1]) + 1):
        inside = layout.rows == row
        for segment in layout.segments[inside].unique().tolist():
            text = (inside & ((layout.segments == 0) | (layout.segments == segment))).nonzero()[:, 0]
            own = layout.segments[text] == segment
            place = torch.arange(len(text), device=text.device)
            behind = place[:, None] - place[None]
            mask = (behind >= 0) & (behind < (window or len(text)))
            q, k, v = (x[:, :, text] for x in (query, key, value))
            answered = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
            out = out.index_copy(2, text[own], answered[:, :, own])
    return out.transpose(1, 2)


def with_gradients(attend: Callable[..., Tensor], given: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Return the output and the gradients of queries, keys and values, in float32."""
    out = attend(*given)
    return [x.detach().float() for x in (out, *torch.autograd.grad((out * weights.to(out.dtype)).sum(), given))]


def largest_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest value of its tensor."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))


def equality(
    device: str, *, shape: tuple[int, int, int], dtype: str, cases: list[tuple[int, int, int, int | None]]
) -> Iterator[Figure]:
    """Compare outputs and gradients. `cases`: positions, prompts, completions of each, and the window."""
    where = torch.device(device)
    for positions, prompts, group, window in cases:
        layout = layout_of(rows(positions, prompts, group), where)
        visible = None if window is None else sliding_window_causal_mask_function(window)
        mask = packed_mask(layout, visible)
        given = heads(where, tuple(shape), len(layout.rows), getattr(torch, dtype))
        weights = torch.randn(given[0].transpose(1, 2).shape, device=where)

        def ours(*x: Tensor, mask: Any = mask) -> Tensor:
            return packed_attention(MODULE, *x, mask)[0]

        def ours_again(*x: Tensor, ours: Any = ours) -> Tensor:
            return checkpoint(ours, *x, use_reentrant=False)

        alone = partial(one_by_one, layout, window=window)
        exact = with_gradients(alone, [x.detach().float().requires_grad_() for x in given], weights)
        plain = largest_error(with_gradients(alone, given, weights), exact)
        limit = ROUNDING * plain + FLOAT32
        case = f"attention, {prompts} x {group} rows of {len(layout.rows)}{f', window {window}' if window else ''}"
        for name, attend in (("", ours), (", checkpointed", ours_again)):
            error = largest_error(with_gradients(attend, given, weights), exact)
            yield Figure(name=f"{case}{name}: largest error", measured=error, expected=plain, at_most=limit, unit="")


def compilations(device: str, *, shape: tuple[int, int, int], dtype: str, longest: int, most: int) -> Iterator[Figure]:
    """Count what torch.compile makes for 20 lengths, with and without gradients."""
    from torch._dynamo.utils import counters

    started, before = time.perf_counter(), counters["stats"]["unique_graphs"]
    for seed, positions in enumerate(np.random.default_rng(0).integers(longest // 60 + 8, longest, 20)):
        layout = layout_of(rows(int(positions), 3, 2, seed), torch.device(device))
        given = heads(torch.device(device), tuple(shape), len(layout.rows), getattr(torch, dtype))
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                assert bool(packed_attention(MODULE, *given, packed_mask(layout))[0].isfinite().all())
    made = float(counters["stats"]["unique_graphs"] - before)
    yield Figure(
        name="attention: compilations for 20 lengths",
        measured=made,
        expected=2.0 if most else 0.0,
        at_most=most,
        unit="",
    )
    yield Figure(name="attention: seconds for them", measured=time.perf_counter() - started, unit="s")


def speed(
    device: str, *, shape: tuple[int, int, int], dtype: str, positions: list[int], groups: list[tuple[int, int]]
) -> Iterator[Figure]:
    """Measure the milliseconds of a forward and a backward pass, and the memory of the block mask.

    The planner counts 2·H·D FLOP for each pair of positions of a row in a forward pass, and three times that in all.
    """
    where, gpu = torch.device(device), gpu_of(device)
    for count in positions:
        for prompts, group in groups:
            packed = rows(count, prompts, group)
            layout = layout_of(packed, where)
            given = heads(where, tuple(shape), len(layout.rows), getattr(torch, dtype))
            case = f"attention, {prompts} x {group} rows of {len(layout.rows)}"
            mask_ms, mask_bytes = clock(device, lambda layout=layout: packed_mask(layout))
            mask = packed_mask(layout)

            def both(given: Any = given, mask: Any = mask) -> None:
                torch.autograd.grad(packed_attention(MODULE, *given, mask)[0].sum(), given)

            ms, used = clock(device, both)
            flops = 6.0 * shape[0] * shape[2] * float((packed.row_lengths.astype(float) ** 2).sum())
            planned = flops / (gpu.flops * DEFAULT.train_mfu) * 1e3
            yield Figure(name=f"{case}: forward and backward", measured=ms, expected=planned, unit="ms")
            yield Figure(name=f"{case}: block mask", measured=mask_ms, unit="ms")
            if device != "cpu":
                yield Figure(name=f"{case}: memory", measured=used / 1e9, unit="GB")
                yield mask_memory(case, mask_bytes, len(layout.rows))


def mask_memory(case: str, used: float, places: int) -> Figure:
    """Return the memory of building a block mask: some arrays of a band, and of a number for each pair of blocks."""
    expected = 6.0 * places * BLOCK + 40.0 * (places / BLOCK) ** 2
    limit = 3 * expected + 1e7  # torch's create_block_mask takes 7 S²: 7.5 GB at 32k
    return Figure(
        name=f"{case}: memory of the block mask",
        measured=used / 1e6,
        expected=expected / 1e6,
        at_most=limit / 1e6,
        unit="MB",
    )


def clock(device: str, call: Callable[[], Any], times: int = 3) -> tuple[float, float]:
    """Return the milliseconds of a call after the first one, and the bytes that it needs at its peak."""
    call()
    synchronize(device)
    before = reset_peak(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - started) / times * 1e3, peak_bytes(device) - before


if __name__ == "__main__":
    process.main(globals())
