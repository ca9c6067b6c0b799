"""Figures that count ordinary tests: T17 secrets, T18 escapes, T19 open ports.

    python tests/faults/suites.py [T17 …]       adds to tests/faults/measured/pieces.jsonl

A skipped test (on a machine without bubblewrap, for example) does not count as a trial.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from measurements import PIECES, Piece, add  # noqa: E402 - a sibling module, on the path set above

SUITES = {
    "T17": ["tests/stack/test_secrets_and_doors.py", "tests/stack/test_jobs_on_a_cluster.py", "-k", "t17"],
    "T18": ["tests/security/test_escapes.py", "-k", "no_escape or no_forged_verdict"],
    "T19": ["tests/stack/test_secrets_and_doors.py", "tests/stack/test_jobs_on_a_cluster.py", "-k", "t19"],
}


def count(figure: str) -> Piece:
    """Run a suite and return it as a piece, in which each test that ran is a trial."""
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={results}", *SUITES[figure]]
        subprocess.run(command, cwd=ROOT, check=False)
        suite = next(ElementTree.parse(results).iter("testsuite"))
    failures = tuple(
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    )
    return Piece(
        figure=figure,
        command="python tests/faults/suites.py",
        trials=int(suite.attrib["tests"]) - int(suite.attrib["skipped"]),
        failures=failures,
        seconds=round(float(suite.attrib["time"]), 1),
    )


def main() -> None:
    for figure in sys.argv[1:] or SUITES:
        add(PIECES, count(figure))


if __name__ == "__main__":
    main()
