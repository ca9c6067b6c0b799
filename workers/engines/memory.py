"""Memory that is free is given back to the machine, and not kept by the process."""

from __future__ import annotations

import ctypes
import gc

import torch


def give_back() -> None:
    """Collect what nobody refers to, and return its memory to the GPU and to the operating system."""
    gc.collect()  # modules and their hooks refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; it keeps a model's worth of free memory otherwise
    if trim is not None:
        trim(0)
