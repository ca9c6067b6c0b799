"""Phases of a step: rollouts or a dataset, the reference, training, publication. Each uses only its own gangs."""
