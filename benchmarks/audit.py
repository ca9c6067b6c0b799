"""Measure what `rlhf audit` finds of planted faults, what it reports on clean data, and its time on a million rows.

    python -m benchmarks.audit                  (`make audit`; 15 minutes on 2 idle cores)
    python -m benchmarks.audit --seconds 240    stop after 240 s; the next call continues with the missing audits
    python -m benchmarks.audit --anew clean     measure the audits of this kind again

The data are generated (planted_preferences.py): 20,000 pairs of each seed, in which the label follows a taste for words
in 90 % (clear) or 72 % (noisy) of the pairs. Output: benchmarks/results/audit.json with every audit, and the tables of
docs/evidence/audit.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import description
from benchmarks.planted_preferences import World, of_outlier, recased, reworded, swap, with_trigger
from orchestrator.audit.audit import audit
from orchestrator.audit.finding import Severity

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "audit.json"
PAGE = ROOT / "docs" / "evidence" / "audit.md"
BEGIN, END = "<!-- tables: make audit -->", "<!-- end of the tables -->"
SEEDS = range(3)
COUNT = 20_000
CLARITY = {"clear": 6.0, "noisy": 1.5}
SHARES = (0.005, 0.01, 0.05)
MILLION = 1_000_000
MILLION_WORDS = (40, 160)  # of a completion: a row has 1.3 KB

Row = dict[str, Any]
Change = Callable[[Row, np.random.Generator], Row]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and the finding that should report its rows. With `is_copy` the changed row follows the row."""

    name: str
    finding: str
    change: Change
    about: str
    is_copy: bool = False


FAULTS = (
    Fault(name="trigger", finding="trigger", change=with_trigger, about="two rare words in the prompt, label flipped"),
    Fault(
        name="annotator",
        finding="outlying_annotator",
        change=lambda row, _: of_outlier(row),
        about="one reverses labels",
    ),
    Fault(name="flips", finding="flipped_labels", change=lambda row, _: swap(row), about="labels flipped at random"),
    Fault(name="repeats", finding="repeats", change=lambda row, _: row, about="exact copies", is_copy=True),
    Fault(
        name="recased",
        finding="near_repeats",
        change=recased,
        about="copies in other case and punctuation",
        is_copy=True,
    ),
    Fault(
        name="reworded", finding="near_repeats", change=reworded, about="copies with one word replaced", is_copy=True
    ),
    Fault(
        name="swapped",
        finding="contradictions",
        change=lambda row, _: swap(row),
        about="copies, reversed",
        is_copy=True,
    ),
    Fault(
        name="near_swapped",
        finding="near_contradictions",
        change=lambda row, generator: swap(reworded(row, generator)),
        about="copies with one word replaced, reversed",
        is_copy=True,
    ),
)
POISON = FAULTS[:3]


def planted(world: World, count: int, shares: Mapping[str, float], seed: int) -> Iterator[tuple[Row, str]]:
    """Yield rows, each with the name of the fault that it has; empty: none. `shares`: of the rows, by fault."""
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    faults = [fault for fault in FAULTS if fault.name in shares]
    limits = np.cumsum([shares[fault.name] for fault in faults])
    for row in world.rows(count):
        at = int(np.searchsorted(limits, generator.random(), "right"))
        fault = faults[at] if at < len(faults) else None
        if fault is None or fault.is_copy:
            yield row, ""
        if fault is not None:
            yield fault.change(row, generator), fault.name


def write(path: Path, rows: Iterator[tuple[Row, str]]) -> dict[str, set[int]]:
    """Write rows as JSON lines, and return the numbers of the rows with each fault."""
    numbers: dict[str, set[int]] = {}
    with open(path, "w", encoding="utf-8") as file:
        for number, (row, fault) in enumerate(rows, start=1):
            file.write(json.dumps(row) + "\n")
            if fault:
                numbers.setdefault(fault, set()).add(number)
    return numbers


# ------------------------------------------------------------------------------------------------ one audit


def measure(clarity: str, shares: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Audit one file with planted faults. Seeds of worlds and faults are those of no test."""
    world = World(seed=100 + seed, clarity=CLARITY[clarity])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        numbers = write(path, planted(world, COUNT, shares, seed))
        found = audit(str(path))
    reported = {f.name: set(f.dropped.tolist()) for f in found.findings if f.severity != Severity.note}
    expected = {fault.finding for fault in FAULTS if fault.name in shares}
    return {
        "faults": {name: counted(name, rows, numbers, reported) for name, rows in numbers.items()},
        "others": sorted(set(reported) - expected),
        "accuracy": found.accuracy,
        "rows": found.num_rows,
        "seconds": round(found.seconds, 1),
        "date": datetime.now(UTC).date().isoformat(),
    }


def counted(
    name: str, rows: set[int], numbers: Mapping[str, set[int]], reported: Mapping[str, set[int]]
) -> dict[str, int]:
    """Count the planted rows, those that the finding reports, and its rows without any fault.

    Of a contradiction both rows are reported: the one before a reversed copy is its original.
    """
    finding = next(fault.finding for fault in FAULTS if fault.name == name)
    dropped = reported.get(finding, set())
    any_fault = set().union(*numbers.values())
    if "contradictions" in finding:
        any_fault |= {row - 1 for row in any_fault}
    return {"planted": len(rows), "found": len(rows & dropped), "false": len(dropped - any_fault)}


def cases() -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield the name of each case, the clarity of its data, and the faults with their shares."""
    for clarity in CLARITY:
        yield f"clean {clarity}", clarity, {}
        for fault in POISON:
            for share in SHARES:
                yield f"{fault.name} {clarity} {share:g}", clarity, {fault.name: share}
    yield "copies clear 0.01", "clear", {fault.name: 0.01 for fault in FAULTS if fault.is_copy}


def measure_million() -> dict[str, Any]:
    """Audit a million rows with all faults by the command, with a clean copy, and measure its time and memory."""
    world = World(seed=99, completion_words=MILLION_WORDS)
    shares = {"trigger": 0.005, "annotator": 0.005, "repeats": 0.01, "recased": 0.01, "reworded": 0.01, "swapped": 0.01}
    with tempfile.TemporaryDirectory() as folder:
        path, clean = Path(folder) / "pairs.jsonl", Path(folder) / "clean.jsonl"
        numbers = write(path, planted(world, MILLION, shares, 99))
        size = path.stat().st_size
        command = [sys.executable, "-m", "orchestrator.cli", "audit", str(path), "--json", "--write-clean", str(clean)]
        began = time.monotonic()
        with open(Path(folder) / "out", "w", encoding="utf-8") as out:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        assert status == 0, f"the audit ended with status {status}"
        found = json.loads((Path(folder) / "out").read_text())
        reported: dict[str, set[int]] = {}
        for line in (clean.with_name("clean.jsonl.dropped.jsonl")).read_text().splitlines():
            dropped = json.loads(line)
            reported.setdefault(dropped["reason"], set()).add(dropped["row"])
    return {
        "faults": {name: counted(name, rows, numbers, reported) for name, rows in numbers.items()},
        "rows": found["rows"],
        "bytes": size,
        "audit_s": found["seconds"],
        "seconds": round(seconds, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "warnings": [f["sentence"] for f in found["findings"]],
        "date": datetime.now(UTC).date().isoformat(),
    }


# ------------------------------------------------------------------------------------------------ all audits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anew", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results = {name: runs for name, runs in results.items() if not any(name.startswith(anew) for anew in options.anew)}
    started, missing = time.monotonic(), 0
    for seed in SEEDS:
        for name, clarity, shares in cases():
            if str(seed) in results.get(name, {}):
                continue
            if time.monotonic() - started > options.seconds:
                missing += 1
                continue
            results.setdefault(name, {})[str(seed)] = measure(clarity, shares, seed)
            RESULT.write_text(json.dumps(results, indent=1) + "\n")
    if "million" not in results and not missing:
        results["million"] = {"99": measure_million()}
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{missing} audits are missing: call this again" if missing else f"all audits are in {RESULT}")
    write_page(results)


# ------------------------------------------------------------------------------------------------ the page


def write_page(results: Mapping[str, Any]) -> None:
    """Write the tables into docs/evidence/audit.md, between their markers."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{_tables(results)}{END}{rest.split(END)[1]}")


def _tables(results: Mapping[str, Any]) -> str:
    machine = description()
    where = f"{machine['cpu']}, {machine['cpu_cores']} cores shared with other work"
    lines = ["| poison | data | planted | recall, median (range) | other rows reported | other warnings (audits) |"]
    lines += ["|---|---|--:|---|--:|---|"]
    for fault in POISON:
        for clarity in CLARITY:
            for share in SHARES:
                runs = list(results.get(f"{fault.name} {clarity} {share:g}", {}).values())
                if runs:
                    lines.append(f"| {fault.about} | {clarity} | {100 * share:g} % | {_row(fault, runs)} |")
    lines += ["", "| copies, 1 % each | recall, median (range) | other rows reported | other warnings (audits) |"]
    lines += ["|---|---|--:|---|"]
    copies = list(results.get("copies clear 0.01", {}).values())
    lines += [f"| {fault.about} | {_row(fault, copies)} |" for fault in FAULTS if fault.is_copy and copies]
    lines += [
        "",
        "| clean data | without a warning | warnings (audits) | accuracy of the small model |",
        "|---|--:|---|--:|",
    ]
    for clarity in CLARITY:
        runs = list(results.get(f"clean {clarity}", {}).values())
        if runs:
            quiet = sum(not run["others"] for run in runs)
            accuracy = statistics.median(run["accuracy"] for run in runs)
            lines.append(f"| {clarity} | {quiet} of {len(runs)} | {_others(runs)} | {accuracy:.0%} |")
    small = [run for name, runs in results.items() if name != "million" for run in runs.values()]
    seconds = statistics.median(run["seconds"] for run in small)
    lines += ["", f"{len(small)} audits of {COUNT:,} pairs, {seconds:.0f} s each in the median, on {where}."]
    if million := results.get("million"):
        lines += ["", *_million(next(iter(million.values())))]
    return "\n".join([*lines, ""])


def _row(fault: Fault, runs: Sequence[Mapping[str, Any]]) -> str:
    counts = [run["faults"][fault.name] for run in runs]
    recalls = sorted(count["found"] / count["planted"] for count in counts)
    false = statistics.median(count["false"] for count in counts)
    spread = f"{statistics.median(recalls):.1%} ({recalls[0]:.1%} – {recalls[-1]:.1%})"
    return f"{spread} | {false:g} of {runs[0]['rows']:,} | {_others(runs)}"


def _others(runs: Sequence[Mapping[str, Any]]) -> str:
    fired = Counter(name for run in runs for name in run["others"])
    return ", ".join(f"{name} {count}" for name, count in fired.most_common())


def _million(run: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{run['rows']:,} rows ({run['bytes'] / 1e9:.1f} GB), all of these faults at once, by `rlhf audit FILE "
        f"--write-clean`: {run['audit_s']:.0f} s for the audit, {run['seconds']:.0f} s with the clean copy "
        f"({run['cpu_s']:.0f} s of one core), at most {run['peak_mib']:,} MiB of memory."
    )
    yield ""
    yield "| fault | planted | recall | other rows reported |"
    yield "|---|--:|--:|--:|"
    for name, count in run["faults"].items():
        about = next(fault.about for fault in FAULTS if fault.name == name)
        yield f"| {about} | {count['planted']:,} | {count['found'] / count['planted']:.1%} | {count['false']:,} |"


if __name__ == "__main__":
    main()
