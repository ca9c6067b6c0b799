"""The seed by which a run of the tests draws its sample of the faults."""

from __future__ import annotations

import os

SEED = int(os.environ["RLHF_TEST_SEED"])
"""Drawn by tests/conftest.py unless it is set, and printed in the head of a run."""
