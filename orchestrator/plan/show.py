"""Print a plan for people: memory, GPUs and a step as bars, and what to change. Bars fit into 80 columns."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TextIO

from orchestrator.plan.advice import as_overrides
from orchestrator.plan.calls import SAFETY
from orchestrator.plan.checkpoints import checkpoint_bytes, disk_bytes
from orchestrator.plan.drawing import (
    BAR,
    FREE,
    LEGEND,
    MARKS,
    MEMORY_PATTERNS,
    OVER,
    STATES,
    STYLES,
    Page,
    Piece,
)
from orchestrator.plan.evaluation import num_evaluations
from orchestrator.plan.format import (
    dollars,
    ending_text,
    gigabytes,
    interval_text,
    late_text,
    seconds,
    shortage_text,
    suggestion_text,
)
from orchestrator.plan.gangs import Demand
from orchestrator.plan.gpus import CPU_RANK, GPUS_PER_NODE, PRICES
from orchestrator.plan.grace import stop_time
from orchestrator.plan.memory import TIGHT
from orchestrator.plan.plan import NOT_MEASURED, Plan
from orchestrator.plan.step import PHASES, StepTime

SHOWN_GPUS = 256  # a larger cluster is counted, not drawn
SHOWN_PLACEMENTS = 3
SHOWN_CALL_S = 1.0  # a shorter call is not shown
PHASES_COMPARED = ("generate", "score", "learn")


def show_plan(plan: Plan, stream: TextIO | None = None) -> None:
    """Print the whole plan."""
    page = Page(stream or sys.stdout)
    _header(page, plan)
    if plan.gpu is not CPU_RANK:
        _memory(page, plan)
        _gpu_map(page, plan)
    if plan.has_room:  # otherwise times and costs would belong to a larger cluster
        _step(page, plan.time)
        _calls(page, plan)
        _cost(page, plan)
        _disk(page, plan)
    _shortages(page, plan)
    _late(page, plan)
    _placements(page, plan)
    _assumptions(page, plan)


def _header(page: Page, plan: Plan) -> None:
    verdict, style = ("FITS", "bold green") if plan.fits else ("DOES NOT FIT", "bold red")
    if plan.has_room and plan.late:
        verdict = "DOES NOT END IN TIME"
    if plan.gpu is CPU_RANK:
        verdict, style = "times only: CPU memory is not planned", ""
    available = plan.asked if plan.given is None else plan.given
    model = plan.shapes["policy"]
    page.line(
        (plan.name, "bold"),
        f"   {plan.config.algorithm.type} on {model.name} ({model.num_params / 1e9:.3g}B)   "
        f"{available} x {plan.gpu.name}"
        + (f" ({gigabytes(plan.gpu.memory_bytes)})" if plan.gpu is not CPU_RANK else "")
        + "   ",
        (verdict, style),
    )


def _memory(page: Page, plan: Plan) -> None:
    page.heading("Peak memory per GPU")
    scale = max([plan.gpu.memory_bytes, *(d.memory.total for d in plan.demands)])
    for demand in plan.demands:
        page.line(
            f"  {demand.role:<10}{demand.num_gpus:>4} GPUs  ",
            *_bar(page, demand, scale, plan.gpu.memory_bytes),
            f" {demand.memory.total / 1e9:>5.1f}  ",
            _verdict(demand),
        )
    legend: list[Piece] = [" " * 10]
    for pattern, name in LEGEND:
        legend += [page.draw(pattern, 1), f" {name}  "]
    page.line(*legend)
    if hosts := [d for d in plan.demands if d.memory.host_bytes]:
        sizes = ", ".join(f"{d.role} {gigabytes(d.memory.host_bytes)}" for d in hosts)
        page.line(f"  host memory per GPU: {sizes}")


def _verdict(demand: Demand) -> tuple[str, str]:
    if not demand.fits:
        return (f"{gigabytes(demand.short_bytes)} short" if demand.short_bytes else "exceeds a node"), "bold red"
    is_engine = "keys and values" in dict(demand.memory.parts)  # an engine fills its limit by design
    tight = demand.memory.total > TIGHT * demand.limit_bytes and not is_engine
    return ("tight", "yellow") if tight else ("fits", "green")


def _bar(page: Page, demand: Demand, scale: float, limit: float) -> list[tuple[str, str]]:
    """Return a bar of the parts grouped by pattern, followed by free or missing memory."""
    ordered = [
        (pattern, sum(size for name, size in demand.memory.parts if MEMORY_PATTERNS[name] is pattern))
        for pattern, _ in LEGEND
    ]
    pieces, drawn, filled = [], 0, 0.0
    end = round(min(limit, demand.memory.total) / scale * BAR)
    for pattern, size in ordered:
        filled += size
        until = min(end, round(filled / scale * BAR))
        pieces.append(page.draw(pattern, until - drawn))
        drawn = until
    over = round(demand.memory.total / scale * BAR) - drawn
    pieces.append(page.draw(OVER, over))
    pieces.append(page.draw(FREE, max(0, round(limit / scale * BAR) - drawn - over)))
    return [*pieces, (" " * (BAR - sum(len(text) for text, _ in pieces)), "")]


def _gpu_map(page: Page, plan: Plan) -> None:
    """Print which role each GPU belongs to, node by node, with the roles packed densely."""
    gpus = [demand.role for demand in plan.demands for _ in range(demand.num_gpus)]
    available = len(gpus) if plan.given is None else plan.given
    names = ", ".join(f"{MARKS[d.role]} {d.role}" for d in plan.demands)
    page.heading("GPUs", (f"   {names}; {GPUS_PER_NODE} per node", ""))
    if max(len(gpus), available) > SHOWN_GPUS:
        page.line(f"  {len(gpus)} needed, {available} available, {-(-available // GPUS_PER_NODE)} nodes")
        return
    cells = [(MARKS[role], STYLES[role] if i < available else "bold red") for i, role in enumerate(gpus)]
    cells += [page.draw(FREE, 1)] * (available - len(gpus))
    nodes = [cells[i : i + GPUS_PER_NODE] for i in range(0, len(cells), GPUS_PER_NODE)]
    for i in range(0, len(nodes), 8):
        line: list[Piece] = ["  "]
        for node in nodes[i : i + 8]:
            line += [*node, " "]
        page.line(*line)
    if plan.missing_gpus:
        page.line((f"  the last {plan.missing_gpus} are not available", "bold red"))


def _step(page: Page, time: StepTime) -> None:
    page.heading(
        f"A step: {seconds(time.step_s)}",
        (", phases overlap" if time.ahead else ", phases are sequential", ""),
    )
    if not math.isfinite(time.step_s):
        page.line("  it would never end: a role does not fit")
        return
    for phase in (p for p in PHASES if p in time.busy):
        for role, duration in time.busy[phase].items():
            begin = time.begins[phase][role]
            first = min(BAR - 1, round(begin / time.step_s * BAR))
            width = max(1, min(BAR - first, round(duration / time.step_s * BAR)))
            bar = page.draw(STATES, width)[0], STYLES[role]
            blank = " " * (BAR - first - width)
            page.line(f"  {phase:<9}{role:<10} ", " " * first, bar, blank, f"  {seconds(duration)}")


def _calls(page: Page, plan: Plan) -> None:
    """Print the remote calls, each with its share of the time limit."""
    page.heading(
        "Calls",
        (f"   a call, planned time x {SAFETY:g}, must end within its time limit", ""),
    )
    for call in (call for call in plan.calls if call.seconds >= SHOWN_CALL_S):
        limit = f"of {call.limit_s:,.0f} s"
        times = f"{call.count:>4} x " if call.count > 1 else " " * 7
        page.line(
            f"  {call.phase:<11}{call.role:<10}{times}{call.what:<26}{seconds(call.seconds):>8} ",
            (f"{limit:>11}", "" if call.ends else "bold red"),
        )


def _cost(page: Page, plan: Plan) -> None:
    if not math.isfinite(plan.time.step_s):
        return
    page.heading("Cost")
    hours = plan.gpu_hours_per_1000()
    page.line(
        f"  per 1000 completions: {hours:.3g} GPU-hours, {dollars(hours * plan.price)}"
        f"   ({plan.work.sequences} per step, {plan.work.sequences / plan.time.step_s:.3g}/s)"
    )
    if (total := plan.total_gpu_hours) is not None and plan.run_s is not None:
        page.line(
            f"  the run: {plan.work.steps} steps, {seconds(plan.run_s)}, "
            f"{total:,.0f} GPU-hours, {dollars(total * plan.price)}"
        )
        page.line(f"    {_shares(plan)}")
    else:
        page.line("  the run: unknown, as it depends on the size of the dataset; give --rows")
    if plan.work.sampled and plan.synchronous.step_s != plan.one_ahead.step_s:
        synchronous, ahead = seconds(plan.synchronous.step_s), seconds(plan.one_ahead.step_s)
        page.line(f"  max_staleness 0: {synchronous} per step;  1: {ahead}")
        page.line(f"  time-sharing all GPUs (colocated; not supported): {seconds(plan.colocated.step_s)}")


def _shares(plan: Plan) -> str:
    """Return the parts of the run's time besides its steps."""
    parts = [f"with {seconds(plan.load_s)} of loading"]
    if plan.evaluation is not None and plan.work.steps is not None:
        count = num_evaluations(plan.config, plan.work.steps)
        parts.append(f"{count} evaluations of {seconds(plan.evaluation.seconds)}")
    return ", ".join(parts)


def _disk(page: Page, plan: Plan) -> None:
    one, peak = checkpoint_bytes(plan.config, plan.shapes), disk_bytes(plan.config, plan.shapes)
    page.heading("Disk, and the end of a run")
    page.line(f"  a checkpoint: {gigabytes(one)}, {interval_text(plan.config, plan.time.step_s)}")
    initial = ", and the learners' initial state" if plan.config.rounds.policy == "base" else ""
    keep = f"checkpoint.keep {plan.config.checkpoint.keep}, and one being written"
    models = ", each with its best round's model" if plan.config.best_round_by is not None else ""
    page.line(f"  peak: {gigabytes(peak)} ({keep}{models}{initial})")
    stop = stop_time(plan)
    parts = {
        "an update": stop.update_s,
        "what is sampled ahead": stop.ahead_s,
        "an evaluation": stop.evaluate_s,
        "a checkpoint": stop.checkpoint_s,
        "its upload": stop.upload_s,
    }
    taken = ", ".join(f"{name} {seconds(part)}" for name, part in parts.items() if part)
    page.line(f"  a stop: within {seconds(stop.seconds)}" + (f", {SAFETY:g} times the time of" if taken else ""))
    if taken:
        page.line(f"    {taken}")


def _shortages(page: Page, plan: Plan) -> None:
    if plan.has_room:
        return
    page.heading(("Why it does not fit, and the nearest change", "bold red"))
    for shortage in plan.shortages:
        page.line(f"  {shortage_text(shortage)}")
        page.line("    fix: ", (suggestion_text(shortage), "bold"))
    if plan.missing_gpus:
        page.line(f"  the roles need {plan.asked} GPUs, {plan.given} are available:")
        page.line(f"    {', '.join(f'{d.role} {d.num_gpus}' for d in plan.demands)}")
    if plan.fewest is not None:
        page.line(f"  the minimum with unchanged sequence lengths: {plan.fewest} {plan.gpu.name}")
    elif not plan.placements or plan.changes_training:
        page.line(f"  no number of {plan.gpu.name} is enough with unchanged sequence lengths")


def _late(page: Page, plan: Plan) -> None:
    if not plan.has_room or not plan.late:
        return
    page.heading(("Calls that may not end in time, and the change with which they do", "bold red"))
    for call in plan.late:
        page.line(f"  {late_text(call)}")
    page.line("    fix: ", (ending_text(plan.ending), "bold"))


def _placements(page: Page, plan: Plan) -> None:
    if not plan.placements:
        return
    page.heading(f"Placements that fit into {plan.asked if plan.given is None else plan.given} GPUs, fastest first")
    for placement in plan.placements[:SHOWN_PLACEMENTS]:
        hours = plan.gpu_hours_per_1000(placement)
        page.line(
            f"  {seconds(placement.time.step_s):>8} per step on {placement.num_gpus} GPUs, "
            f"{dollars(hours * plan.price)} per 1000"
        )
        overrides = as_overrides(placement.changes)
        for i in range(0, len(overrides), 2):
            page.line(("    " + " ".join(overrides[i : i + 2]), "dim"))


def _assumptions(page: Page, plan: Plan) -> None:
    work = plan.work
    page.heading("Assumptions")
    page.line(
        f"  mean lengths: prompt {work.prompt:.0f}, response {work.response:.0f} tokens "
        "(--prompt-tokens, --response-tokens)"
    )
    if plan.price:
        page.line(f"  ${plan.price:g} per GPU-hour (--price): {PRICES if plan.price == plan.gpu.price else 'as given'}")
    if any(shape.experts for shape in plan.shapes.values()):
        page.line("  times of mixtures of experts have not been checked against any published run")
    page.line("  time for checkpoints and failures is not included")
    page.line(f"  {NOT_MEASURED}")


def show_comparison(plans: Sequence[Plan], stream: TextIO | None = None) -> None:
    """Print a table of recipes, each in its best placement on the available GPUs."""
    page = Page(stream or sys.stdout)
    header = f"{'':<20}{'as written':>11}   {'best':>5}{'gen':>8}{'score':>8}{'learn':>8}{'step':>8}"
    page.line((header, "bold"))
    page.line((f"{'recipe':<20}{'GPUs fits':>11}   {'GPUs':>5}", "bold"))
    hours = {id(plan): plan.gpu_hours_per_1000(plan.best) for plan in plans if plan.placements or plan.fits}
    for plan in plans:
        time = plan.best.time
        shown = plan.placements or plan.fits  # otherwise no step is possible on these GPUs
        phases = [seconds(time.phase_s(p)) if p in time.busy and shown else "-" for p in PHASES_COMPARED]
        fits = ("yes", "green") if plan.fits else ("NO", "bold red")
        num_gpus = str(plan.best.num_gpus) if shown else "-"
        page.line(
            f"{plan.name[:19]:<20}{plan.asked:>6} ",
            (f"{fits[0]:>4}", fits[1]),
            f"   {num_gpus:>5}",
            "".join(f"{p:>8}" for p in (*phases, seconds(time.step_s) if shown else "-")),
        )
    page.heading("Per 1000 completions (a pair has two)")
    longest = max((h for h in hours.values() if math.isfinite(h)), default=1.0)
    for plan in plans:
        if not (plan.placements or plan.fits):
            page.line(f"{plan.name[:19]:<20} does not fit")
            continue
        own = hours[id(plan)]
        width = max(1, round(min(1.0, own / longest) * (BAR - 8)))
        cost = f"  {own:.3g} GPU-hours, {dollars(own * plan.price)}"
        page.line(f"{plan.name[:19]:<20} ", page.draw(STATES, width), cost)
    page.line()
    page.line("Cost only: how much each method learns from a completion is not compared.")
    page.line(NOT_MEASURED)
