"""Golden traces: all metrics except clocks of the first steps of each quickstart recipe.

    python tests/stack/traces.py              runs the recipes, writes tests/golden/traces/ (`make golden`, 10 minutes)
    python tests/stack/traces.py grpo dpo     runs these alone
    python tests/stack/traces.py --check      runs them and compares (`make golden-check`)

A trace is exact to the bit, and is compared only on the kind of machine that made it: elsewhere a rounding difference
can change a sampled token, and with it the rest of the run. Every change of what is learned, however small, shows here.
Such a change is either a mistake or is explained in the commit that writes the new traces.
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

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for configs/, which is not installed

from attempts import Run  # noqa: E402

from orchestrator.config import load  # noqa: E402

Figures: TypeAlias = Sequence[Mapping[str, Any]]  # one row per line of metrics.jsonl

GOLDEN = ROOT / "tests" / "golden" / "traces"
QUICKSTART = ROOT / "configs" / "quickstart"
WITHOUT = ("base", "notes", "constitution")  # others begin with the first two, and the third is no recipe
STEPS, ROUNDS = 10, 1  # a round has 512 prompts
WHOLE = ("quickstart-critic",)  # of fewer steps its critiques mean nothing, and what is learned from them neither
MACHINE = ("vendor_id", "cpu family", "model", "model name", "stepping")
VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # a virtual machine may hide some of those of its processor


def machine() -> dict[str, str]:
    """Return the properties of this machine and of torch that floating-point results depend on."""
    lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    processor = {key.strip(): value.strip() for key, value in lines}
    flags = processor.get("flags", "").split()
    return {
        **{key: processor.get(key, "") for key in MACHINE},
        "vectors": " ".join(flag for flag in VECTORS if flag in flags),
        "torch": importlib.metadata.version("torch"),
    }


def differences(found: Figures, name: str) -> list[str]:
    """Return one line per difference between a run and its trace; a single line if another machine made the trace."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    if golden["machine"] != machine():
        return [f"{name}: made by {golden['machine']}, this is {machine()}: they cannot be compared"]
    written = golden["metrics"]
    if len(found) != len(written):
        return [f"{name}: {len(found)} lines of metrics, the trace has {len(written)}"]
    lines = []
    for now, then in zip(found, written, strict=True):
        step = then.get("step", "?")
        lines += [f"{name}, step {step}: {key} is there in one only" for key in sorted(now.keys() ^ then.keys())]
        lines += [
            f"{name}, step {step}: {key} is {now[key]!r}, the trace has {then[key]!r}"
            for key in sorted(now.keys() & then.keys())
            if now[key] != then[key]
        ]
    return lines


def run(name: str, directory: Path) -> Figures:
    """Return the metrics of the first steps of a recipe, run in a directory with the quickstart's data.

    Recipes share the first of several stages, which runs to its end, and so do those in WHOLE.
    """
    source = QUICKSTART / f"{name}.yaml"
    *_, last = stages = load(source).stages
    overrides = []
    shortened = [s for s in stages[1:] or stages if s.algorithm.needs.trains and s.name not in WHOLE]
    for stage in shortened:
        count = ROUNDS if stage.name.endswith("iterative-dpo") else STEPS
        changes = {"algorithm.max_steps": count, "checkpoint.every": count}
        changes |= {"evaluation.every": count} if stage.evaluation.every is not None else {}
        overrides += [f"stages.{stage.name}.{key}={value}" for key, value in changes.items()]
    _call([str(Path(sys.executable).parent / "rlhf"), "run", str(source), *overrides], directory)
    return Run(directory / last.directory).metrics_without_clocks


def _call(command: list[str], directory: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=directory, check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    check = "--check" in sys.argv[1:]
    names = sorted(path.stem for path in QUICKSTART.glob("*.yaml"))
    recipes = [name for name in names if not name.startswith("compare") and name not in WITHOUT]
    names = [name for name in sys.argv[1:] if not name.startswith("--")] or recipes
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "configs").symlink_to(ROOT / "configs")
        _call([sys.executable, "configs/quickstart/task.py"], directory)
        for name in names:
            print(name, flush=True)
            found = run(name, directory)
            if check:
                lines += differences(found, name)
            else:
                GOLDEN.mkdir(parents=True, exist_ok=True)
                trace = {"machine": machine(), "metrics": found}
                (GOLDEN / f"{name}.json").write_text(json.dumps(trace, indent=1) + "\n")
    print("\n".join(lines))
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
