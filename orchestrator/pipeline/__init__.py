"""The phases of a step: rollouts or a dataset, the reference, learning, publishing. Each knows its gangs alone."""
