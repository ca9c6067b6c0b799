"""Packed rows give the same results as Hugging Face for each sequence alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from workers.engines.attention import layout_of
from workers.engines.hf_files import weight_names
from workers.engines.hf_models import enable_checkpointing, load_policy
from workers.packing import Packed, pack
from workers.ragged import Ragged

CPU = torch.device("cpu")

# Rows of 1 to 5 completions, input lengths 14, 25, 2, 13 and 9: four rectangles, one of them with two rows.
PROMPTS = [[3, 4, 5, 6], [3] + [5, 6, 7] * 6, [8, 9], [7, 8, 9, 10, 11], [4], [3, 5, 7, 9, 11] * 14]
COMPLETIONS = [
    [[5, 6, 7, 8], [9, 4, 1], [10, 11, 3, 4, 5, 1]],
    [[6, 6, 1], [4, 4, 4, 4, 1]],
    [[1]],
    [[3, 4, 5, 6, 7, 8, 9, 10, 1]],
    [[3, 1], [5, 6, 1], [7, 8, 9, 1], [1], [10, 11, 1]],
    [[4, 6, 8] * 10 + [1], [10, 4, 1]],
]


def packed_rows(prompts: list[list[int]] = PROMPTS, completions: list[list[list[int]]] = COMPLETIONS) -> Packed:
    flat = [tokens for group in completions for tokens in group]
    offsets = np.cumsum([0, *(len(group) for group in completions)])
    return pack(Ragged.of(prompts), Ragged.of(flat), offsets, np.arange(len(prompts)))


def ask(policy: Any, packed: Packed, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    tokens, positions, predictors, targets = (
        torch.from_numpy(a.astype(np.int64))
        for a in (packed.tokens, packed.positions, packed.predictors, packed.targets)
    )
    found: tuple[Tensor, Tensor] = policy(tokens, positions, layout_of(packed, CPU), predictors, targets, temperature)
    return found


def one_by_one(model: Any, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs, entropies = [], []
    for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True):
        for completion in group:
            tokens = torch.tensor([prompt + completion])
            every = (model(tokens).logits[0] / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
            logprobs.append(every[range(len(completion)), completion])
            entropies.append(-(every.exp() * every).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


# ------------------------------------------------------------------------------------------------ layout


def test_rows_of_nearly_equal_length_share_a_rectangle() -> None:
    # Input lengths 160 120 100 and 70: 120 is not below ¾ of 160, 100 is; 70 is below ¾ of 100.
    lengths = [100, 70, 160, 120]
    packed = packed_rows([[3] * n for n in lengths], [[[1]]] * 4)
    first, second, third = layout_of(packed, CPU).rectangles
    assert (first.num_pieces, second.num_pieces, third.num_pieces) == (2, 1, 1)
    # The rows of 160 and 120 start at 170 and 330; the shorter one is padded with its own first position.
    assert first.queries.tolist() == [*range(170, 330), *range(330, 450), *[330] * 40]
    assert first.keys.tolist() == first.queries.tolist()
    assert first.real.tolist() == list(range(280))
    assert first.flat.tolist() == list(range(170, 450))
    assert second.queries.tolist() == list(range(100))
    assert first.mask is None


def test_small_rows_share_a_rectangle_whatever_their_lengths() -> None:
    packed = packed_rows([[3] * n for n in (5, 2, 64)], [[[1]]] * 3)
    (only,) = layout_of(packed, CPU).rectangles
    assert only.num_pieces == 3


def test_a_shared_prompt_by_hand() -> None:
    # p0 | a0 | b0 b1 at 0 | 1 | 2 3: the prompt is a separate piece, and each completion attends to prompt and itself.
    prompt, completions = layout_of(packed_rows([[3]], [[[4, 1], [5, 6, 1]]]), CPU).rectangles
    assert (prompt.queries.tolist(), prompt.mask) == ([0], None)
    assert completions.queries.tolist() == [2, 3, 1, 1]  # the longer first, the other padded
    assert completions.keys.tolist() == [0, 2, 3, 0, 1, 1]
    assert completions.flat.tolist() == [2, 3, 1]
    assert completions.mask is not None
    assert completions.mask[0, 0].int().tolist() == [[1, 1, 0], [1, 1, 1]]


# ------------------------------------------------------------------------------------------------ against Hugging Face


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_is_one_by_one(model: Path, temperature: float) -> None:
    policy = load_policy(str(model), "float32", chunk=7)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    packed = packed_rows()
    # The long prompt, small causal pieces; the long completion, the short one after the same prompt, small ones.
    assert len(layout_of(packed, CPU).rectangles) == 5
    logprobs, entropies = ask(policy, packed, temperature)
    expected, expected_entropies = one_by_one(plain, temperature)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, expected_entropies, atol=1e-5, rtol=1e-5)

    weights = torch.linspace(-1, 1, len(expected))
    (logprobs * weights).sum().backward()
    (expected * weights).sum().backward()
    theirs = dict(plain.named_parameters(remove_duplicate=False))
    for name, parameter in weight_names(policy).items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_completion_sees_no_other_one(model: Path) -> None:
    policy = load_policy(str(model), "float32", chunk=64)
    before, _ = ask(policy, packed_rows())
    changed = [[list(c) for c in group] for group in COMPLETIONS]
    changed[0][1] = [4, 9, 1]  # tokens 4, 5 and 6 of the flat array
    after, _ = ask(policy, packed_rows(completions=changed))
    changed_tokens = torch.zeros(len(before), dtype=torch.bool)
    changed_tokens[4:7] = True
    torch.testing.assert_close(before[~changed_tokens], after[~changed_tokens], atol=1e-6, rtol=0)
    assert ((before - after).abs()[changed_tokens] > 1e-3).all()


def test_neighbours_and_order_do_not_matter(model: Path) -> None:
    policy = load_policy(str(model), "float32", chunk=64)
    together, _ = ask(policy, packed_rows())
    apart = [ask(policy, packed_rows([p], [c]))[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-6, rtol=1e-6)


def test_checkpointing_changes_no_gradient(model: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = load_policy(str(model), "float32", chunk=64)
        if checkpointing:
            enable_checkpointing(policy)
        ask(policy.train(), packed_rows())[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1])
