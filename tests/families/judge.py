"""Compare our log-probabilities, entropies and gradients of a family with those of plain transformers.

model directory ──► load, as a learner does ──► packed rows ──► log-probabilities, entropy, gradient ──┐
                └─► AutoModel (eager)       ──► each text alone ───────────────────────────────────────┴─► equal?
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

from tests.families.rows import forward_alone, forward_packed, packed, rows_of
from workers.engines import hf_models
from workers.engines.base import ModelError
from workers.engines.hf_check import check_rows

CPU = torch.device("cpu")
TEMPERATURE = 0.8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Log-probabilities and entropy in nats; the gradient relative to its norm. In bfloat16 both sides round differently,
# and single tokens that are routed to another expert differ a lot: the median is compared there.
LIMITS = {"float32": (2e-4, 2e-3, 2e-3), "bfloat16": (0.06, 0.1, 0.35)}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Result for a family: how its rows are fed to the model and how far its numbers are off, or why it is refused."""

    rows: Literal["packed", "apart", "refused"]
    refused: str = ""
    logprobs: float = 0.0  # nats; maximum (float32) or median (bfloat16)
    entropy: float = 0.0
    gradient: float = 0.0  # ‖ours − theirs‖ / ‖theirs‖
    dtype: str = "float32"

    @property
    def wrong(self) -> bool:
        """Presence of a difference beyond rounding, with which a learner would be silently wrong."""
        found = (self.logprobs, self.entropy, self.gradient)
        return self.rows != "refused" and not all(a <= b for a, b in zip(found, LIMITS[self.dtype], strict=True))


def judge(directory: Path, dtype: str = "float32") -> Verdict:
    """Return the verdict on the model in a directory, loaded in `dtype` in one process without DeepSpeed."""
    try:
        policy = hf_models.load_policy(str(directory), dtype, chunk=7).eval()
        check_rows(policy, CPU, path=str(directory), longest=100)
    except ModelError as error:
        return refused(directory, error)
    hf_models.set_loss_mode(policy)
    rows = rows_of()
    logprobs, entropy = forward_packed(policy, packed(rows), TEMPERATURE)
    (logprobs * weights(logprobs)).sum().backward()
    gradients = {n: p.grad for n, p in policy.model.named_parameters(remove_duplicate=False) if p.grad is not None}
    return compared(directory, dtype, policy.packing.apart, logprobs.detach(), entropy, gradients)


def refused(directory: Path, error: Exception) -> Verdict:
    why = str(error).removeprefix(f"{directory}: ").rpartition("are not supported: ")[2].partition("\n")[0]
    return Verdict(rows="refused", refused=why)


def compared(
    directory: Path, dtype: str, apart: bool, logprobs: Tensor, entropy: Tensor, gradients: dict[str, Tensor]
) -> Verdict:
    """Return the verdict on numbers that we computed for the rows of `rows_of`."""
    plain = plain_model(directory, dtype)
    theirs, their_entropy = forward_alone(plain, rows_of(), TEMPERATURE)
    (theirs * weights(theirs)).sum().backward()
    off = length = 0.0
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        wanted = parameter.grad
        if wanted is None or name not in gradients:
            continue
        off += float((gradients[name].float() - wanted.float()).square().sum())
        length += float(wanted.float().square().sum())
    gap, gap_of_entropy = (logprobs - theirs.detach()).abs(), (entropy - their_entropy.detach()).abs()
    return Verdict(
        rows="apart" if apart else "packed",
        logprobs=float(gap.max() if dtype == "float32" else gap.median()),
        entropy=float(gap_of_entropy.max() if dtype == "float32" else gap_of_entropy.median()),
        gradient=(off / length) ** 0.5,
        dtype=dtype,
    )


def plain_model(directory: Path, dtype: str) -> Any:
    auto = hf_models.auto_class(transformers.AutoConfig.from_pretrained(directory))
    return auto.from_pretrained(directory, dtype=DTYPES[dtype], attn_implementation="eager").eval()


def weights(logprobs: Tensor) -> Tensor:
    """Return the weight of each token in the sum whose gradient is compared."""
    return torch.linspace(-1.0, 1.0, len(logprobs))
