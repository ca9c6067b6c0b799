"""Compare rounds of the quickstart's iterative DPO in this checkout with those in another one, in alternating turns.

    python benchmarks/rounds.py OTHER_CHECKOUT [--turns 5] [--theirs KEY=VALUE ...]

Both checkouts have their own `.venv`. The quickstart's base is trained once by each. Then its iterative DPO is run from
there by each checkout in turn. `--theirs` are overrides for the other checkout alone. The time of a round is its
`timing/step`: experience, reference and learning, without evaluation. The work must be equal: the same prompts and
samples, and numbers of pairs within 2 %; here, repeats are therefore kept and truncated answers may be chosen, as they
were before both could be left out. The result is the median of the ratios of a turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.start import HERE, call, prepare

OURS = ("algorithm.pairs.duplicates=keep", "algorithm.pairs.truncated_chosen=true")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--theirs", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    other, ratios = options.other.resolve(), list[float]()
    with tempfile.TemporaryDirectory(prefix="rlhf-rounds-") as directory:
        ours_directory, theirs_directory = Path(directory, "here"), Path(directory, "there")
        prepare(HERE, ours_directory)
        prepare(other, theirs_directory)
        for turn in range(options.turns):
            ours = _rounds(HERE, ours_directory, OURS)
            theirs = _rounds(other, theirs_directory, options.theirs)
            _require_equal_work(ours, theirs)
            mine, others = (sum(row["timing/step"] for row in rows) for rows in (ours, theirs))
            ratios.append(mine / others)
            print(f"turn {turn + 1}: {mine:.1f} s here, {others:.1f} s there, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median of {len(ratios)} ratios: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _rounds(checkout: Path, directory: Path, overrides: Sequence[str]) -> list[dict[str, float]]:
    """Run the recipe and return the rows of its rounds."""
    call(checkout, directory, "rlhf", "run", "configs/quickstart/iterative_dpo.yaml", "--fresh", *overrides)
    text = (directory / "runs" / "quickstart-iterative-dpo" / "metrics.jsonl").read_text()
    return [row for row in map(json.loads, text.splitlines()) if row["step"]]


def _require_equal_work(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        if abs(mine["pairs/count"] / other["pairs/count"] - 1) > 0.02:
            raise SystemExit(f"not the same work: {mine['pairs/count']:g} pairs here, {other['pairs/count']:g} there")


if __name__ == "__main__":
    main()
