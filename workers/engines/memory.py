"""Return of free memory to the GPU and the operating system."""

from __future__ import annotations

import ctypes
import gc

import torch


def release() -> None:
    """Collect garbage and return free memory to the GPU and to the operating system."""
    gc.collect()  # modules and their hooks refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps as much free memory as a model takes otherwise
    if trim is not None:
        trim(0)
