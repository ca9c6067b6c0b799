"""Measure the time to the first step and the driver's memory of offline DPO on 10 thousand to 1 million pairs.

    python -m benchmarks.streaming             (`make streaming`; 10 minutes on 2 cores)

Each number of rows is started once with no files of its rows, then several times with them, in turns with the others.
The clock runs from the start of `rlhf run` to the record of the planned first step, after Ray and all workers. Memory
is that of the driver process alone, over the whole run of a few steps: the highest RSS, which the kernel records, and
the highest PSS of samples. The model is the untrained one of the quickstart; a pair has about 90 tokens.

Output: benchmarks/results/streaming.json and docs/evidence/streaming.md.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import description

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "streaming.json"
PAGE = ROOT / "docs" / "evidence" / "streaming.md"
NUM_ROWS = (10_000, 40_000, 100_000, 1_000_000)
TURNS = 3
STEPS = 3
SAMPLED_S = 0.2
LETTERS = np.frombuffer(b"abcdefghijkl", np.uint8)
RECIPE = """
name: pairs-{rows}
model: {{path: data/quickstart/model, dtype: float32}}
data: {{dataset: {rows}.jsonl}}
algorithm: {{type: dpo, learning_rate: 1.0e-5, batch_size: 64, max_steps: {steps}}}
policy: {{num_ranks: 1}}
checkpoint: {{every: null}}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Start of a run. Example: `Start(first_step_s=14.2, reading_s=0.0, rss_mib=402.0, pss_mib=291.0)`."""

    first_step_s: float  # from the command to the planned first step
    reading_s: float  # of it, for reading and checking all rows; 0: they were in files, or are read into memory
    rss_mib: float  # highest of the driver
    pss_mib: float


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rlhf-streaming-") as name:
        directory = Path(name)
        (directory / "configs").symlink_to(ROOT / "configs")
        subprocess.run([sys.executable, "configs/quickstart/task.py"], cwd=directory, env=_environment(), check=True)
        starts: dict[int, list[Start]] = {}
        for rows in NUM_ROWS:
            write_pairs(directory / f"{rows}.jsonl", rows)
            (directory / f"{rows}.yaml").write_text(RECIPE.format(rows=rows, steps=STEPS))
            starts[rows] = [_start(directory, rows)]
        for _ in range(TURNS):
            for rows in NUM_ROWS:
                starts[rows].append(_start(directory, rows))
        kept = {rows: _kept_bytes(directory, rows) for rows in NUM_ROWS}
        sizes = {rows: (directory / f"{rows}.jsonl").stat().st_size for rows in NUM_ROWS}
    found = [_row(rows, starts[rows], sizes[rows], kept[rows]) for rows in NUM_ROWS]
    RESULT.write_text(json.dumps({"machine": description(), "turns": TURNS, "rows": found}, indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULT.read_text())))
    print(PAGE.read_text())


def write_pairs(path: Path, rows: int) -> None:
    """Write pairs of letters: a prompt of 20, and completions of 33 to 36 of which none is longer by rule."""
    rng = np.random.Generator(np.random.Philox(rows))
    with path.open("w") as file:
        for _ in range(rows):
            letters = LETTERS[rng.integers(len(LETTERS), size=91)].tobytes().decode()
            chosen, rejected = rng.integers(33, 37, size=2)
            row = {
                "prompt": letters[:19] + ">",
                "chosen": letters[19 : 19 + chosen],
                "rejected": letters[55:][:rejected],
            }
            file.write(json.dumps(row) + "\n")


def _start(directory: Path, rows: int) -> Start:
    """Run the recipe of some rows, and watch its driver."""
    command = [sys.executable, "-m", "orchestrator.cli", "run", f"{rows}.yaml", "--fresh"]
    log = directory / f"{rows}.log"
    began, rss, pss = time.time(), 0.0, 0.0
    with log.open("w") as output:
        driver = subprocess.Popen(command, cwd=directory, env=_environment(), stdout=output, stderr=subprocess.STDOUT)
        while driver.poll() is None:
            rss = max(rss, _mib(driver.pid, "status", "VmHWM"))
            pss = max(pss, _mib(driver.pid, "smaps_rollup", "Pss"))
            time.sleep(SAMPLED_S)
    printed = log.read_text()
    if driver.returncode:
        raise SystemExit(f"the run on {rows} rows failed:\n{printed}")
    ledger = directory / "runs" / f"pairs-{rows}" / "ledger.jsonl"
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    planned = next(record["time"] for record in records if record["fact"] == "PLANNED")
    reading = re.search(r"rows read in (\d+) s", printed)
    found = Start(
        first_step_s=planned - began, reading_s=float(reading[1]) if reading else 0.0, rss_mib=rss, pss_mib=pss
    )
    print(f"{rows} rows: {found}", flush=True)
    return found


def _environment() -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every start would compile every module
    return environment


def _mib(pid: int, file: str, field: str) -> float:
    """Return a field of /proc in MiB; 0 if the process has just ended."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return 0.0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _kept_bytes(directory: Path, rows: int) -> int:
    """Return the size of the files that the rows are kept in; 0: they are read into memory."""
    for summary in (directory / "runs" / ".rows").glob("*/source.json"):
        if json.loads(summary.read_text())["source"] == f"{rows}.jsonl":
            return sum(file.stat().st_size for file in summary.parent.iterdir())
    return 0


def _row(rows: int, starts: Sequence[Start], size: int, kept: int) -> dict[str, Any]:
    first, *later = starts
    return {
        "rows": rows,
        "file_bytes": size,
        "kept_bytes": kept,
        "first_start": asdict(first),
        "first_step_s": statistics.median(start.first_step_s for start in later),
        "fastest_s": min(start.first_step_s for start in later),
        "rss_mib": statistics.median(start.rss_mib for start in later),
        "pss_mib": statistics.median(start.pss_mib for start in later),
        "later_starts": [asdict(start) for start in later],
    }


def page(result: dict[str, Any]) -> str:
    """Return the page of the evidence."""
    found, machine = result["rows"], result["machine"]
    in_files = next(row for row in found if row["kept_bytes"])

    def compared(row: dict[str, Any], key: str) -> str:
        return f"{row[key] / found[0][key] - 1:+.0%} / {row[key] / in_files[key] - 1:+.0%}"

    later = [
        f"| {row['rows']:,} | {row['first_step_s']:.1f} | {row['fastest_s']:.1f} | {compared(row, 'fastest_s')} "
        f"| {row['rss_mib']:.0f} | {compared(row, 'rss_mib')} | {row['pss_mib']:.0f} |"
        for row in found
    ]
    first = [
        f"| {row['rows']:,} | {row['file_bytes'] / 2**20:.1f} | {row['kept_bytes'] / 2**20:.1f} "
        f"| {row['first_start']['reading_s']:.0f} | {row['first_start']['first_step_s']:.1f} "
        f"| {row['first_start']['rss_mib']:.0f} |"
        for row in found
    ]
    return f"""# Large datasets

How long `rlhf run` takes to its first step, and how much memory its driver takes, by the number of pairs.
[Large sources](../data.md#large-sources) says what happens to the rows.
Written by `make streaming`.

Offline DPO on the untrained model of the quickstart, {STEPS} steps on pairs of about 90 tokens, on {machine["cpu"]}
({machine["cpu_cores"]} cores, {machine["memory_gib"]} GiB). Not run on a GPU.

## Later starts

{result["turns"]} starts of each that find the rows of an earlier one. The first two columns are the median of the times
to the first step, and the shortest: other work on the machine only adds to it. A row is compared with
{found[0]["rows"]:,} rows, which are read into memory and audited in full at every start, and with
{in_files["rows"]:,} rows, the fewest here that are in files. Memory is the median.

| rows | median, s | shortest, s | compared | driver RSS, MiB | compared | driver PSS, MiB |
|---|---|---|---|---|---|---|
{chr(10).join(later)}

## First start

All rows are read and checked, once, by another process than the driver.

| rows | source, MiB | in files, MiB | reading, s | to the first step, s | driver RSS, MiB |
|---|---|---|---|---|---|
{chr(10).join(first)}
"""


if __name__ == "__main__":
    main()
