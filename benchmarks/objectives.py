"""Compare three ways to serve two objectives in conflict: notes that are thorough, and notes that are brief.

    python -m benchmarks.objectives              (`make objectives`; about 12 minutes a seed on 2 cores)
    python -m benchmarks.objectives --seeds 0    only these seeds; the figures of the others are kept

    weights   configs/quickstart/multi_objective.yaml with the weights w and 1 − w: a run for each w
    soups     the two runs with one objective alone, w = 1 and w = 0: their weights interpolated (arXiv 2306.04488)
    heads     configs/quickstart/two_headed_reward.yaml with the weights w and 1 − w: the rewards are the two scores of
              one model, which has seen pairs alone

The best note for w has the share w of the letters (configs/quickstart/task.py), so the best frontier is known. A
mixture, where each prompt is answered by one of the two runs of the soups, is on the straight line between them.

Output: benchmarks/results/objectives.json, docs/evidence/objectives.md and its picture.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import load_file, save_file

from benchmarks.machine import description
from orchestrator.config import load
from orchestrator.report.svg import MARKERS, MUTED, PAPER, colour, figure, inline, standalone

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
BETWEEN = WEIGHTS[1:-1]
RLHF = str(Path(sys.executable).parent / "rlhf")
RESULT = ROOT / "benchmarks" / "results" / "objectives.json"
PAGE = ROOT / "docs" / "evidence" / "objectives.md"
PICTURE = ROOT / "docs" / "evidence" / "pictures" / "objectives.svg"
OBJECTIVES = ("thorough", "brief")
WAYS = {"weights": "a run for each weight", "soups": "soup of two runs", "heads": "two-headed reward"}
Point: TypeAlias = tuple[float, float]  # mean scores of greedy answers: thorough, brief


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for seed in parser.parse_args().seeds:
        results[str(seed)] = measure(seed)
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        write_page(results)


# ------------------------------------------------------------------------------------------------ measuring


def measure(seed: int) -> dict[str, Any]:
    """Return the point of each way at each of its weights, and the best frontier on the same prompts."""
    directory = ROOT / "runs" / "objectives" / f"seed-{seed}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "configs").symlink_to(ROOT / "configs")
    _call([sys.executable, "configs/quickstart/task.py", "--seed", str(seed)], directory)
    points: dict[str, dict[str, Point]] = {way: {} for way in WAYS}
    for weight in WEIGHTS:
        points["weights"][str(weight)] = _trained(directory, "multi_objective", weight, seed)
    for weight in BETWEEN:
        points["soups"][str(weight)] = _mixed(directory, weight)
        points["heads"][str(weight)] = _trained(directory, "two_headed_reward", weight, seed)
    solutions = [
        json.loads(line)["solution"] for line in (directory / "data/quickstart/test.jsonl").read_text().splitlines()
    ]
    frontier = [best(solutions, step / 40) for step in range(41)]
    return points | {"best": frontier, "date": datetime.now(UTC).date().isoformat()}


def best(solutions: Sequence[str], weight: float) -> Point:
    """Return the mean scores of the notes with the highest weighted score."""
    chosen = []
    for right in solutions:
        notes = [right[:length] for length in range(1, len(right) + 1)]
        scores = zip(*(score([""] * len(notes), notes, [right] * len(notes)) for score in _scorers()), strict=True)
        chosen.append(max(scores, key=partial(weighted, weight=weight)))
    return statistics.mean(t for t, _ in chosen), statistics.mean(b for _, b in chosen)


def weighted(point: Sequence[float], weight: float) -> float:
    """Return the score of a point with `weight` for thorough and the rest for brief."""
    return weight * point[0] + (1 - weight) * point[1]


def _scorers() -> list[Callable[[list[str], list[str], list[str]], list[float]]]:
    task = runpy.run_path(str(ROOT / "configs" / "quickstart" / "task.py"))
    return [task[name] for name in OBJECTIVES]


def _trained(directory: Path, recipe: str, weight: float, seed: int) -> Point:
    """Run a recipe with `weight` for thorough and the rest for brief. Its last stage is in a directory of its own."""
    path, output = f"configs/quickstart/{recipe}.yaml", f"runs/{recipe}-{weight}"
    names = [stage.name for stage in load(ROOT / path).stages]
    last = f"stages.{names[-1]}"
    changes = [
        *(f"stages.{name}.seed={seed}" for name in names),
        f"{last}.output_dir={output}",
        f"{last}.data.eval_prompts=data/quickstart/test.jsonl",
        f"{last}.reward.0.weight={weight}",
        f"{last}.reward.1.weight={1 - weight}",
    ]
    _call([RLHF, "run", path, *changes], directory)
    metrics = directory / output / names[-1] / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    end = [row for row in rows if row.get("eval/prompts")][-1]
    return end["eval/rewards/thorough/mean"], end["eval/rewards/brief/mean"]


def _mixed(directory: Path, weight: float) -> Point:
    """Interpolate the weights of the two runs with one objective alone, and evaluate the model."""
    brief, thorough = (
        directory / f"runs/multi_objective-{w}/quickstart-multi-objective/model" for w in (WEIGHTS[0], WEIGHTS[-1])
    )
    target = directory / f"soups/{weight}"
    interpolate(brief, thorough, weight, target)
    result = directory / f"evaluations/{weight}"
    _call([RLHF, "evaluate", str(target), "--suite", "configs/eval/notes.yaml", "--output", str(result)], directory)
    figures = json.loads((result / "evaluation.json").read_text())["figures"]["model"]
    return figures["greedy/rewards/thorough"]["value"], figures["greedy/rewards/brief"]["value"]


def interpolate(first: Path, second: Path, share: float, target: Path) -> None:
    """Write the model whose weights are (1 − share) · first + share · second, with the other files of the first."""
    shutil.copytree(first, target, ignore=shutil.ignore_patterns("manifest.json"))  # has sums of the files of the first
    other = load_file(second / "model.safetensors")
    weights = {
        name: (1 - share) * weight + share * other[name]
        for name, weight in load_file(first / "model.safetensors").items()
    }
    save_file(weights, target / "model.safetensors", {"format": "pt"})


def _call(command: list[str], directory: Path) -> None:
    subprocess.run(command, cwd=directory, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


# ------------------------------------------------------------------------------------------------ page


def write_page(results: dict[str, Any]) -> None:
    """Write the page and its picture: means over the seeds."""
    seeds = [results[seed] for seed in sorted(results)]
    means = {way: {w: _mean([seed[way][w] for seed in seeds]) for w in seeds[0][way]} for way in WAYS}
    frontier = [_mean(points) for points in zip(*(seed["best"] for seed in seeds), strict=True)]
    PICTURE.write_text(_picture(means, frontier))
    lines = ["| way | weight of thorough | thorough | brief | of the best weighted score |", "|---|--:|---|---|--:|"]
    for way, points in means.items():
        lines += [_line(WAYS[way], float(w), [seed[way][w] for seed in seeds], frontier) for w in points]
    ends = [(seed["weights"][str(WEIGHTS[0])], seed["weights"][str(WEIGHTS[-1])]) for seed in seeds]
    for w in BETWEEN:
        mixtures = [((1 - w) * a[0] + w * b[0], (1 - w) * a[1] + w * b[1]) for a, b in ends]
        lines.append(_line("mixture of two runs, computed", w, mixtures, frontier))
    machine, date = description(), max(seed["date"] for seed in seeds)
    ending = (
        f"Seeds {', '.join(sorted(results))}. Measured up to {date} on {machine['cpu']}, {machine['cpu_cores']} cores, "
        "by `make objectives`."
    )
    PAGE.write_text("\n".join([_HEAD, *lines, "", ending, ""]))


def _line(way: str, weight: float, points: Sequence[Point], frontier: Sequence[Point]) -> str:
    reached = weighted(_mean(points), weight) / max(weighted(point, weight) for point in frontier)
    thorough, brief = (_spread([point[i] for point in points]) for i in range(2))
    return f"| {way} | {weight:g} | {thorough} | {brief} | {100 * reached:.0f} % |"


def _mean(points: Sequence[Sequence[float]]) -> Point:
    return statistics.mean(point[0] for point in points), statistics.mean(point[1] for point in points)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ({min(values):.2f} – {max(values):.2f})" if len(values) > 1 else mean


def _picture(means: dict[str, dict[str, Point]], frontier: Sequence[Point]) -> str:
    with figure(4.6, 3.3) as (fig, (axes,)):
        axes.plot(*zip(*frontier, strict=True), color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        ends = [means["weights"][str(w)] for w in (WEIGHTS[0], WEIGHTS[-1])]
        axes.plot(*zip(*ends, strict=True), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2.5)))
        for i, points in enumerate(means.values()):
            style: dict[str, Any] = {"color": colour(i), "marker": MARKERS[i], "markeredgecolor": PAPER}
            axes.plot(*zip(*points.values(), strict=True), linewidth=1.0, ms=5, **style)
        axes.set_xlabel("thorough", labelpad=1)
        axes.set_ylabel("brief")
        about = "; ".join(
            f"{WAYS[way]}: " + ", ".join(f"{t:.2f} and {b:.2f} at {w}" for w, (t, b) in points.items())
            for way, points in means.items()
        )
        return standalone(inline(fig, title="Thorough against brief", about=about), list(WAYS.values()))


_HEAD = """# Two objectives in conflict

A note of the sorted letters should be thorough, and it should be brief ([task.py](../../configs/quickstart/task.py)).
Three ways to choose between them, from the same fine-tuned model:

- **A run for each weight.** [multi_objective.yaml](../../configs/quickstart/multi_objective.yaml): GRPO on w · thorough
  + (1 − w) · brief.
- **Soup of two runs.** Only the runs with w = 0 and w = 1 are trained; their weights are interpolated with the share w
  (rewarded soups, [2306.04488](https://arxiv.org/abs/2306.04488)).
- **Two-headed reward.** [two_headed_reward.yaml](../../configs/quickstart/two_headed_reward.yaml): one reward model
  with a score for each objective, trained on pairs alone, and GRPO on the weighted scores.

Scores are means of greedy answers on 256 unseen prompts, over the seeds (lowest – highest). The dashed curve is the
best frontier, which is known here: with the weight w a note should have the share w of the letters after the first. The
dotted line is a mixture, where some prompts are answered by one of the two runs and the others by the other one; it is
computed, not measured. The last column compares the weighted score with that of the best note.

<img src="pictures/objectives.svg" width="70%" alt="Brief against thorough: weights, soups and the two-headed reward">
"""


if __name__ == "__main__":
    main()
