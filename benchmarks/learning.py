"""Does it learn? Every recipe of configs/quickstart/ over three seeds.

    python -m benchmarks.learning              (`make table`; several hours on 2 cores)
    python -m benchmarks.learning grpo dpo     measures these recipes anew, the rows of the others stay
    python -m benchmarks.learning --seeds 1    only these seeds

For each seed: another untrained model, other demonstrations and prompts, another base, and from it each recipe as it
lies in configs/quickstart/. What is measured is held out, and no setting was chosen by it (`test.jsonl`,
`test_pairs.jsonl`). Times are wall-clock for the whole command, starting Ray and the engines included.

Written: benchmarks/results/learning.json with all figures, docs/learning.md, and the table in the README.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import description
from orchestrator.config import RunConfig, load

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
RLHF = str(Path(sys.executable).parent / "rlhf")
RESULT = ROOT / "benchmarks" / "results" / "learning.json"
PAGE = ROOT / "docs" / "learning.md"
README_BEGIN, README_END = "<!-- quickstart table: make table -->", "<!-- end of the quickstart table -->"
IN_THE_README = ("iterative_dpo", "grpo", "ppo")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A recipe and its place in the table."""

    label: str
    metric: str = "eval/reward"
    word: str = "step"


ROWS = {
    "iterative_dpo": Row(label="iterative DPO, 3 rounds", word="round"),
    "grpo": Row(label="GRPO, 40 steps"),
    "ppo": Row(label="PPO, 40 steps"),
    "dapo": Row(label="DAPO, 40 steps"),
    "dr_grpo": Row(label="Dr. GRPO, 40 steps"),
    "gspo": Row(label="GSPO, 40 steps"),
    "grpo_lora": Row(label="GRPO with LoRA, 40 steps"),
    "rloo": Row(label="RLOO, 40 steps"),
    "reinforce_pp": Row(label="REINFORCE++, 40 steps"),
    "rejection_sampling": Row(label="rejection sampling, 20 steps"),
    "offline_dpo": Row(label="offline DPO, 2,048 pairs"),
    "ipo": Row(label="IPO, 2,048 pairs"),
    "simpo": Row(label="SimPO, 2,048 pairs"),
    "kto": Row(label="KTO, 2,048 labelled answers, twice"),
    "reward_model": Row(label="reward model, 120 steps (accuracy on pairs)", metric="eval/accuracy"),
    "ppo_reward_model": Row(label="PPO on that reward model, 30 steps", metric="eval/rewards/exact_sort/mean"),
    "distill": Row(label="distillation from the GRPO result, 20 steps"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", choices=[[], *ROWS], metavar="RECIPE", help=", ".join(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    wanted = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for seed in wanted.seeds:
        house = _house(seed)
        for recipe in wanted.recipes or ROWS:
            found.setdefault(recipe, {})[str(seed)] = _measure(house, recipe, seed)
            RESULT.write_text(json.dumps(found, indent=1) + "\n")
            write_tables(found)


def write_tables(found: dict[str, Any]) -> None:
    """The page of all recipes, and the short table in the README."""
    PAGE.write_text(f"{_PAGE_HEAD}\n{_table(found, list(ROWS))}")
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(README_BEGIN)
    table = f"{_README_HEAD}\n{_table(found, IN_THE_README)}"
    readme.write_text(f"{before}{README_BEGIN}\n{table}{README_END}{rest.split(README_END)[1]}")


# ------------------------------------------------------------------------------------------------ measuring


def _house(seed: int) -> Path:
    """A directory in which the recipes run as they are: data and base of this seed, and a link to configs/."""
    house = ROOT / "runs" / "learning" / f"seed-{seed}"
    house.mkdir(parents=True, exist_ok=True)
    if not (house / "configs").exists():
        (house / "configs").symlink_to(ROOT / "configs")
    _call([sys.executable, "configs/quickstart/task.py", "--seed", str(seed)], house)
    _call([RLHF, "run", "configs/quickstart/base.yaml", f"seed={seed}"], house)
    return house


def _measure(house: Path, recipe: str, seed: int) -> dict[str, Any]:
    path, row = f"configs/quickstart/{recipe}.yaml", ROWS[recipe]
    stages = load(ROOT / path).stages
    overrides = [f"stages.{stage.name}.{change}" for stage in stages for change in _changes(stage, seed)]
    directory = house / stages[-1].directory
    shutil.rmtree(directory, ignore_errors=True)
    seconds = _call([RLHF, "run", path, *overrides], house)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "curve": {r["step"]: r[row.metric] for r in rows if r.get(row.metric) is not None},
        "seconds": seconds,
        "logp_difference": max((r.get("sampling/logp_difference") or 0.0 for r in rows), default=0.0),
        "driver_share": statistics.median(r["timing/driver"] / r["timing/step"] for r in rows if r.get("timing/step")),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _changes(stage: RunConfig, seed: int) -> list[str]:
    """What a stage is told beside its recipe: the seed, and to measure on what no setting was chosen by."""
    changes = [f"seed={seed}"]
    if stage.data.eval_prompts is not None:
        changes.append("data.eval_prompts=data/quickstart/test.jsonl")
    if stage.data.eval_dataset is not None:
        changes.append("data.eval_dataset=data/quickstart/test_pairs.jsonl")
    return changes


def _call(command: list[str], house: Path) -> float:
    started = time.monotonic()
    subprocess.run(command, cwd=house, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return time.monotonic() - started


# ------------------------------------------------------------------------------------------------ tables


def _table(found: dict[str, Any], recipes: Sequence[str]) -> str:
    """A row per recipe that was measured: mean over its seeds, lowest and highest."""
    lines = ["| recipe | seeds | base | on the way | end | minutes |", "|---|--:|---|---|---|---|"]
    for recipe in recipes:
        if recipe in found:
            lines.append(_line(ROWS[recipe], [found[recipe][seed] for seed in sorted(found[recipe])]))
    machine, date = description(), max(run["date"] for recipe in recipes for run in found.get(recipe, {}).values())
    ending = f"Measured up to {date} on {machine['cpu']}, {machine['cpu_cores']} cores, by `make table`."
    return "\n".join([*lines, "", ending, ""])


def _line(row: Row, runs: Sequence[dict[str, Any]]) -> str:
    curves = [{int(step): value for step, value in run["curve"].items()} for run in runs]  # JSON has text
    first, *between, last = sorted(curves[0])
    at = {step: _spread([curve[step] for curve in curves]) for step in (first, *between, last)}
    way = "; ".join(f"{row.word} {step}: {at[step]}" for step in between)
    minutes = _spread([run["seconds"] / 60 for run in runs], digits=1)
    return f"| {row.label} | {len(runs)} | {at[first]} | {way} | **{at[last]}** | {minutes} |"


def _spread(values: Sequence[float], digits: int = 2) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f} – {max(values):.{digits}f})" if len(values) > 1 else mean


_README_HEAD = f"""Greedy accuracy on 256 unseen prompts, mean of seeds {", ".join(map(str, SEEDS))} (lowest – highest),
and minutes for the whole command from a finished base (the machine had other work at times):
"""

_PAGE_HEAD = """# Does it learn?

Every recipe of `configs/quickstart/` over its seeds: mean (lowest – highest). Each seed has its own untrained
model, data and base. Held-out figures: greedy accuracy on 256 unseen prompts, or accuracy on
unseen pairs for the reward model. Minutes are those of the whole command from a finished base, on a machine that had
other work at times: the lowest are nearest to those of a quiet one. Written by `make table`; all figures are in
[benchmarks/results/learning.json](../benchmarks/results/learning.json).
"""


if __name__ == "__main__":
    main()
