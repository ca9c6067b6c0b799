"""SIGKILL at random moments of a run with the real vLLM and DeepSpeed, started by the commands of a user.

    python tests/faults/real_kills.py --kills 10        adds to tests/faults/measured/kills.jsonl

A recipe of tests/stack is started on a tiny model by `rlhf run`, killed, resumed by `rlhf resume`, killed again, and
resumed. On one machine and version both engines reproduce their results to the bit, so the weights and metrics must
equal those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(p) for p in (HERE, HERE.parent / "stack", HERE.parents[1])]
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import families  # noqa: E402 - sibling modules, on the path set above
import kill_role  # noqa: E402
from attempts import Run  # noqa: E402
from measurements import KILLS, add, machine, read, show_progress, today  # noqa: E402

from orchestrator.rundir.ledger import account, read_ledger  # noqa: E402

FIGURE = "T2 real engines"
PER_RUN = 2
MOMENT_S = 0.5
STEPS = 3  # max_steps of grpo.yaml
MEMBERS: list[kill_role.Member] = [("driver", 0), ("policy", 0), ("rollout", 0), ("reward", 0)]
FACTS = ("PLANNED", "SCORED", "TRAINED", "COMMITTED")


def planned(seed: int) -> list[tuple[kill_role.Member, str, float]]:
    """Draw the kills of a run, one in the first step and one in the last: member, ledger record, delay after it."""
    draw = random.Random(f"real {seed}")
    return [
        (draw.choice(MEMBERS), f"{draw.choice(FACTS)} {step}", round(draw.uniform(0, MOMENT_S), 2))
        for step in (1, STEPS)[:PER_RUN]
    ]


def trial(family: Path, seed: int, whole: Any) -> list[dict[str, Any]]:
    """Run once with kills and return one line per kill."""
    name, wrong, recoveries, started = f"killed-{seed}", "", list[str](), time.monotonic()
    run, plan, redone = Run(family / "runs" / name), planned(seed), 0
    try:
        recoveries = kill_role.run_with_kills(family, "grpo", name, plan)
        accounted = account(read_ledger(run.path / "ledger.jsonl")[0])
        redone = accounted.redone
        assert accounted.lost == accounted.repeated == (), f"lost {accounted.lost}, repeated {accounted.repeated}"
        assert redone <= len(recoveries), f"{redone} steps were redone"
        assert kill_role.outcome(run) == whole, "the outcome differs from that of the undisturbed run"
        shutil.rmtree(run.path)
    except AssertionError as error:
        wrong = str(error).splitlines()[0]
    kept = [
        (kill, recovery)
        for kill, recovery in zip(plan, recoveries or ["?"] * len(plan), strict=False)
        if recovery != "missed"
    ]
    seconds = round((time.monotonic() - started) / max(1, len(kept)), 1)
    return [
        {
            "figure": FIGURE,
            "seed": seed,
            "role": member[0],
            "rank": member[1],
            "after": after,
            "delay_ms": round(1000 * delay_s),
            "went_on": "attempt" if recovery == "resumed" else recovery,
            "redone": redone if i == 0 else 0,  # total of the run: not known per kill
            "wrong": wrong,
            "seconds": seconds,
            "machine": machine(),
            "date": today(),
        }
        for i, ((member, after, delay_s), recovery) in enumerate(kept)
    ]


def run(*, kills: int, minutes: float, family: Path | None = None) -> None:
    """Add lines until there are `kills`, or `minutes` have passed.

    `family` is a directory with the model and the undisturbed run of an earlier slice.
    """
    until = time.monotonic() + 60 * minutes
    family = family or Path(tempfile.mkdtemp(prefix="rlhf-real-kills-"))
    if not (family / "model").is_dir():
        families.write_qwen2(family)
    if not (family / "runs" / "whole" / "model").is_dir():
        shutil.rmtree(family / "runs" / "whole", ignore_errors=True)
        kill_role.run_with_kills(family, "grpo", "whole", [])
    whole = kill_role.outcome(Run(family / "runs" / "whole"))
    while time.monotonic() < until:
        lines = [line for line in read(KILLS) if line["figure"] == FIGURE]
        if len(lines) >= kills:
            break
        for line in trial(family, max((line["seed"] + 1 for line in lines), default=0), whole):
            add(KILLS, line)
            show_progress(f"real {len(lines)}: {line['role']} {line['after']} {line['went_on']} {line['wrong']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="with those that are there already")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="no new run after that long")
    parser.add_argument("--family", type=Path, help="a directory that keeps the model between slices")
    options = parser.parse_args()
    run(kills=options.kills, minutes=options.minutes, family=options.family)


if __name__ == "__main__":
    main()
