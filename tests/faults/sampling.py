"""Seed with which a session of the tests samples the faults."""

from __future__ import annotations

import os

SEED = int(os.environ["RLHF_TEST_SEED"])
"""Random seed, drawn by tests/conftest.py unless the variable is set, and printed in the header of the session."""
