"""Time from stopping a process (SIGSTOP) until the run reports it: figure T10.

    python tests/faults/hangs.py --hangs 20        adds to tests/faults/measured/pieces.jsonl

A random member of a run on real Ray is stopped at a random moment. Ray still considers the process alive; the missing
heartbeat ends the attempt with a typed error. Restarts in place are switched off, so that every role has an error to
time.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(p) for p in (HERE, HERE.parent / "workers", HERE.parents[1])]

import cpu_run  # noqa: E402 - sibling modules, on the path set above
import kills  # noqa: E402
from measurements import PIECES, Piece, add, command, pieces, show_progress  # noqa: E402
from stage import Stage, eventually  # noqa: E402

from orchestrator.config import ClusterConfig  # noqa: E402

DEADLINE_S = 10.0
TOO_LONG_S = DEADLINE_S + 60.0
SETTINGS = {"heartbeat_timeout_s": DEADLINE_S, "restarts_per_role": 0}


def hang(stage: Stage, task: Path, algorithm: str, seed: int) -> float:
    """Return the seconds from SIGSTOP to the exit.json that names the stopped member.

    Raises:
        AssertionError: when there was no exit.json in time, or it names another cause.
    """
    draw, output = random.Random(f"hang {algorithm} {seed}"), task / f"hang-{algorithm}-{seed}"
    cluster = ClusterConfig.model_validate(SETTINGS)
    config = kills.configuration(task, output, algorithm).model_copy(update={"cluster": cluster})
    member, facts = draw.choice(kills.MEMBERS[algorithm]), draw.randint(2, 3 * kills.FACTS_PER_STEP)
    attempt = stage.attempt(config)
    assert eventually(lambda: attempt.ended() or len(attempt.records) >= facts, kills.ATTEMPT_S), (
        "the ledger never had that many records"
    )
    assert not attempt.ended(), f"the attempt ended before: {attempt.cause}"
    pid = stage.members(attempt)[member]
    started = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        assert eventually(lambda: bool(attempt.cause), TOO_LONG_S), f"{member}: nothing was reported"
        seconds = time.monotonic() - started
        assert attempt.cause == "no_heartbeat", f"{member}: the cause is {attempt.cause}"
        exit_report = (attempt.directory / "exit.json").read_text()
        assert f"{member[0]} rank {member[1]}" in exit_report, f"{member}: another member was named"
        assert attempt.ended(kills.ATTEMPT_S), f"{member}: the driver did not end"
        assert stage.clean(attempt), f"{member}: an actor was left behind"
    finally:
        stage.clean(attempt, within_s=0)
    shutil.rmtree(output)
    return seconds


def run(*, hangs: int, minutes: float) -> None:
    """Add trials until there are `hangs`, or `minutes` have passed."""
    begun = time.monotonic()
    task = Path(tempfile.mkdtemp(prefix="rlhf-hangs-"))
    num_recorded = sum(piece.trials for piece in pieces() if piece.figure == "T10")
    with Stage.open(task) as stage:
        cpu_run.write_task(task)
        for seed in range(num_recorded, hangs):
            if time.monotonic() > begun + 60 * minutes:
                break
            algorithm, started, seconds = list(kills.MEMBERS)[seed % len(kills.MEMBERS)], time.monotonic(), 0.0

            def trial() -> bool:
                nonlocal seconds
                seconds = hang(stage, task, algorithm, seed)  # noqa: B023 - called at once
                return True

            piece = Piece(figure="T10", command=command()).tried(f"{algorithm}, seed {seed}", trial)
            values = () if piece.failures else (round(seconds, 2),)
            add(PIECES, replace(piece, redone=(), values=values, seconds=time.monotonic() - started))
            show_progress(f"T10 {seed + 1} of {hangs}: {seconds:.1f} s {piece.failures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hangs", type=int, default=20, help="with those that are there already")
    parser.add_argument("--minutes", type=float, default=24 * 60.0)
    options = parser.parse_args()
    run(hangs=options.hangs, minutes=options.minutes)


if __name__ == "__main__":
    main()
