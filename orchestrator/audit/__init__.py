"""Audit of preference data: faults that a run would train on, the rows to look at, and a copy without them."""
