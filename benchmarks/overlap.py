"""Overlap of the phases of a round: real Ray, workers that sleep (K5: the scheduler alone, no arithmetic).

    python -m benchmarks.overlap [--repeats 5] [--seconds 24]

Four phases of equal length T: sampling, scoring, reference and learning.

    streamed      sampling, scoring and reference of one round; the longest phase is T
    one behind    whole rounds with `max_staleness: 1`, where a round is sampled while the one before is learned
    as one call   the first again with a single chunk, as rounds were before they were streamed

The results are the ratios to T, each the median of the repeats with minimum and maximum.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.sleeping_rounds import Rounds, run, stage
from benchmarks.sleeping_workers import Durations
from orchestrator.config.run import ClusterConfig

PROMPTS, CHUNKS, UPDATES, ROUNDS = 96, 16, 16, 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=24.0, help="T, the length of each phase")
    options = parser.parse_args()
    seconds = options.seconds
    each = seconds / PROMPTS
    durations = Durations(generate=each, score=each, reference=each, update=seconds / UPDATES, num_updates=UPDATES)
    streamed = Rounds(count=1, prompts=PROMPTS, prompts_per_chunk=PROMPTS // CHUNKS)
    found: dict[str, list[float]] = {"streamed": [], "one behind": [], "as one call": []}
    with stage(durations, ClusterConfig()) as (cluster, gangs), tempfile.TemporaryDirectory() as directory:
        for repeat in range(options.repeats):
            for name, rounds in (
                ("streamed", streamed),
                ("one behind", replace(streamed, count=ROUNDS, max_staleness=1)),
                ("as one call", replace(streamed, prompts_per_chunk=PROMPTS)),
            ):
                path = Path(directory, f"{name}-{repeat}")
                path.mkdir()
                clocks = run(cluster, gangs, rounds, path)
                if name == "one behind":  # from the first commit on, every round is in the steady state
                    took = (clocks.committed_s[-1] - clocks.committed_s[0]) / (ROUNDS - 1)
                else:
                    took = clocks.arrived_s[0] - clocks.planned_s[0] - durations.update
                found[name].append(took / seconds)
                print(
                    f"repeat {repeat + 1}: {name} {took / seconds:.3f} T  (load {os.getloadavg()[0]:.1f})", flush=True
                )
    for name, ratios in found.items():
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} repeats"
        print(f"{name}: {statistics.median(ratios):.3f} T ({spread})")


if __name__ == "__main__":
    main()
