"""Paths of the files that are shipped under configs/, by kind."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
SUITES = sorted(CONFIGS.glob("eval/*.yaml"))
COMPARISONS = sorted(CONFIGS.rglob("compare*.yaml"))
RECIPES = sorted({*CONFIGS.rglob("*.yaml")} - {*SUITES, *COMPARISONS})
QUICKSTART = [path for path in RECIPES if path.parent.name == "quickstart"]
