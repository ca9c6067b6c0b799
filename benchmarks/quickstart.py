"""The quickstart over three seeds: the table in the README, measured.

    python -m benchmarks.quickstart            (`make table`; about 20 minutes on 2 cores)
    python -m benchmarks.quickstart grpo       measures one recipe anew, the rows of the others stay

For each seed: another untrained model, other demonstrations and prompts, another base, and from it iterative DPO,
GRPO and PPO, each by the recipe as it lies in configs/quickstart/. Accuracy is greedy, on 256 prompts (`test.jsonl`)
that no setting was chosen by. Times are wall-clock for the whole command, starting Ray and the engines included.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import description

ROOT = Path(__file__).parent.parent
RECIPES = {"iterative_dpo": "iterative DPO, 3 rounds", "grpo": "GRPO, 40 steps", "ppo": "PPO, 40 steps"}
SEEDS = (0, 1, 2)
RESULT = ROOT / "benchmarks" / "results" / "quickstart"
BEGIN, END = "<!-- quickstart table: make table -->", "<!-- end of the quickstart table -->"


def main() -> None:
    wanted = sys.argv[1:] or list(RECIPES)
    kept = json.loads(RESULT.with_suffix(".json").read_text())["seeds"] if sys.argv[1:] else [{} for _ in SEEDS]
    results = [before | _seed(seed, wanted) for before, seed in zip(kept, SEEDS, strict=True)]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.with_suffix(".json").write_text(
        json.dumps({"date": _today(), "machine": description(), "seeds": results}, indent=1) + "\n"
    )
    table = _table(results)
    RESULT.with_suffix(".md").write_text(table)
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}")
    print(table)


def _seed(seed: int, wanted: list[str]) -> dict[str, Any]:
    data, runs = Path("data") / f"quickstart-seed-{seed}", Path("runs") / f"quickstart-seed-{seed}"
    _call([sys.executable, "configs/quickstart/task.py", "--directory", str(data), "--seed", str(seed)])
    base = {
        "output_dir": runs,
        "seed": seed,
        "model.path": data / "model",
        "data.dataset": data / "demonstrations.jsonl",
    }
    _rlhf("base", base)
    common = {f"stages.quickstart-base.{key}": value for key, value in base.items()} | {
        "output_dir": runs,
        "seed": seed,
        "data.prompts": data / "prompts.jsonl",
        "data.eval_prompts": data / "test.jsonl",
    }
    found: dict[str, Any] = {"seed": seed}
    for recipe in wanted:
        shutil.rmtree(runs / f"quickstart-{recipe.replace('_', '-')}", ignore_errors=True)
        seconds = _rlhf(recipe, common)
        metrics = runs / f"quickstart-{recipe.replace('_', '-')}" / "metrics.jsonl"
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        curve = {row["step"]: row["eval/reward"] for row in rows if "eval/reward" in row}
        gap = max(row["sampling/logp_difference"] for row in rows if "sampling/logp_difference" in row)
        driver = statistics.median(row["timing/driver"] / row["timing/step"] for row in rows if "timing/step" in row)
        found[recipe] = {"accuracy": curve, "seconds": seconds, "logp_difference": gap, "driver_share": driver}
    return found


def _rlhf(recipe: str, overrides: dict[str, Any]) -> float:
    rlhf = Path(sys.executable).parent / "rlhf"
    arguments = [f"{key}={value}" for key, value in overrides.items()]
    return _call([str(rlhf), "run", f"configs/quickstart/{recipe}.yaml", *arguments])


def _call(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    return time.monotonic() - started


def _table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"Greedy accuracy on 256 unseen prompts, mean of seeds {', '.join(map(str, SEEDS))} (lowest – highest),",
        "and minutes for the whole command from a finished base:",
        "",
        "| recipe | base | on the way | end | minutes |",
        "|---|---|---|---|---|",
    ]
    for recipe, label in RECIPES.items():
        runs = [result[recipe] for result in results]
        curves = [{int(step): accuracy for step, accuracy in run["accuracy"].items()} for run in runs]  # JSON has text
        steps = sorted(curves[0])
        at = {s: _spread([curve[s] for curve in curves]) for s in steps}
        word = "round" if recipe == "iterative_dpo" else "step"
        way = "; ".join(f"{word} {s}: {at[s]}" for s in steps[1:-1])
        minutes = _spread([run["seconds"] / 60 for run in runs], digits=1)
        lines.append(f"| {label} | {at[0]} | {way} | **{at[steps[-1]]}** | {minutes} |")
    machine = description()
    lines += ["", f"Measured {_today()} on {machine['cpu']}, {machine['cpu_cores']} cores, by `make table`.", ""]
    return "\n".join(lines)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} – {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
