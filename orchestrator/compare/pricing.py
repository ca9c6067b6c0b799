"""Price a comparison before anything starts: every run and every shared earlier stage, per method and in total.

What only measures (the initial model for the KL, the engines of an offline method) is not on a method's bill.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.compare.recipe import Comparison, PlannedRun
from orchestrator.plan.format import dollars, late_text, seconds, shortage_text
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.price import RunPrice, price_run

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class PricedRun:
    """Price of the runs of one setting, or of an earlier stage that several runs share."""

    task: str  # empty: an earlier stage
    method: str  # of an earlier stage, its name
    setting: str
    num_seeds: int
    price: RunPrice

    @property
    def label(self) -> str:
        seeds = f" × {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        return " ".join(filter(None, (self.method, self.setting))) + seeds

    @property
    def method_gpu_seconds(self) -> float:
        """GPU-seconds of training, of all seeds; NaN: unknown."""
        bill = self.price.method_gpu_seconds
        return math.nan if bill is None else self.num_seeds * sum(bill.values())

    @property
    def gpu_seconds(self) -> float:
        """GPU-seconds with loading and measuring, of all seeds; NaN: unknown."""
        whole = self.price.gpu_seconds
        return math.nan if whole is None else self.num_seeds * whole


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonPrice:
    """Price of a comparison."""

    gpu: Gpu
    given: int | None  # available GPUs; None: as many as a run needs
    shared: tuple[PricedRun, ...]  # earlier stages, each once
    runs: tuple[PricedRun, ...]

    @property
    def fits(self) -> bool:
        return all(one.price.fits for one in (*self.shared, *self.runs))

    @property
    def gpu_seconds(self) -> float:
        return sum(one.gpu_seconds for one in (*self.shared, *self.runs))

    @property
    def shortest_s(self) -> float:
        """Shortest time in which the given GPUs can hold all runs; with none given, one run at a time."""
        parts = (*self.shared, *self.runs)
        if self.given is not None:
            return sum(one.gpu_seconds for one in parts) / self.given
        return sum(math.nan if (s := one.price.seconds) is None else one.num_seeds * s for one in parts)


def price_comparison(
    comparison: Comparison, gpu: Gpu, *, given: int | None, price: float | None = None
) -> ComparisonPrice:
    """Price all runs of a comparison on GPUs of type `gpu`, whether they are complete or not.

    Args:
        comparison: comparison.
        gpu: type of the GPUs.
        given: available GPUs; None: as many as each run needs.
        price: US dollars per GPU-hour; None: that of the GPU.

    Raises:
        BadInput: if the shape of a model is not found.
    """
    shared: dict[str, PricedRun] = {}
    by_setting: dict[tuple[str, str, str], list[PlannedRun]] = {}
    for run in comparison.runs:
        by_setting.setdefault((run.task, run.method, run.setting), []).append(run)
    runs = []
    for (task, method, setting), seeds in by_setting.items():
        recipe = seeds[0].recipe
        for stage in recipe.stages:
            one = price_run(stage, gpu, given=given, before=recipe.before(stage), price=price)
            if stage is recipe.stages[-1]:
                runs.append(PricedRun(task=task, method=method, setting=setting, num_seeds=len(seeds), price=one))
            elif str(stage.directory) not in shared:
                shared[str(stage.directory)] = PricedRun(task="", method=stage.name, setting="", num_seeds=1, price=one)
    return ComparisonPrice(gpu=gpu, given=given, shared=tuple(shared.values()), runs=tuple(runs))


# ------------------------------------------------------------------------------------------------ text


def price_lines(price: ComparisonPrice, comparison: Comparison) -> Iterator[str]:
    """Yield a table of all runs, a table per method, the total, and what does not fit."""
    gpus = f"{price.given or ''} {price.gpu.name}".strip()
    yield f"{comparison.config.name} on {gpus}: an estimate, not a measurement"
    yield ""
    rows: list[tuple[str, ...]] = [("RUN", "GPUS", "A STEP", "STEPS", "TIME", "GPU-HOURS", "OF THE METHOD", "COST", "")]
    rows += [_row(one) for one in price.shared]
    for task in comparison.config.tasks:
        rows += [(f"{task.name}:", *[""] * 8)] if len(comparison.config.tasks) > 1 else []
        rows += [_row(one) for one in price.runs if one.task == task.name]
    yield from _aligned(rows)
    yield ""
    yield from _aligned([("METHOD", "RUNS", "GPU-HOURS", "OF THE METHOD", "COST"), *_methods(price, comparison)])
    yield ""
    yield _total(price)
    yield from _why_not(price)


def _row(one: PricedRun) -> tuple[str, ...]:
    price = one.price
    return (
        one.label,
        str(price.num_gpus),
        seconds(price.plan.time.step_s),
        UNKNOWN if price.steps is None else str(price.steps),
        UNKNOWN if price.seconds is None else seconds(price.seconds),
        _hours(one.gpu_seconds),
        _hours(one.method_gpu_seconds),
        _cost(one.gpu_seconds, price),
        "" if price.fits else "DOES NOT FIT",
    )


def _methods(price: ComparisonPrice, comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for task in comparison.config.tasks:
        prefix = f"{task.name}, " if len(comparison.config.tasks) > 1 else ""
        for method in dict.fromkeys(one.method for one in price.runs if one.task == task.name):
            own = [one for one in price.runs if (one.task, one.method) == (task.name, method)]
            yield _sum(f"{prefix}{method}", own)
        if task.best_of_n is not None:
            yield f"{prefix}{task.best_of_n.name}", "0", "0", "0", "$0"
    if price.shared:
        yield _sum("earlier stages, shared", price.shared)


def _sum(name: str, runs: Sequence[PricedRun]) -> tuple[str, ...]:
    whole, bill = sum(one.gpu_seconds for one in runs), sum(one.method_gpu_seconds for one in runs)
    count = sum(one.num_seeds for one in runs)
    return name, str(count), _hours(whole), _hours(bill), _cost(whole, runs[0].price)


def _total(price: ComparisonPrice) -> str:
    whole, first = price.gpu_seconds, price.runs[0].price
    on = f"at least {seconds(price.shortest_s)} on {price.given} GPUs" if price.given else "one run after the other: "
    on += "" if price.given else seconds(price.shortest_s)
    return f"Total: {_hours(whole)} GPU-hours, {_cost(whole, first)}; {on if math.isfinite(whole) else UNKNOWN}"


def _why_not(price: ComparisonPrice) -> Iterator[str]:
    for one in (*price.shared, *price.runs):
        plan = one.price.plan
        reasons = [shortage_text(shortage) for shortage in plan.shortages]
        reasons += [late_text(call) for call in plan.late]
        if plan.missing_gpus:
            reasons.append(f"needs {plan.asked} GPUs, of which {plan.missing_gpus} are missing")
        for reason in reasons:
            yield f"does not fit: {one.label}: {reason}"
    if any(math.isnan(one.gpu_seconds) for one in (*price.shared, *price.runs)):
        yield "unknown: a dataset's number of rows; set algorithm.max_steps in these recipes"


def _hours(gpu_seconds: float) -> str:
    hours = gpu_seconds / 3600
    return UNKNOWN if not math.isfinite(hours) else f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _cost(gpu_seconds: float, price: RunPrice) -> str:
    return dollars(gpu_seconds / 3600 * price.plan.price) if math.isfinite(gpu_seconds) else UNKNOWN


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows of a table; figures are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
