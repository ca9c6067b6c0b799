"""Parameters that weight decay applies to, by the rule of Hugging Face's Trainer and so of TRL."""

from __future__ import annotations

from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

# Copied from Trainer.get_decay_parameter_names, which cannot be called without a complete Trainer.
EXEMPT = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def decayed(module: nn.Module) -> set[str]:
    """Return the names of the parameters that are decayed: all, including adapters, except norms and biases."""
    return set(get_parameter_names(module, [nn.LayerNorm], EXEMPT))
