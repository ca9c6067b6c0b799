"""Evaluation of models: on held-out data during a run, and on a suite by `rlhf evaluate` and `rlhf rank`."""
