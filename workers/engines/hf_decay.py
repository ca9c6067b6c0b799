"""Which parameters weight decay is for: the rule of Hugging Face's Trainer, and so of TRL."""

from __future__ import annotations

from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

# As in Trainer.get_decay_parameter_names, which is a method of a class that needs a whole training set-up.
EXEMPT = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def decayed(module: nn.Module) -> set[str]:
    """Return the names of the parameters that are decayed: all but norms and biases. Adapters are decayed."""
    return set(get_parameter_names(module, [nn.LayerNorm], EXEMPT))
