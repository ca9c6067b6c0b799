"""Fuzz every parser for a while, each in a separate process: `make fuzz MINUTES=20`, or

    python tests/fuzz/fuzz.py --minutes 20 [PARSER …]

A crash is written to tests/fuzz/corpus/PARSER/, which `make test` replays from then on. Inputs that reached new code
are kept under .fuzz/, and the next session continues from them. Time spent and executions are added to
tests/fuzz/spent.json, from which docs/evidence/fuzzing.md is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import coverage_fuzzer  # noqa: E402 - a sibling module, on the path set above
from parsers import PARSERS, Parser  # noqa: E402

from benchmarks.machine import description  # noqa: E402

CORPUS, REACHED = HERE / "corpus", ROOT / ".fuzz"
SPENT, PAGE = HERE / "spent.json", ROOT / "docs" / "evidence" / "fuzzing.md"
LAST_BYTES = coverage_fuzzer.LONGEST + 8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("parsers", nargs="*", metavar="PARSER", help=f"of {', '.join(p.name for p in PARSERS)}")
    options.add_argument("--minutes", type=float, default=20.0, help="for each parser")
    options.add_argument("--one", help=argparse.SUPPRESS)  # run as a child; the value is a file for the last input
    options.add_argument("--page", action="store_true", help="only write docs/evidence/fuzzing.md again")
    given = options.parse_args()
    wanted = [p for p in PARSERS if not given.parsers or p.name in given.parsers]
    if given.one:
        _fuzz(wanted[0], given.minutes * 60, Path(given.one))
        return
    crashes = 0
    for parser in [] if given.page else wanted:
        crashes += _supervise(parser, given.minutes * 60)
    PAGE.write_text(page())
    sys.exit(bool(crashes))


# ------------------------------------------------------------------------------------------------ one process


def _fuzz(parser: Parser, seconds: float, last: Path) -> None:
    """Fuzz one parser for `seconds` and print the result as one line of JSON."""
    end = time.monotonic() + seconds
    reached = REACHED / parser.name
    reached.mkdir(parents=True, exist_ok=True)
    kept = [path.read_bytes() for path in sorted(reached.iterdir())]
    with last.open("r+b") as file, mmap.mmap(file.fileno(), LAST_BYTES) as shown:

        def remember(content: bytes) -> None:  # identifies an input that kills the process
            shown[: 8 + len(content)] = len(content).to_bytes(8, "little") + content

        seed = int.from_bytes(os.urandom(6), "little")
        told, num_kept, found = 0.0, 0, set[str]()
        state = coverage_fuzzer.FuzzState()
        for state in coverage_fuzzer.fuzz(
            parser, until=lambda _: time.monotonic() > end, seed=seed, more_seeds=kept, before=remember
        ):
            for content in state.corpus[num_kept:]:
                (reached / _digest(content)).write_bytes(content)
            num_kept = len(state.corpus)
            for kind in state.crashes.keys() - found:
                _keep(parser, state.crashes[kind])
                found.add(kind)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                _tell(parser, state, end - told)
    done = {"executions": state.executions, "crashes": sorted(found), "seed": seed}
    print(json.dumps({**done, "edges": len(state.edges), "inputs": len(state.corpus)}))


def _keep(parser: Parser, crash: coverage_fuzzer.Crash) -> None:
    with tempfile.TemporaryDirectory() as place:
        crash = coverage_fuzzer.smaller(parser, crash, Path(place))
    name = re.sub(r"[^A-Za-z0-9]+", "-", crash.kind.replace("orchestrator/", "").replace(".py", ""))
    print(f"\n{parser.name}: {crash.kind}\n{crash.text}", file=sys.stderr)
    _write_crash(parser, f"{name}-{_digest(crash.content)}", crash.content)


def _write_crash(parser: Parser, name: str, content: bytes) -> None:
    (CORPUS / parser.name).mkdir(parents=True, exist_ok=True)
    (CORPUS / parser.name / name).write_bytes(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _tell(parser: Parser, state: coverage_fuzzer.FuzzState, left_s: float) -> None:
    print(
        f"{parser.name}: {state.executions} executions, {len(state.edges)} edges, {len(state.corpus)} inputs kept, "
        f"{len(state.crashes)} crashes, {left_s / 60:.1f} minutes left",
        file=sys.stderr,
        flush=True,
    )


# ------------------------------------------------------------------------------------------------ around it


def _supervise(parser: Parser, seconds: float) -> int:
    """Fuzz one parser in child processes and return the number of crashes.

    A child that dies counts as a crash, and the next child gets the remaining time.
    """
    end, crashes = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 1:
        with tempfile.NamedTemporaryFile(prefix="rlhf-fuzz-last-") as last:
            last.truncate(LAST_BYTES)
            started = time.monotonic()
            command = [sys.executable, __file__, parser.name, "--minutes", str(left / 60), "--one", last.name]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
            spent = time.monotonic() - started
            if child.returncode == 0:
                done: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
                crashes += len(done["crashes"])
                _add({"parser": parser.name, "seconds": round(spent), **done})
                continue
            if child.returncode > 0:
                sys.exit(f"{parser.name}: the fuzzer itself failed")
            raw = last.read()
            content = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
            print(f"{parser.name}: the process died ({child.returncode})", file=sys.stderr)
            _write_crash(parser, f"died-{-child.returncode}-{_digest(content)}", content)
            crashes += 1
    return crashes


def _add(entry: dict[str, Any]) -> None:
    spent = json.loads(SPENT.read_text()) if SPENT.exists() else []
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    spent.append({"date": today, "machine": description(), "python": sys.version.split()[0], **entry})
    SPENT.write_text(json.dumps(spent, indent=1) + "\n")


def page() -> str:
    """Return the text of docs/evidence/fuzzing.md, from the recorded sessions and crashes."""
    spent = json.loads(SPENT.read_text())
    machine = spent[-1]["machine"]
    rows = []
    for parser in PARSERS:
        mine = [entry for entry in spent if entry["parser"] == parser.name]
        last = mine[-1] if mine else {"edges": 0, "inputs": 0}
        minutes, executions = sum(e["seconds"] for e in mine) / 60, sum(e["executions"] for e in mine)
        rows.append(f"| {parser.name} | {minutes:.0f} | {executions:,} | {last['edges']} | {last['inputs']} |")
    total = sum(entry["seconds"] for entry in spent) / 3600
    found = json.loads((CORPUS / "found.json").read_text())
    dates = sorted({entry["date"] for entry in spent})
    return PAGE_TEXT.format(
        dates=dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        machine=f"{machine['cpu']}, {machine['cpu_cores']} cores, {machine['memory_gib']} GiB, {machine['system']}",
        hours=f"{total:.2f}",
        rows="\n".join(rows),
        num_found=len(found),
        found="\n".join(f"| {name.partition('/')[0]} | {what} |" for name, what in found.items()),
    )


PAGE_TEXT = """# Fuzzing

Written by `make fuzz`. `python tests/fuzz/fuzz.py --page` writes the page again from the recorded sessions.

The fuzzer feeds malformed input to every parser whose input comes from a person or from a damaged disk. The parser must
return, or raise an `RlhfError` that says what is wrong, within 5 s of CPU time and 2 GiB of memory, for an input of at
most 32 KiB. Anything else is a crash, including the end of the process.

The fuzzer starts from valid inputs: every recipe under `configs/`, rows of every format, parquet files of every kind, a
real ledger and a real manifest. It mutates bits, spans, numbers and words of the format, and inserts parts of other
inputs. Inputs that reach new pairs of consecutive lines (edges) of `orchestrator/` are kept and mutated further.
Ledgers and manifests are also tried with corrected checksums, because mutated ones would not pass the checksum.

| parser | minutes | executions | edges reached | inputs kept |
|---|---|---|---|---|
{rows}

{hours} hours in total, {dates}, on {machine}.

The machine was busy with other work and every line was traced, so there are fewer executions than on an idle machine.
The total is far from the 24 hours that would be worth publishing. Minutes and executions are totals over all recorded
sessions; edges and inputs are those of the last session. Most crashes were found in a first pass of half a minute per
parser, which is not recorded.

## Crashes found and fixed

{num_found} inputs crashed a parser. They are in `tests/fuzz/corpus/`. `make test` replays them and tries new inputs for
1.5 s per parser.

| parser | crash |
|---|---|
{found}
"""


if __name__ == "__main__":
    main()
