"""Compare the time from `rlhf run` to the first step in this checkout with that in another one, in alternating turns.

    python benchmarks/start.py OTHER_CHECKOUT [--turns 5]

Both checkouts have their own `.venv`. The base model of the quickstart is trained once, then its GRPO recipe
is started for one step, from that base, by each checkout in turn. The clock runs from the start of the command to the
record of the planned first step, after Ray, all workers and the evaluation of the base. The result is the median of
each checkout, and the median of the ratios of a turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
OVERRIDES = ("--fresh", "algorithm.max_steps=1", "evaluation.every=null", "checkpoint.every=null")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    other = options.other.resolve()
    with tempfile.TemporaryDirectory(prefix="rlhf-start-") as directory:
        ours_directory, theirs_directory = Path(directory, "here"), Path(directory, "there")
        prepare(HERE, ours_directory)
        prepare(other, theirs_directory)
        pairs = []
        for turn in range(options.turns):
            ours, theirs = _start(HERE, ours_directory), _start(other, theirs_directory)
            print(f"turn {turn + 1}: {ours:.1f} s here, {theirs:.1f} s there", flush=True)
            pairs.append((ours, theirs))
    mine, others = zip(*pairs, strict=True)
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    print(f"median: {statistics.median(mine):.1f} s here, {statistics.median(others):.1f} s there, ratio {ratio:.2f}")


def prepare(checkout: Path, directory: Path) -> None:
    """Write the quickstart's data and train its base model in `directory`, with the code of `checkout`."""
    directory.mkdir()
    (directory / "configs").symlink_to(checkout / "configs")
    call(checkout, directory, "python", "configs/quickstart/task.py")
    call(checkout, directory, "rlhf", "run", "configs/quickstart/base.yaml")


def _start(checkout: Path, directory: Path) -> float:
    """Return the seconds from the command to the first step."""
    started = time.time()
    call(checkout, directory, "rlhf", "run", "configs/quickstart/grpo.yaml", *OVERRIDES)
    (ledger,) = directory.glob("runs/quickstart-grpo/ledger.jsonl")
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    planned: float = next(record["time"] for record in records if record["fact"] == "PLANNED")
    return planned - started


def call(checkout: Path, directory: Path, program: str, *arguments: str) -> None:
    command = [str(checkout / ".venv" / "bin" / program), *arguments]
    environment = {**os.environ, "PATH": f"{checkout / '.venv' / 'bin'}:{os.environ['PATH']}"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every start would compile every module
    subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
