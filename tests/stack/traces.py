"""Golden traces: every figure of a short run that is not a clock, as it was when the trace was made.

    python tests/stack/traces.py              runs the recipes of TRACES and writes tests/golden/traces/ (`make golden`)
    python tests/stack/traces.py --check      runs them and compares (`make golden-check`)

A change that alters what is learned, however little, shows here. It is then either a mistake or worth a sentence in
the commit that makes the traces anew.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # as tests/conftest.py has it; the number of threads changes sums
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import importlib.metadata
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attempts
import families

Figures: TypeAlias = Sequence[Mapping[str, Any]]  # a row for each line of metrics.jsonl

GOLDEN = Path(__file__).parents[1] / "golden" / "traces"
TRACES: dict[str, tuple[str, ...]] = {
    # recipe: what is overridden
    "grpo": ("algorithm.max_steps=10",),
}
ELSEWHERE = 1e-4  # relative difference allowed on another kind of processor or with another torch


def machine() -> dict[str, str]:
    """What a float depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cpu": model, "torch": importlib.metadata.version("torch")}


def differences(found: Figures, name: str) -> list[str]:
    """How a run differs from its trace, a line each; exact on the kind of machine that made it."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    tolerance = 0.0 if golden["machine"] == machine() else ELSEWHERE
    written = golden["metrics"]
    if len(found) != len(written):
        return [f"{name}: {len(found)} lines of metrics, the trace has {len(written)}"]
    told = []
    for now, then in zip(found, written, strict=True):
        step = then.get("step", "?")
        told += [f"{name}, step {step}: {key} is there in one only" for key in sorted(now.keys() ^ then.keys())]
        told += [
            f"{name}, step {step}: {key} is {now[key]!r}, the trace has {then[key]!r}"
            for key in sorted(now.keys() & then.keys())
            if not _same(now[key], then[key], tolerance)
        ]
    return told


def _same(now: Any, then: Any, tolerance: float) -> bool:
    if isinstance(now, float) and isinstance(then, float):
        return now == then or math.isclose(now, then, rel_tol=tolerance, abs_tol=tolerance * 1e-2)
    return bool(now == then)


def main() -> None:
    check = "--check" in sys.argv[1:]
    wanted = [name for name in sys.argv[1:] if not name.startswith("--")] or list(TRACES)
    told: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        families.write_qwen2(Path(directory))
        for name in wanted:
            found = attempts.run(name, Path(directory), *TRACES[name]).metrics_without_clocks
            if check:
                told += differences(found, name)
            else:
                GOLDEN.mkdir(parents=True, exist_ok=True)
                trace = {"machine": machine(), "metrics": found}
                (GOLDEN / f"{name}.json").write_text(json.dumps(trace, indent=1) + "\n")
    print("\n".join(told))
    sys.exit(1 if told else 0)


if __name__ == "__main__":
    main()
