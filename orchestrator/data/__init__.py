"""Prompts and examples in TRL's formats. Every problem is reported with its line.

file, folder or Hub name ──sources──► rows ──formats──► Prompt, Example ──batches──► rows of a step
"""

from orchestrator.data.batches import batch_indices
from orchestrator.data.examples import read_examples
from orchestrator.data.prompts import read_prompts

__all__ = ["batch_indices", "read_examples", "read_prompts"]
