"""Measure every figure of docs/evidence/reliability.md, in pieces that add up, and write the page.

    make test-faults                                        all figures again (hours on 2 cores; the page has the times)
    python tests/faults/report.py --minutes 4 --only T1     continues after the pieces recorded so far
    python tests/faults/report.py --page                    only writes the page, from the recorded pieces

In one process, with the stand-ins of `cpu_run.py`: crash points, kills of the driver, power cuts, full disks, damage,
fences (T1, T2 driver, T4, T5, T7, T8). On real Ray, with the same stand-ins in the actors: `kills.py` (T2, T3) and
`hangs.py` (T10). With the real vLLM and DeepSpeed: `real_kills.py`. From counts of ordinary tests: `suites.py`
(T17, T18, T19).
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(p) for p in (HERE, HERE.parent / "workers", ROOT)]
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cpu_run  # noqa: E402 - sibling modules, on the path set above
import damage  # noqa: E402
import fences  # noqa: E402
import page  # noqa: E402
import run_in_process  # noqa: E402
import suites  # noqa: E402
import torch  # noqa: E402
from measurements import KILLS, PIECES, Piece, add, command, pieces, read, show_progress  # noqa: E402

POWER_CUTS, DAMAGES, FENCES, BLOCK = 100, 1000, 100, 4096
DRIVER_KILLS = 100  # for each algorithm
KILLS_ON_RAY, REAL_KILLS, HANGS = 100, 10, 20  # the first one for each algorithm


@dataclass(frozen=True)
class Series:
    """Numbered trials of one figure, so that a later piece can continue where an earlier one ended."""

    figure: str
    total: int
    trial: Callable[[int], tuple[str, Callable[[], int | bool]]]

    def measure(self, until: float) -> None:
        first = sum(piece.trials for piece in pieces() if piece.figure == self.figure)
        piece, started = Piece(figure=self.figure, command=command()), time.monotonic()
        for index in range(first, self.total):
            if time.monotonic() > until:
                break
            show_progress(f"{self.figure}: {index + 1} of {self.total}")
            piece = piece.tried(*self.trial(index))
        if piece.trials:
            add(PIECES, replace(piece, seconds=round(time.monotonic() - started, 1)))


@dataclass(frozen=True)
class Worlds:
    """One world per algorithm, built on first use."""

    root: Path

    @cached_property
    def all(self) -> list[run_in_process.World]:
        return [run_in_process.build(self.root, algorithm) for algorithm in cpu_run.ALGORITHMS]

    @cache  # noqa: B019 - the instance lives as long as the process
    def in_step(self, index: int) -> Any:
        return fences.undisturbed(self.all[index])


def series(worlds: Worlds, scratch: Path) -> Iterator[Series]:
    """Yield the figures that are measured in this process. Trials fork it, so nothing here may start a thread."""
    for world in worlds.all:
        yield _crash_points(world)
        yield Series(
            f"T2 driver {world.algorithm}",
            DRIVER_KILLS,
            lambda i, world=world: (f"seed {i}", lambda: run_in_process.killed_somewhere(world, i)),  # type: ignore[misc]
        )
    yield Series("T4", POWER_CUTS, lambda i: _power_cut(worlds.all[i % len(worlds.all)], i))
    yield _full_disks(worlds.all)
    whole = worlds.root / f"whole-{worlds.all[0].algorithm}-1" / "run"
    last, copy = whole / "checkpoints" / "step-3", scratch / "copy"
    half = DAMAGES // 2
    yield Series(
        "T7 checkpoint", half, lambda i: (f"seed {i}", lambda: damage.damaged_checkpoint_is_refused(last, copy, i))
    )
    ledger = whole / "ledger.jsonl"
    yield Series("T7 ledger", half, lambda i: (f"seed {i}", lambda: damage.damaged_ledger_is_detected(ledger, copy, i)))
    yield Series("T8", FENCES, lambda i: _fence(worlds, i % len(worlds.all), i))


def _crash_points(world: run_in_process.World) -> Series:
    points = [
        (operation, line, half)
        for operation, line in enumerate(world.log)
        for half in ((False, True) if line.startswith("write") else (False,))
    ]

    def trial(index: int) -> tuple[str, Callable[[], int | bool]]:
        operation, line, half = points[index]
        where = f"{'in' if half else 'before'} operation {operation} ({line})"
        return where, lambda: run_in_process.killed_at(world, operation, half=half)

    return Series(f"T1 {world.algorithm}", len(points), trial)


def _power_cut(world: run_in_process.World, seed: int) -> tuple[str, Callable[[], int | bool]]:
    operation = random.Random(seed).randrange(len(world.log))
    where = f"{world.algorithm}, operation {operation} ({world.log[operation]}), seed {seed}"
    return where, lambda: run_in_process.power_cut_at(world, operation, seed)


def _full_disks(worlds: list[run_in_process.World]) -> Series:
    ends = [(world, num_bytes) for world in worlds for num_bytes in range(0, world.num_bytes, BLOCK)]

    def trial(index: int) -> tuple[str, Callable[[], int | bool]]:
        world, num_bytes = ends[index]
        return f"{world.algorithm}, full after {num_bytes} bytes", lambda: run_in_process.full_after(world, num_bytes)

    return Series("T5", len(ends), trial)


def _fence(worlds: Worlds, index: int, seed: int) -> tuple[str, Callable[[], int | bool]]:
    world = worlds.all[index]
    return f"{world.algorithm}, seed {seed}", lambda: fences.half_synced(world, worlds.in_step(index), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anew", action="store_true", help="discard the recorded measurements first")
    parser.add_argument("--page", action="store_true", help="measure nothing, only write the page")
    parser.add_argument("--only", nargs="*", default=[], help="only figures whose name starts with one of these")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="start no new trial after this many minutes")
    asked = parser.parse_args()
    if asked.anew:
        PIECES.unlink(missing_ok=True)
        KILLS.unlink(missing_ok=True)
    if not asked.page:
        _measure(asked.only, time.monotonic() + 60 * asked.minutes)
    text, failed = page.write(pieces(), list(read(KILLS)))
    print(text)
    sys.exit(failed)


def _measure(only: list[str], until: float) -> None:
    def wanted(figure: str) -> bool:
        return not only or any(figure.startswith(name) for name in only)

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rlhf-faults-") as directory:
        (root := Path(directory) / "worlds").mkdir()
        for one in series(Worlds(root), Path(directory)):
            if wanted(one.figure):
                one.measure(until)
    # Ray starts threads, and a process with threads must not be forked: each script gets a new process.
    for figure, script, *arguments in (
        ("T2", "kills.py", "--kills", str(KILLS_ON_RAY)),
        ("T10", "hangs.py", "--hangs", str(HANGS)),
        ("T2 real", "real_kills.py", "--kills", str(REAL_KILLS)),
    ):
        left = (until - time.monotonic()) / 60
        if wanted(figure) and left > 0:
            subprocess.run([sys.executable, str(HERE / script), *arguments, "--minutes", f"{left:.1f}"], check=True)
    there = {piece.figure for piece in pieces()}
    for figure in suites.SUITES:
        if wanted(figure) and figure not in there and time.monotonic() < until:
            add(PIECES, suites.count(figure))


if __name__ == "__main__":
    main()
