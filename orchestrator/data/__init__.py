"""Prompts and examples as people have them (TRL's formats), read with the line of everything that is wrong.

file, folder or hub name ──sources──► rows ──formats──► Prompt, Example ──batches──► which rows a step takes
"""

from orchestrator.data.batches import batch_indices
from orchestrator.data.examples import read_examples
from orchestrator.data.prompts import read_prompts

__all__ = ["batch_indices", "read_examples", "read_prompts"]
