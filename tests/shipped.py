"""Paths of the files that are shipped under configs/, by kind."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
SUITES = sorted(CONFIGS.glob("eval/*.yaml"))
COMPARISONS = sorted(CONFIGS.rglob("compare*.yaml"))
CONSTITUTIONS = sorted(CONFIGS.rglob("constitution.yaml"))
RECIPES = sorted({*CONFIGS.rglob("*.yaml")} - {*SUITES, *COMPARISONS, *CONSTITUTIONS})
QUICKSTART = [path for path in RECIPES if path.parent.name == "quickstart"]
ON_GPUS = [path for path in RECIPES if path.parent.name in ("8b", "70b")]
PROMPTS = {path.stem: path for path in sorted(CONFIGS.glob("eval/*.jsonl"))}
