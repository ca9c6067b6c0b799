"""Log-probabilities in chunks against float32 products, and DeepSpeed's optimiser in host memory."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from gpu import process
from gpu.device import peak_bytes, reset_peak, synchronize
from gpu.figures import Figure
from torch import Tensor, nn

from orchestrator.plan.memory import logits_bytes
from workers.engines.heads import _ChunkedLogprobs
from workers.engines.logits import PLAIN

ROUNDING = 2.0  # times the error of whole logits in the same dtype, which logits in chunks may have


def chunked_logprobs(
    device: str, *, dtype: str, tokens: int, hidden_size: int, vocab: int, chunk: int
) -> Iterator[Figure]:
    """Compare log-probabilities and their gradients with those of float32, and those of whole logits in `dtype`."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, device=device).to(getattr(torch, dtype))
    weight = (torch.randn(vocab, hidden_size, device=device) / hidden_size**0.5).to(hidden.dtype)
    targets = torch.randint(0, vocab, (tokens,), device=device)
    exact = whole(hidden.float(), weight.float(), targets)
    plain = whole(hidden, weight, targets)
    synchronize(device)
    before, started = reset_peak(device), time.perf_counter()
    ours = chunks(hidden, weight, targets, chunk)
    synchronize(device)
    seconds, used = time.perf_counter() - started, peak_bytes(device) - before
    for name, index in (("log-probabilities", 0), ("gradients", 1)):
        error, allowed = (mean_error(found[index], exact[index]) for found in (ours, plain))
        limit = ROUNDING * allowed + 1e-6
        yield Figure(name=f"{name} in chunks: mean error", measured=error, expected=allowed, at_most=limit, unit="")
    yield Figure(name=f"log-probabilities of {tokens} tokens and gradients", measured=seconds * 1e3, unit="ms")
    if device != "cpu":
        expected = (logits_bytes(chunk, vocab) + weight.numel() * weight.element_size()) / 1e9
        yield Figure(name="logits: memory", measured=used / 1e9, expected=expected, at_most=1.3 * expected, unit="GB")


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [T] and the gradient of their sum with respect to `hidden`, from all logits at once."""
    hidden = hidden.detach().requires_grad_()
    logprobs = (hidden @ weight.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return logprobs.detach(), torch.autograd.grad(logprobs.sum(), hidden)[0]


def chunks(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logprobs = _ChunkedLogprobs.apply(hidden, weight, None, targets, 1.0, chunk, PLAIN)[0]
    return logprobs.detach(), torch.autograd.grad(logprobs.sum(), (hidden, weight))[0]


def mean_error(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).abs().mean())


def cpu_adam(device: str, *, parameters: int) -> Iterator[Figure]:
    """Build DeepSpeed's AdamW for host memory anew, and compare three updates with torch's."""
    with tempfile.TemporaryDirectory(prefix="rlhf-gpu-check-") as directory:
        os.environ["TORCH_EXTENSIONS_DIR"] = directory
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        torch.manual_seed(0)
        ours = nn.Parameter(torch.randn(parameters))
        theirs = copy.deepcopy(ours)
        settings: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
        started = time.perf_counter()
        own = DeepSpeedCPUAdam([ours], adamw_mode=True, **settings)
        yield Figure(name="optimiser in host memory: building", measured=time.perf_counter() - started, unit="s")
        torchs = torch.optim.AdamW([theirs], **settings)
        for _ in range(3):
            ours.grad = torch.randn(parameters)
            theirs.grad = ours.grad.clone()
            started = time.perf_counter()
            own.step()
            seconds = time.perf_counter() - started
            torchs.step()
        error = float((ours - theirs).detach().abs().max())
    yield Figure(
        name="optimiser in host memory: difference to torch's", measured=error, expected=0, at_most=1e-5, unit=""
    )
    yield Figure(name="optimiser in host memory: an update", measured=seconds / parameters * 1e9, unit="ns/parameter")


if __name__ == "__main__":
    process.main(globals())
