"""Compare methods on the same base model, evaluation and compute budget."""
