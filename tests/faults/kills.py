"""SIGKILL at random moments of a run on real Ray, which must still reach its end: figures T2, T3 and T9.

    python tests/faults/kills.py --kills 100 --algorithm grpo       adds to tests/faults/measured/kills.jsonl
    python tests/faults/kills.py --minutes 4                        all algorithms in turn, for that long

The driver, loop, ledger, checkpoints, learner, losses and actors are the product's, on real Ray. The engines in the
actors are those of `cpu_run.py`, deterministic to the bit. A run of twelve steps is killed up to ten times at random
moments. Each kill hits the driver, a rank of the policy or critic, one of two rollout engines, the reference or the
reward worker. The run is resumed after every failure that is not repaired in place. At the end its weights and metrics
must equal those of the undisturbed run, and its ledger must list every step exactly once.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(p) for p in (HERE, HERE.parent / "workers", HERE.parents[1])]
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cpu_run  # noqa: E402 - sibling modules, on the path set above
from measurements import KILLS, add, machine, read, show_progress, today  # noqa: E402
from stage import Attempt, Member, Stage, eventually  # noqa: E402

from orchestrator.config import RunConfig  # noqa: E402
from orchestrator.rundir.ledger import account, read_ledger  # noqa: E402

STEPS, KILLS_PER_RUN = 12, 10
FACTS_PER_STEP = 9  # PLANNED, GENERATED and SCORED of two chunks, TRAINED, PUBLISHED, COMMITTED, CHECKPOINT
AT_THE_START = 0.15  # share of kills while the actors are still starting
ATTEMPT_S = 240.0  # an attempt that takes longer hangs
MEMBERS: dict[str, list[Member]] = {
    "grpo": [("policy", 0), ("policy", 1), ("reference", 0), ("rollout", 0), ("rollout", 1), ("reward", 0)],
    "ppo": [("policy", 0), ("policy", 1), ("critic", 0), ("rollout", 0), ("rollout", 1), ("reward", 0)],
    "iterative-dpo": [("policy", 0), ("policy", 1), ("reference", 0), ("rollout", 0), ("rollout", 1), ("reward", 0)],
    "streamed-rounds": [("policy", 0), ("policy", 1), ("reference", 0), ("rollout", 0), ("rollout", 1), ("reward", 0)],
}


@dataclass
class Kill:
    """One SIGKILL and its effect on the run."""

    member: Member
    facts: int  # number of ledger records at that moment
    after: str  # the last ledger record at that moment
    delay_ms: int
    attempt: int
    recovery: str = ""  # how the run recovered: "in place", or by the next "attempt"
    cause: str = ""  # from the attempt's exit.json; empty: the driver was killed before it wrote one


@dataclass
class KilledRun:
    """Kills of a run, from its first attempt to its end."""

    kills: list[Kill] = field(default_factory=list)
    left_behind: int = 0  # number of attempts that left an actor behind


def configuration(task: Path, output: Path, algorithm: str) -> RunConfig:
    """Return the config of a run with two learner ranks, two engines and a checkpoint after each step."""
    return cpu_run.config(
        task,
        output,
        algorithm,
        algorithm={**cpu_run.ALGORITHMS[algorithm], "max_steps": STEPS},
        checkpoint={"every": 1, "keep": 2},
        policy={"num_ranks": 2},
        critic={"num_ranks": 1} if algorithm == "ppo" else None,
        rollout=cpu_run.TWO_ENGINES,
    )


def run_with_kills(
    stage: Stage,
    config: RunConfig,
    algorithm: str,
    draw: random.Random,
    *,
    num_kills: int = KILLS_PER_RUN,
    until: float = math.inf,
) -> KilledRun:
    """Run attempts, killing processes until `num_kills` or `until` is reached, and then on to the end of the run."""
    killed_run, number = KilledRun(), 0
    while True:
        attempt, number = stage.attempt(config), number + 1
        while len(killed_run.kills) < num_kills and time.monotonic() < until:
            if (kill := _kill(stage, attempt, algorithm, draw, number)) is None:
                break
            killed_run.kills.append(kill)
            # An attempt that recovers in place adds records to its ledger; any other attempt ends.
            if eventually(lambda: attempt.ended() or len(attempt.records) > kill.facts + 2, ATTEMPT_S):  # noqa: B023
                kill.recovery = "attempt" if attempt.ended() else "in place"
        assert attempt.ended(ATTEMPT_S), f"attempt {number} hangs: {attempt.directory}"
        killed_run.left_behind += not stage.clean(attempt)
        if attempt.status != 0 and killed_run.kills and (last := killed_run.kills[-1]).attempt == number:
            last.cause, last.recovery = attempt.cause, "attempt"  # earlier kills were repaired in place
        if attempt.status == 0:
            return killed_run
        assert killed_run.kills, (
            f"the run failed without a kill: {(attempt.directory.parent / 'output.log').read_text()[-2000:]}"
        )
        assert number <= 2 * num_kills + 2, f"the run does not end: {attempt.directory}"


def _kill(stage: Stage, attempt: Attempt, algorithm: str, draw: random.Random, number: int) -> Kill | None:
    """Wait for a random moment and kill a random member. Return None if the attempt ends first."""
    member = draw.choice([("driver", 0), *MEMBERS[algorithm]])
    before = len(attempt.records)
    early = draw.random() < AT_THE_START
    num_records = before + (0 if early else draw.randint(1, 2 * FACTS_PER_STEP))
    delay_s = draw.uniform(0, 2.0 if early else 0.1)

    def reached() -> bool:
        return attempt.ended() or (len(attempt.records) >= num_records and member in stage.members(attempt))

    if not eventually(reached, ATTEMPT_S) or attempt.ended(delay_s):
        return None
    records, pid = attempt.records, stage.members(attempt).get(member)
    if pid is None:
        return None
    os.kill(pid, signal.SIGKILL)
    after = f"{records[-1]['fact']} {records[-1]['step']}" if records else ""
    return Kill(member, len(records), after, round(1000 * delay_s), number)


def redone_by_attempt(directory: Path) -> list[int]:
    """Count the steps whose work was discarded when the second attempt began, the third, and so on."""
    records = read_ledger(directory / "ledger.jsonl")[0]
    starts = [i for i, r in enumerate(records) if r.fact == "ATTEMPT"]
    totals = [account(records[: start + 1]).redone for start in starts]
    return [after - before for before, after in pairwise(totals)]


def trial(stage: Stage, task: Path, algorithm: str, seed: int, expected: Any, until: float) -> list[dict[str, Any]]:
    """Run once with kills, none of them after `until`, and return one line per kill."""
    started, output = time.monotonic(), task / f"{algorithm}-{seed}"
    config = configuration(task, output, algorithm)
    directory, killed_run, wrong = output / config.name, KilledRun(), ""
    try:
        killed_run = run_with_kills(stage, config, algorithm, random.Random(f"{algorithm} {seed}"), until=until)
        records = read_ledger(directory / "ledger.jsonl")[0]
        accounted, again = account(records), cpu_run.made_again(records)
        assert not again, f"recorded, and made again: {again}"
        assert accounted.lost == accounted.repeated == (), f"lost {accounted.lost}, repeated {accounted.repeated}"
        assert cpu_run.outcome(directory) == expected, "the outcome differs from that of the undisturbed run"
        again, kills = cpu_run.sampled_again(directory), len(killed_run.kills)
        assert again <= kills, f"{again} chunks were sampled again after {kills} kills"
        assert not killed_run.left_behind, f"{killed_run.left_behind} attempts left actors behind"
    except AssertionError as error:
        wrong = str(error).splitlines()[0]
    redone = redone_by_attempt(directory)
    seconds = (time.monotonic() - started) / max(1, len(killed_run.kills))
    lines = [
        {
            "figure": f"T2 {algorithm}",
            "seed": seed,
            "role": kill.member[0],
            "rank": kill.member[1],
            "attempt": kill.attempt,
            "after": kill.after,
            "delay_ms": kill.delay_ms,
            "went_on": kill.recovery,
            "cause": kill.cause,
            "redone": redone[kill.attempt - 1] if kill.recovery == "attempt" and kill.attempt <= len(redone) else 0,
            "wrong": wrong,
            "seconds": round(seconds, 1),
            "machine": machine(),
            "date": today(),
        }
        for kill in killed_run.kills
    ]
    if not wrong:
        shutil.rmtree(output)
    return lines


def run(algorithms: list[str], *, kills: int, minutes: float) -> None:
    """Add lines until there are `kills` of each algorithm, or `minutes` have passed."""
    until = time.monotonic() + 60 * minutes
    with ExitStack() as stack:
        task = Path(tempfile.mkdtemp(prefix="rlhf-kills-"))  # kept after a failure
        stage = stack.enter_context(Stage.open(task))
        cpu_run.write_task(task)
        expected = dict[str, Any]()
        while missing := [a for a in algorithms if _count(a)[0] < kills]:
            for algorithm in missing:
                if time.monotonic() > until:
                    return
                if algorithm not in expected:
                    config = configuration(task, task / f"whole-{algorithm}", algorithm)
                    run_with_kills(stage, config, algorithm, random.Random(), num_kills=0)
                    expected[algorithm] = cpu_run.outcome(task / f"whole-{algorithm}" / config.name)
                count, seed = _count(algorithm)
                for line in trial(stage, task, algorithm, seed, expected[algorithm], until):
                    add(KILLS, line)
                    show_progress(
                        f"{algorithm} {count}: {line['role']} {line['after']} {line['went_on']} {line['wrong']}"
                    )


def _count(algorithm: str) -> tuple[int, int]:
    """Return the number of kills so far and the next seed."""
    lines = [line for line in read(KILLS) if line["figure"] == f"T2 {algorithm}"]
    return len(lines), max((line["seed"] + 1 for line in lines), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each algorithm, with those that are there already")
    parser.add_argument("--algorithm", choices=list(MEMBERS), help="default: all of them in turn")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="no new kill after that long")
    options = parser.parse_args()
    run([options.algorithm] if options.algorithm else list(MEMBERS), kills=options.kills, minutes=options.minutes)


if __name__ == "__main__":
    main()
