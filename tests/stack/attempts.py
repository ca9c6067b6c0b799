"""Run the recipes of this folder and read the run directories."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from families import read_jsonl

from orchestrator.config import Recipe, load
from orchestrator.driver.driver import run_recipe
from orchestrator.preflight.preflight import preflight

RECIPES = Path(__file__).parent / "recipes"
CLOCKS = ("timing/", "throughput/", "critic/timing/")


@dataclass(frozen=True)
class Run:
    """Run directory, with readers of its files."""

    path: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "metrics.jsonl")

    @property
    def metrics_without_clocks(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in self.metrics]

    def figures(self, name: str) -> list[float]:
        return [row[name] for row in self.metrics if name in row]

    @property
    def facts(self) -> list[str]:
        """Facts of the ledger with their steps, such as `PLANNED 1`."""
        return [f"{record['fact']} {record['step']}" for record in read_jsonl(self.path / "ledger.jsonl")]

    @property
    def exit(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "exit.json").read_text())
        return found

    @property
    def weights_digest(self) -> str:
        return hashlib.sha256((self.path / "model" / "model.safetensors").read_bytes()).hexdigest()


def recipe(name: str, *overrides: str) -> Recipe:
    return load(RECIPES / f"{name}.yaml", overrides)


def run(name: str, family: Path, *overrides: str) -> Run:
    """Run a recipe in this process, in the directory of a model family, and return the run of its last stage."""
    before = Path.cwd()
    os.chdir(family)
    try:
        loaded = recipe(name, *overrides)
        preflight(loaded)
        run_recipe(loaded)
        return Run(family / loaded.stages[-1].directory)
    finally:
        os.chdir(before)
