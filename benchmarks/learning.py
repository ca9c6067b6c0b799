"""Measure the learning curves of every recipe in configs/quickstart/ over three seeds.

    python -m benchmarks.learning              (`make table`; several hours on 2 cores)
    python -m benchmarks.learning grpo dpo     measure these recipes again, and keep the rows of the others
    python -m benchmarks.learning --seeds 1    only these seeds

Each seed has its own untrained model, demonstrations, prompts and base model, from which every recipe starts unchanged.
The test data (`test*.jsonl`) are held out, and no setting was chosen on them. Times are wall-clock
times of the whole command, including the start of Ray and the engines.

Output: benchmarks/results/learning.json with all figures, docs/evidence/learning.md, and the table in the README.
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
PAGE = ROOT / "docs" / "evidence" / "learning.md"
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
    "rlhf_classic": Row(label="PPO on that reward model, 30 steps", metric="eval/rewards/exact_sort/mean"),
    "distill": Row(label="distillation from the GRPO result, 20 steps"),
    "hybrid": Row(label="PPO, 20 steps, after offline DPO"),
    "reasoning": Row(label="a smaller model on right answers of the GRPO result"),
    "abstention": Row(label="abstention (share of unanswerable questions)", metric="eval/refusal"),
    "constitutional": Row(label="constitutional AI: DPO on revisions of its own answers"),
    "multi_objective": Row(label="GRPO on two objectives in conflict, 40 steps"),
    "two_headed_reward": Row(label="GRPO on the two scores of one reward model, 40 steps"),
}
ROADS = {
    # recipe → what its last stages are measured by
    "hybrid": ("eval/reward",),
    "reasoning": ("eval/reward",),
    "two_headed_reward": ("eval/accuracy", "eval/rewards/thorough/mean", "eval/rewards/brief/mean"),
    "abstention": ("eval/rewards/right_if_answered/mean", "eval/refusal", "eval/over_refusal"),
    "constitutional": ("eval/reward",),
}
"""Recipes of several stages, which have a table of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", choices=[[], *ROWS], metavar="RECIPE", help=", ".join(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for seed in options.seeds:
        directory = _prepare(seed)
        for recipe in options.recipes or ROWS:
            results.setdefault(recipe, {})[str(seed)] = _measure(directory, recipe, seed)
            RESULT.write_text(json.dumps(results, indent=1) + "\n")
            write_tables(results)


def write_tables(results: dict[str, Any]) -> None:
    """Write the page of all recipes, and the short table in the README."""
    PAGE.write_text(f"{_PAGE_HEAD}\n{_table(results, list(ROWS))}\n{_roads(results)}")
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(README_BEGIN)
    table = f"{_README_HEAD}\n{_table(results, IN_THE_README)}"
    readme.write_text(f"{before}{README_BEGIN}\n{table}{README_END}{rest.split(README_END)[1]}")


# ------------------------------------------------------------------------------------------------ measuring


def _prepare(seed: int) -> Path:
    """Create a working directory for the recipes: data and base model of the seed, and a link to configs/."""
    directory = ROOT / "runs" / "learning" / f"seed-{seed}"
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "configs").exists():
        (directory / "configs").symlink_to(ROOT / "configs")
    _call([sys.executable, "configs/quickstart/task.py", "--seed", str(seed)], directory)
    _call([RLHF, "run", "configs/quickstart/base.yaml", f"seed={seed}"], directory)
    return directory


def _measure(working_directory: Path, recipe: str, seed: int) -> dict[str, Any]:
    path, row = f"configs/quickstart/{recipe}.yaml", ROWS[recipe]
    stages = load(ROOT / path).stages
    overrides = [f"stages.{stage.name}.{change}" for stage in stages for change in _changes(stage, seed)]
    directory = working_directory / stages[-1].directory
    shutil.rmtree(directory, ignore_errors=True)
    seconds = _call([RLHF, "run", path, *overrides], working_directory)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "stages": {stage.name: _stage(working_directory / stage.directory, recipe) for stage in stages[1:]},
        "curve": {r["step"]: r[row.metric] for r in rows if r.get(row.metric) is not None},
        "seconds": seconds,
        "logp_difference": max((r.get("sampling/logp_difference") or 0.0 for r in rows), default=0.0),
        "driver_share": statistics.median(r["timing/driver"] / r["timing/step"] for r in rows if r.get("timing/step")),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _stage(directory: Path, recipe: str) -> dict[str, float]:
    """Return the last figures of a stage; of one that generates a data set, the number of its rows."""
    summary = directory / "data" / "summary.json"
    if summary.is_file():
        return {"rows": json.loads(summary.read_text())["rows"]}
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, float] = {}
    for row in rows:
        last |= {name: row[name] for name in ROADS.get(recipe, ()) if row.get(name) is not None}
    return last


def _changes(stage: RunConfig, seed: int) -> list[str]:
    """Return the overrides of a stage: the seed, and the test data for evaluation."""
    changes = [f"seed={seed}"]
    if stage.data.eval_harmful is not None:
        kinds = {"eval_prompts": "answerable", "eval_benign": "answerable", "eval_harmful": "unanswerable"}
        return changes + [f"data.{key}=data/quickstart/test_{kind}.jsonl" for key, kind in kinds.items()]
    if stage.data.eval_prompts is not None:
        changes.append(f"data.eval_prompts={_test(stage.data.eval_prompts)}")
    if isinstance(stage.data.eval_dataset, tuple):
        paths = stage.data.paths("eval_dataset")
        changes += [f"data.eval_dataset.{i}.path={_test(path)}" for i, path in enumerate(paths)]
    elif stage.data.eval_dataset is not None:
        changes.append(f"data.eval_dataset={_test(stage.data.eval_dataset)}")
    return changes


def _test(heldout: str) -> str:
    """Return the test set that belongs to a held-out set of a recipe.

    >>> _test("data/quickstart/heldout_pairs.jsonl")
    'data/quickstart/test_pairs.jsonl'
    """
    return heldout.replace("heldout", "test")


def _call(command: list[str], directory: Path) -> float:
    started = time.monotonic()
    subprocess.run(command, cwd=directory, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return time.monotonic() - started


# ------------------------------------------------------------------------------------------------ tables


def _table(results: dict[str, Any], recipes: Sequence[str]) -> str:
    """Return one row per measured recipe: mean over its seeds, lowest and highest."""
    lines = ["| recipe | seeds | base | during training | end | minutes |", "|---|--:|---|---|---|---|"]
    for recipe in recipes:
        if recipe in results:
            lines.append(_line(ROWS[recipe], [results[recipe][seed] for seed in sorted(results[recipe])]))
    machine, date = description(), max(run["date"] for recipe in recipes for run in results.get(recipe, {}).values())
    ending = f"Measured up to {date} on {machine['cpu']}, {machine['cpu_cores']} cores, by `make table`."
    return "\n".join([*lines, "", ending, ""])


def _roads(results: dict[str, Any]) -> str:
    """Return one row per stage of each road."""
    lines = ["## Roads, stage by stage", "", "| recipe | stage | at its end |", "|---|---|---|"]
    for recipe in (recipe for recipe in ROADS if recipe in results):
        runs = [results[recipe][seed] for seed in sorted(results[recipe])]
        for stage in runs[0]["stages"]:
            # A seed that was measured when the recipe had no such stage has no figure of it.
            figures = [run["stages"][stage] for run in runs if stage in run["stages"]]
            shown = [f"{name} {_spread([one[name] for one in figures], digits=_digits(name))}" for name in figures[0]]
            lines.append(f"| {recipe} | {stage.removeprefix('quickstart-')} | {'; '.join(shown)} |")
    return "\n".join([*lines, ""])


def _digits(name: str) -> int:
    return 0 if name == "rows" else 2


def _line(row: Row, runs: Sequence[dict[str, Any]]) -> str:
    curves = [{int(step): value for step, value in run["curve"].items()} for run in runs]  # JSON keys are strings
    between = sorted(set.intersection(*({*curve} - {min(curve), max(curve)} for curve in curves)))
    base, end = (_spread([curve[pick(curve)] for curve in curves]) for pick in (min, max))
    during = "; ".join(f"{row.word} {step}: {_spread([curve[step] for curve in curves])}" for step in between)
    minutes = _spread([run["seconds"] / 60 for run in runs], digits=1)
    return f"| {row.label} | {len(runs)} | {base} | {during} | **{end}** | {minutes} |"


def _spread(values: Sequence[float], digits: int = 2) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f} – {max(values):.{digits}f})" if len(values) > 1 else mean


_README_HEAD = f"""Greedy accuracy on 256 unseen prompts, mean of seeds {", ".join(map(str, SEEDS))} (lowest – highest),
and minutes for the whole command from a finished base (the machine had other work at times):
"""

_PAGE_HEAD = """# Learning curves

Every recipe of `configs/quickstart/`, over its seeds: mean (lowest – highest). Each seed has its own untrained model,
data and base model. The figures are measured on held-out data: greedy accuracy on 256 unseen prompts, or accuracy on
unseen pairs for the reward model. Minutes are the time of the whole command, which starts from a finished base model.
The machine ran other work at times, so the lowest times are closest to those of an idle machine. `make table` writes
this page. All figures are in [benchmarks/results/learning.json](../../benchmarks/results/learning.json).
"""


if __name__ == "__main__":
    main()
