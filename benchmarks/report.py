"""Summarise the repeats of a benchmark as a table. Pure functions on the answers of the workers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

LOSS_TOLERANCE = 2e-5
NORM_TOLERANCE = 1e-3
CHECKED_STEPS = 3
"""Equal work diverges slowly over later steps, as float32 sums are taken in another order."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One variant of a side: `Contestant(side="trl", variant="best", about="…", same_work=True)`."""

    side: str
    variant: str
    about: str
    same_work: bool

    @property
    def label(self) -> str:
        return f"{self.side} · {self.variant}"


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """One measured request."""

    index: int
    label: str
    answer: dict[str, Any]
    foreign_cores: float  # cores used by processes outside the benchmark meanwhile
    idle_side_cores: float  # cores used by the sides that were waiting


def differences(kind: str, expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """Return the differences that show unequal work: losses beyond 2e-5, gradient norms beyond 1e-3, both relative.

    A GRPO loss is a mean of advantages, which are of size one and cancel: its differences are relative to one.
    """
    floor = 1.0 if kind == "grpo" else 0.0
    rows = [("losses", LOSS_TOLERANCE, floor), ("grad_norms", NORM_TOLERANCE, 0.0)]
    messages = []
    for key, tolerance, scale in rows:
        pairs = list(zip(expected[key], actual[key], strict=True))[:CHECKED_STEPS]
        for step, (a, b) in enumerate(pairs):
            if not abs(a - b) <= tolerance * max(abs(a), abs(b), scale):
                messages.append(f"{key} of step {step}: {a!r} and {b!r} differ by more than {tolerance:g}")
    return messages


def items(answer: dict[str, Any]) -> int:
    """Return the number of pairs or samples."""
    return int(answer.get("pairs") or answer["samples"])


def per_second(answer: dict[str, Any]) -> float:
    """Return pairs or samples per second of one epoch, including its caches but not loading and building."""
    return float(items(answer) / (answer["train_s"] + answer["cache_s"]))


def per_second_steady(answer: dict[str, Any]) -> float:
    """Return pairs or samples per second with the caches already built, as in a second epoch."""
    return float(items(answer) / answer["train_s"])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values), "count": len(values)}


def summary(contestants: list[Contestant], repeats: list[Repeat]) -> list[dict[str, Any]]:
    """Return one row per contestant: rates, and the first contestant's rate over its own within each repeat."""
    rows = []
    ours = _answers(contestants[0], repeats)
    for contestant in contestants:
        answers = _answers(contestant, repeats)
        rows.append(
            {
                **asdict(contestant),
                "per_second": spread([per_second(answer) for answer in answers]),
                "per_second_steady": spread([per_second_steady(answer) for answer in answers]),
                "ratio": spread([per_second(a) / per_second(b) for a, b in zip(ours, answers, strict=True)]),
                "ratio_steady": spread(
                    [per_second_steady(a) / per_second_steady(b) for a, b in zip(ours, answers, strict=True)]
                ),
                "setup_s": median(answer["setup_s"] for answer in answers),
                "memory_bytes": median(answer["rss_peak_bytes"] - answer["rss_before_bytes"] for answer in answers),
                "generate_share": median(sum(answer.get("generate_s", [0])) / answer["train_s"] for answer in answers),
                "reward": median(_mean(answer.get("rewards", [0])) for answer in answers),
                "tokens": {k: round(_mean([a["tokens"][k] for a in answers])) for k in answers[0]["tokens"]},
                "items": items(answers[0]),
            }
        )
    return rows


def _answers(contestant: Contestant, repeats: list[Repeat]) -> list[dict[str, Any]]:
    chosen = [repeat for repeat in repeats if repeat.label == contestant.label]
    return [repeat.answer for repeat in sorted(chosen, key=lambda repeat: repeat.index)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def markdown(result: dict[str, Any]) -> str:
    """Return the table with notes on the machine, the load, the checks and the versions."""
    machine, unit = result["machine"], result["unit"]
    loads = [f"{load:.1f}" for load in (*result["load_before"], *result["load_after"])]
    foreign = [repeat["foreign_cores"] for repeat in result["repeats"]]
    idle = [repeat["idle_side_cores"] for repeat in result["repeats"]]
    lines = [
        f"# {result['title']}",
        "",
        f"`{result['command']}` · {result['date']} · {machine['cpu']}, {result['cores']} of {machine['cpu_cores']}"
        f" cores for each side, {machine['memory_gib']} GiB · {machine['system']}",
        "",
        *_table(result["rows"], unit),
        "",
        *(f"- {row['side']} · {row['variant']}: {row['about']}." for row in result["rows"]),
        f"- Rates are medians of {result['rows'][0]['ratio']['count']} interleaved repeats of {result['steps']} steps"
        f" ({result['rows'][0]['items']} {unit}s), lowest and highest in brackets; a ratio is the first row's rate over"
        " this row's, within a repeat. Memory is the peak above the level before the request. Tokens are means of the"
        " repeats; `forward` counts the positions of one forward of the policy, `logit rows` those of its head.",
        f"- Equal work: {result['equal_work']}",
        *(f"- {note}" for note in result["notes"]),
        f"- Load average before {', '.join(loads[:3])}, after {', '.join(loads[3:])} (1, 5, 15 minutes). Processes"
        f" outside the benchmark used {median(foreign):.2f} cores in the median repeat and {max(foreign):.2f} in the"
        f" worst (repeats above {result['max_foreign_cores']:g} are measured again); the waiting side used"
        f" {median(idle):.2f}.",
        *(
            f"- {side} on {facts['cores']}: " + ", ".join(map(" ".join, facts["versions"].items()))
            for side, facts in result["sides"].items()
        ),
        "",
    ]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], unit: str) -> list[str]:
    grpo = "generated" in rows[0]["tokens"]
    middle = ["generated tokens", "generation", "reward"] if grpo else ["real tokens"]
    head = [f"{unit}s/s", "ratio", "same, caches built", "ratio", "memory", *middle, "forward", "logit rows"]
    lines = ["| side · variant | " + " | ".join(head) + " |", "|---|" + "--:|" * len(head)]
    for row in rows:
        tokens = row["tokens"]
        middle = (
            [f"{tokens['generated']:,}", f"{row['generate_share']:.0%}", f"{row['reward']:.3f}"]
            if grpo
            else [f"{tokens['real']:,}"]
        )
        cells = [
            _number(row["per_second"]),
            _ratio(row["ratio"]),
            _number(row["per_second_steady"]),
            _ratio(row["ratio_steady"]),
            f"{row['memory_bytes'] / 2**30:.2f} GiB",
            *middle,
            f"{tokens['forward']:,}",
            f"{tokens['logit_rows']:,}",
        ]
        name = f"{row['side']} · {row['variant']}" + ("" if row["same_work"] else " ¹")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if not all(row["same_work"] for row in rows):
        lines += ["", "¹ not the same work (see below), so not a fair ratio."]
    return lines


def _number(value: dict[str, float]) -> str:
    return f"{value['median']:.3g} [{value['min']:.3g}, {value['max']:.3g}]"


def _ratio(value: dict[str, float]) -> str:
    return f"**{value['median']:.2f}** [{value['min']:.2f}, {value['max']:.2f}]"
