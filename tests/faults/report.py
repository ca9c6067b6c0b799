"""All crash points, 100 power cuts, every 4 KiB of a full disk, 1,000 pieces of damage: docs/reliability.md.

    make test-faults        (about 20 minutes on 2 cores)

Figures T1, T4-T7 and T9. Every life is a process that is really killed; driver, loop, ledger, checkpoints, learner and
losses are the product's, Ray, DeepSpeed and vLLM have stand-ins (see cpu_run.py), so that 1,000 lives take minutes.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(p) for p in (HERE, HERE.parent / "workers", HERE.parent, ROOT)]
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cpu_run  # noqa: E402 - these are neighbours, found by the paths above
import damage  # noqa: E402
import lives  # noqa: E402
import torch  # noqa: E402

from benchmarks.machine import description  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
POWER_CUTS, DAMAGES, BLOCK = 100, 1000, 4096


@dataclass
class Figure:
    """Trials of one kind: how many, what went wrong, and how many steps were done again after each."""

    trials: int = 0
    failures: list[str] = field(default_factory=list)
    redone: list[int] = field(default_factory=list)

    def add(self, what: str, trial: Callable[[], int | bool]) -> None:
        self.trials += 1
        try:
            found = trial()
            assert found is not False, "it was believed"
            self.redone.append(int(found))
        except (AssertionError, OSError) as error:
            self.failures.append(f"{what}: {str(error).splitlines()[0][:120] if str(error) else error!r}")

    @property
    def good(self) -> str:
        return f"{self.trials - len(self.failures)} of {self.trials}"

    @property
    def bound(self) -> str:
        """What no failure in n trials says of the failure rate, at 95 % (the rule of three)."""
        return f"< {3 / self.trials:.1%}" if not self.failures else "—"


def main() -> None:
    started = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rlhf-faults-") as directory:
        (tasks := Path(directory) / "worlds").mkdir()
        worlds = [lives.build(tasks, algorithm) for algorithm in cpu_run.ALGORITHMS]
        figures = {f"T1 {w.algorithm}": _crash_points(w) for w in worlds}
        figures["T4"] = _power_cuts(worlds)
        figures["T5"] = _full_disks(worlds)
        figures["T7 checkpoint"], figures["T7 ledger"] = _damages(worlds[0], Path(directory))
    PAGE.write_text(_page(figures, time.monotonic() - started))
    print(PAGE.read_text())
    sys.exit(any(f.failures for f in figures.values()))


def _crash_points(world: lives.World) -> Figure:
    figure = Figure()
    for operation, line in enumerate(world.log):
        _tell(f"T1 {world.algorithm}: {operation + 1} of {len(world.log)}")
        for half in (False, True) if line.startswith("write") else (False,):
            figure.add(
                f"{world.algorithm}, {'in' if half else 'before'} operation {operation} ({line})",
                lambda: lives.killed_at(world, operation, half=half),  # noqa: B023 - called at once
            )
    return figure


def _power_cuts(worlds: Sequence[lives.World]) -> Figure:
    figure, draw = Figure(), random.Random(0)
    for seed in range(POWER_CUTS):
        _tell(f"T4: {seed + 1} of {POWER_CUTS}")
        world = worlds[seed % len(worlds)]
        operation = draw.randrange(len(world.log))
        figure.add(
            f"{world.algorithm}, operation {operation} ({world.log[operation]}), seed {seed}",
            lambda: lives.power_cut_at(world, operation, seed),  # noqa: B023
        )
    return figure


def _full_disks(worlds: Sequence[lives.World]) -> Figure:
    figure = Figure()
    for world in worlds:
        for num_bytes in range(0, world.num_bytes, BLOCK):
            _tell(f"T5 {world.algorithm}: {num_bytes} of {world.num_bytes} bytes")
            figure.add(
                f"{world.algorithm}, full after {num_bytes} bytes",
                lambda: lives.full_after(world, num_bytes),  # noqa: B023
            )
    return figure


def _damages(world: lives.World, directory: Path) -> tuple[Figure, Figure]:
    run = world.root / f"whole-{world.algorithm}-{world.every}" / "run"
    checkpoint, ledger = Figure(), Figure()
    for seed in range(DAMAGES):
        if seed % 2:
            trial = damage.checkpoint_is_refused
            checkpoint.add(f"seed {seed}", lambda: trial(run / "checkpoints" / "step-3", directory / "copy", seed))  # noqa: B023
        else:
            trial = damage.ledger_is_not_believed
            ledger.add(f"seed {seed}", lambda: trial(run / "ledger.jsonl", directory / "copy", seed))  # noqa: B023
    return checkpoint, ledger


def _tell(text: str) -> None:
    print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ the page

_ROWS = {
    "T1 grpo": "killed before every write, fsync, rename and removal of a GRPO run, and in the middle of every write",
    "T1 grpo-ahead": "the same, GRPO whose engines sample a version ahead (`max_staleness: 1`)",
    "T1 ppo": "the same, PPO with its critic",
    "T1 iterative-dpo": "the same, iterative DPO with a reference refresh every round",
    "T1 iterative-dpo-updates": "the same, saved after every update within its rounds (`checkpoint.every_updates: 1`)",
    "T4": "power cut at a random operation: what was not fsynced is lost, bytes and names",
    "T5": "disk full after every 4 KiB of the whole run",
    "T7 checkpoint": "one bit flipped, or the end cut off, in a file of a checkpoint: refused",
    "T7 ledger": "the same in the ledger: refused, or read up to the damage and no further",
}


def _page(figures: dict[str, Figure], seconds: float) -> str:
    machine, date = description(), datetime.now(UTC).date().isoformat()
    where = f"{machine['cpu']}, {machine['cpu_cores']} cores, {seconds / 60:.0f} minutes"
    lines = [f"| {name} | {_ROWS[name]} | {f.good} | {f.bound} |" for name, f in figures.items()]
    redone = [steps for name, f in figures.items() if not name.startswith("T7") for steps in f.redone]
    failures = [f"- {name}: {what}" for name, f in figures.items() for what in f.failures]
    told = "\n".join(["Failures:", "", *failures]) if failures else "No failure."
    return f"""# Reliability, measured

By `make test-faults`, {date}, {where}.

A trial is a run of three steps with a checkpoint after each, in a process that is really killed (SIGKILL) or starved,
and resumed until it ends. It counts when the final weights are equal to the bit and every row of the metrics is equal
to those of the uninterrupted run, and arithmetic on the ledger (T6) finds no step lost and none learned from twice.

| | what happens | recovered | failure rate (95 %) |
|---|---|--:|--:|
{chr(10).join(lines)}

T9, steps done again after a fault: median {statistics.median(redone):g}, at most {max(redone)}.

{told}

What this is and is not. The driver, loop, ledger, checkpoints, recorder, learner and losses are the product's. Ray,
DeepSpeed and vLLM have stand-ins that are deterministic to the bit (`tests/faults/cpu_run.py`): torch for DeepSpeed, a
sampler with a seed per completion for vLLM, direct calls for Ray. The watch is on Python's `os`; what a library writes
by itself (weights, samples) is seen when it is fsynced or renamed. A power cut is a model of a disk, not a disk.
"""


if __name__ == "__main__":
    main()
