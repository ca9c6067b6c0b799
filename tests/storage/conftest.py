"""Paths of the run in one process that the tests on object storage give a storage."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("workers", "faults"):
    sys.path.append(str(Path(__file__).parents[1] / folder))
