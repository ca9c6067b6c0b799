"""Golden traces: every figure of the first steps of each quickstart recipe that is not a clock, as it was when made.

    python tests/stack/traces.py              runs the recipes, writes tests/golden/traces/ (`make golden`, 20 minutes)
    python tests/stack/traces.py grpo dpo     runs these alone
    python tests/stack/traces.py --check      runs them and compares (`make golden-check`)

Exact to the bit on the kind of machine that made them, and compared there alone: elsewhere a token that falls on the
other side of a rounding makes another run. A change that alters what is learned, however little, shows here. It is then
either a mistake or worth a sentence in the commit that makes the traces anew.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from attempts import Run

from orchestrator.config import load

Figures: TypeAlias = Sequence[Mapping[str, Any]]  # a row for each line of metrics.jsonl

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "traces"
QUICKSTART = ROOT / "configs" / "quickstart"
STEPS, ROUNDS = 10, 1  # a round is half a thousand prompts
MACHINE = ("vendor_id", "cpu family", "model", "model name", "stepping")


def machine() -> dict[str, str]:
    """What a float depends on."""
    lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    told = {key.strip(): value.strip() for key, value in lines}
    return {key: told.get(key, "") for key in MACHINE} | {"torch": importlib.metadata.version("torch")}


def differences(found: Figures, name: str) -> list[str]:
    """How a run differs from its trace, a line each; one line when the trace was made by another kind of machine."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    if golden["machine"] != machine():
        return [f"{name}: made by {golden['machine']}, this is {machine()}: they cannot be compared"]
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
            if now[key] != then[key]
        ]
    return told


def run(name: str, house: Path) -> Figures:
    """The first steps of a recipe, in a directory that has the quickstart's data; stages before it are shared."""
    source = QUICKSTART / f"{name}.yaml"
    *_, last = stages = load(source).stages
    overrides = []
    for stage in stages[1:] or stages:
        count = ROUNDS if stage.name.endswith("iterative-dpo") else STEPS
        changes = {"algorithm.max_steps": count, "checkpoint.every": count}
        changes |= {"evaluation.every": count} if stage.evaluation.every is not None else {}
        overrides += [f"stages.{stage.name}.{key}={value}" for key, value in changes.items()]
    _call([str(Path(sys.executable).parent / "rlhf"), "run", str(source), *overrides], house)
    return Run(house / last.directory).metrics_without_clocks


def _call(command: list[str], house: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=house, check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    check = "--check" in sys.argv[1:]
    recipes = sorted(path.stem for path in QUICKSTART.glob("*.yaml") if path.stem not in ("base", "compare"))
    wanted = [name for name in sys.argv[1:] if not name.startswith("--")] or recipes
    told: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        house = Path(directory)
        (house / "configs").symlink_to(ROOT / "configs")
        _call([sys.executable, "configs/quickstart/task.py"], house)
        for name in wanted:
            print(name, flush=True)
            found = run(name, house)
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
