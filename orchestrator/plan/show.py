"""A plan as a person reads it: memory, GPUs and a step as pictures, and what to change.

Rows are told apart by characters, colour only adds to them, and only on a terminal; pictures fit into 80 columns.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO, TypeAlias

from rich.console import Console
from rich.text import Text

from orchestrator.plan.advice import as_overrides
from orchestrator.plan.checkpoints import checkpoint_bytes, disk_bytes, how_often
from orchestrator.plan.format import dollars, gigabytes, seconds, shortage_text, suggestion_text
from orchestrator.plan.gangs import Demand
from orchestrator.plan.gpus import CPU_RANK, GPUS_PER_NODE, PRICES
from orchestrator.plan.memory import TIGHT
from orchestrator.plan.plan import NOT_MEASURED, Plan
from orchestrator.plan.step import PHASES, StepTime
from orchestrator.terminal import Forgiving

BAR = 40  # columns of a bar
SHOWN_GPUS = 256  # more are counted, not drawn
SHOWN_PLACEMENTS = 3
PHASES_COMPARED = ("generate", "score", "learn")


@dataclass(frozen=True, slots=True)
class Pattern:
    """How one kind of thing is drawn: with a terminal that lacks blocks, in plain characters."""

    block: str
    plain: str
    style: str


KEPT = Pattern("█", "#", "cyan")
PASSING = Pattern("▓", "%", "yellow")
CACHE = Pattern("▒", "+", "green")
FIXED = Pattern("░", "-", "magenta")
FREE = Pattern("·", ".", "dim")
OVER = Pattern("X", "X", "bold red")
BRUSHES = {
    "states": KEPT,
    "weights": KEPT,
    "teacher's head": KEPT,
    "gathered": PASSING,
    "activations": PASSING,
    "logits": PASSING,
    "stepping": PASSING,
    "keys and values": CACHE,
    "runtime": FIXED,
    "reserve": FIXED,
}
LEGEND = ((KEPT, "weights, optimiser"), (PASSING, "passing through"), (CACHE, "keys, values"), (FIXED, "runtime"))
MARKS = {"policy": "P", "critic": "C", "reference": "R", "teacher": "T", "rollout": "G", "reward": "W"}
STYLES = {
    "policy": "cyan",
    "critic": "blue",
    "reference": "yellow",
    "teacher": "yellow",
    "rollout": "green",
    "reward": "magenta",
    "all": "white",
}


Piece: TypeAlias = str | tuple[str, str]
"""Text, or text with a style."""


class Page:
    """Lines of text with styles, printed at the end."""

    def __init__(self, stream: TextIO) -> None:
        encoding = (getattr(stream, "encoding", None) or "ascii").lower()
        self._blocks = encoding.startswith("utf")
        self._console = Console(file=Forgiving(stream), highlight=False, soft_wrap=True)  # type: ignore[arg-type]

    def draw(self, brush: Pattern, count: int) -> tuple[str, str]:
        return (brush.block if self._blocks else brush.plain) * count, brush.style

    def line(self, *parts: Piece) -> None:
        self._console.print(Text.assemble(*parts))

    def rule(self, *parts: Piece) -> None:
        self.line()
        self.line(*((part, "bold") if isinstance(part, str) else part for part in parts))


def show_plan(plan: Plan, stream: TextIO | None = None) -> None:
    """The whole plan."""
    page = Page(stream or sys.stdout)
    _head(page, plan)
    if plan.gpu is not CPU_RANK:
        _memory(page, plan)
        _map(page, plan)
    if plan.fits:  # else they would be of another cluster than the one that was asked about
        _step(page, plan.time)
        _cost(page, plan)
        _disk(page, plan)
    _shortages(page, plan)
    _placements(page, plan)
    _assumed(page, plan)


def _head(page: Page, plan: Plan) -> None:
    verdict, style = ("FITS", "bold green") if plan.fits else ("DOES NOT FIT", "bold red")
    if plan.gpu is CPU_RANK:
        verdict, style = "times alone: memory of a CPU is not planned", ""
    there = plan.asked if plan.given is None else plan.given
    model = plan.shapes["policy"]
    page.line(
        (plan.name, "bold"),
        f"   {plan.config.algorithm.type} on {model.name} ({model.num_params / 1e9:.3g}B)   "
        f"{there} x {plan.gpu.name}"
        + (f" ({gigabytes(plan.gpu.memory_bytes)})" if plan.gpu is not CPU_RANK else "")
        + "   ",
        (verdict, style),
    )


def _memory(page: Page, plan: Plan) -> None:
    page.rule("Memory per GPU, at its fullest")
    scale = max([plan.gpu.memory_bytes, *(d.memory.total for d in plan.demands)])
    for demand in plan.demands:
        page.line(
            f"  {demand.role:<10}{demand.num_gpus:>4} GPUs  ",
            *_bar(page, demand, scale, plan.gpu.memory_bytes),
            f" {demand.memory.total / 1e9:>5.1f}  ",
            _verdict(demand),
        )
    legend: list[Piece] = [" " * 12]
    for brush, name in LEGEND:
        legend += [page.draw(brush, 1), f" {name}  "]
    page.line(*legend)
    if hosts := [d for d in plan.demands if d.memory.host_bytes]:
        told = ", ".join(f"{d.role} {gigabytes(d.memory.host_bytes)}" for d in hosts)
        page.line(f"  host memory per GPU: {told}")


def _verdict(demand: Demand) -> tuple[str, str]:
    if not demand.fits:
        return (f"{gigabytes(demand.short_bytes)} short" if demand.short_bytes else "over a node"), "bold red"
    filled = "keys and values" in dict(demand.memory.parts)  # an engine takes what it is allowed
    tight = demand.memory.total > TIGHT * demand.limit_bytes and not filled
    return ("tight", "yellow") if tight else ("fits", "green")


def _bar(page: Page, demand: Demand, scale: float, limit: float) -> list[tuple[str, str]]:
    """The parts to scale, the same kind together; free memory, or what is over, at the end."""
    ordered = [(brush, sum(s for n, s in demand.memory.parts if BRUSHES[n] is brush)) for brush, _ in LEGEND]
    pieces, drawn, filled = [], 0, 0.0
    end = round(min(limit, demand.memory.total) / scale * BAR)
    for brush, size in ordered:
        filled += size
        until = min(end, round(filled / scale * BAR))
        pieces.append(page.draw(brush, until - drawn))
        drawn = until
    over = round(demand.memory.total / scale * BAR) - drawn
    pieces.append(page.draw(OVER, over))
    pieces.append(page.draw(FREE, max(0, round(limit / scale * BAR) - drawn - over)))
    return [*pieces, (" " * (BAR - sum(len(text) for text, _ in pieces)), "")]


def _map(page: Page, plan: Plan) -> None:
    """Which GPU is whose, node after node, as a packing placement has them."""
    gpus = [demand.role for demand in plan.demands for _ in range(demand.num_gpus)]
    there = len(gpus) if plan.given is None else plan.given
    names = ", ".join(f"{MARKS[d.role]} {d.role}" for d in plan.demands)
    page.rule("GPUs", (f"   {names}; {GPUS_PER_NODE} per node", ""))
    if max(len(gpus), there) > SHOWN_GPUS:
        page.line(f"  {len(gpus)} asked for, {there} there, {-(-there // GPUS_PER_NODE)} nodes")
        return
    cells = [(MARKS[role], STYLES[role] if i < there else "bold red") for i, role in enumerate(gpus)]
    cells += [page.draw(FREE, 1)] * (there - len(gpus))
    nodes = [cells[i : i + GPUS_PER_NODE] for i in range(0, len(cells), GPUS_PER_NODE)]
    for i in range(0, len(nodes), 8):
        line: list[Piece] = ["  "]
        for node in nodes[i : i + 8]:
            line += [*node, " "]
        page.line(*line)
    if plan.too_many:
        page.line((f"  the last {plan.too_many} of them are not there", "bold red"))


def _step(page: Page, time: StepTime) -> None:
    page.rule(
        f"A step: {seconds(time.step_s)}",
        (", all roles side by side" if time.ahead else ", one phase after the other", ""),
    )
    if not math.isfinite(time.step_s):
        page.line("  it would never end: a role has no room")
        return
    start, publish = 0.0, time.phase_s("publish")
    for phase in (p for p in PHASES if p in time.busy):
        for role, took in time.busy[phase].items():
            begin = start
            if time.ahead:
                earlier = PHASES[: PHASES.index(phase)]
                begin = sum(time.busy.get(p, {}).get(role, 0.0) for p in earlier)
                begin = time.step_s - publish if phase == "publish" else begin
            first = min(BAR - 1, round(begin / time.step_s * BAR))
            width = max(1, min(BAR - first, round(took / time.step_s * BAR)))
            drawn = page.draw(KEPT, width)[0], STYLES[role]
            page.line(f"  {phase:<9}{role:<10} ", " " * first, drawn, " " * (BAR - first - width), f"  {seconds(took)}")
        start += time.phase_s(phase)


def _cost(page: Page, plan: Plan) -> None:
    if not math.isfinite(plan.time.step_s):
        return
    page.rule("Cost")
    hours = plan.gpu_hours_per_1000()
    page.line(
        f"  per 1000 completions: {hours:.3g} GPU-hours, {dollars(hours * plan.price)}"
        f"   ({plan.work.sequences} a step, {plan.work.sequences / plan.time.step_s:.3g}/s)"
    )
    if (total := plan.total_gpu_hours) is not None and plan.work.steps is not None:
        page.line(
            f"  the run: {plan.work.steps} steps, {seconds(plan.work.steps * plan.time.step_s)}, "
            f"{total:,.0f} GPU-hours, {dollars(total * plan.price)}"
        )
    else:
        page.line("  the run: by epochs of a dataset whose rows are not known here; give --rows")
    if plan.work.sampled and plan.in_step.step_s != plan.one_ahead.step_s:
        page.line(f"  max_staleness 0: {seconds(plan.in_step.step_s)} a step;  1: {seconds(plan.one_ahead.step_s)}")
        page.line(f"  taking turns on all GPUs, which is not done here: {seconds(plan.together.step_s)}")


def _disk(page: Page, plan: Plan) -> None:
    one, room = checkpoint_bytes(plan.config, plan.shapes), disk_bytes(plan.config, plan.shapes)
    page.rule("Disk")
    page.line(f"  a checkpoint: {gigabytes(one)}, {how_often(plan.config, plan.time.step_s)}")
    page.line(f"  checkpoint.keep {plan.config.checkpoint.keep}, and the next beside them: {gigabytes(room)}")


def _shortages(page: Page, plan: Plan) -> None:
    if plan.fits:
        return
    page.rule(("Why not, and the nearest change", "bold red"))
    for shortage in plan.shortages:
        page.line(f"  {shortage_text(shortage)}")
        page.line("    fix: ", (suggestion_text(shortage), "bold"))
    if plan.too_many:
        asked = ", ".join(f"{d.role} {d.num_gpus}" for d in plan.demands)
        page.line(f"  the roles ask for {plan.asked} GPUs, {plan.given} are there:")
        page.line(f"    {asked}")
    if plan.fewest is not None:
        page.line(f"  the fewest on which it fits without learning something else: {plan.fewest} {plan.gpu.name}")
    elif not plan.placements or plan.changes_learning:
        page.line(f"  no number of {plan.gpu.name} makes it fit without learning something else")


def _placements(page: Page, plan: Plan) -> None:
    if not plan.placements:
        return
    page.rule(f"Placements that fit into {plan.asked if plan.given is None else plan.given} GPUs, fastest first")
    for placement in plan.placements[:SHOWN_PLACEMENTS]:
        hours = plan.gpu_hours_per_1000(placement)
        page.line(
            f"  {seconds(placement.time.step_s):>8} a step on {placement.num_gpus} GPUs, "
            f"{dollars(hours * plan.price)} per 1000"
        )
        overrides = as_overrides(placement.changes)
        for i in range(0, len(overrides), 2):
            page.line(("    " + " ".join(overrides[i : i + 2]), "dim"))


def _assumed(page: Page, plan: Plan) -> None:
    work = plan.work
    page.rule("Taken to be so")
    page.line(f"  mean lengths: prompt {work.prompt:.0f}, response {work.response:.0f} tokens (--prompt-tokens, …)")
    if plan.price:
        page.line(f"  ${plan.price:g} per GPU-hour (--price): {PRICES if plan.price == plan.gpu.price else 'as given'}")
    if any(shape.experts for shape in plan.shapes.values()):
        page.line("  mixtures of experts: no published run stands behind their times")
    page.line("  the time of evaluation, checkpoints and failures is not counted")
    page.line(f"  {NOT_MEASURED}")


def show_comparison(plans: Sequence[Plan], stream: TextIO | None = None) -> None:
    """Recipes side by side, each in its best placement on the GPUs there are."""
    page = Page(stream or sys.stdout)
    heads = f"{'':<20}{'as written':>11}   {'best':>5}{'gen':>8}{'score':>8}{'learn':>8}{'step':>8}"
    page.line((heads, "bold"))
    page.line((f"{'recipe':<20}{'GPUs fits':>11}   {'GPUs':>5}", "bold"))
    hours = {id(plan): plan.gpu_hours_per_1000(plan.best) for plan in plans if plan.placements or plan.fits}
    for plan in plans:
        time = plan.best.time
        shown = plan.placements or plan.fits  # else it is no step on these GPUs
        phases = [seconds(time.phase_s(p)) if p in time.busy and shown else "-" for p in PHASES_COMPARED]
        fits = ("yes", "green") if plan.fits else ("NO", "bold red")
        there = str(plan.best.num_gpus) if shown else "-"
        page.line(
            f"{plan.name[:19]:<20}{plan.asked:>6} ",
            (f"{fits[0]:>4}", fits[1]),
            f"   {there:>5}",
            "".join(f"{p:>8}" for p in (*phases, seconds(time.step_s) if shown else "-")),
        )
    page.rule("Per 1000 completions (a pair has two)")
    most = max((h for h in hours.values() if math.isfinite(h)), default=1.0)
    for plan in plans:
        if not (plan.placements or plan.fits):
            page.line(f"{plan.name[:19]:<20} does not fit")
            continue
        some = hours[id(plan)]
        width = max(1, round(min(1.0, some / most) * (BAR - 8)))
        told = f"  {some:.3g} GPU-hours, {dollars(some * plan.price)}"
        page.line(
            f"{plan.name[:19]:<20} ",
            page.draw(KEPT, width),
            told,
        )
    page.line()
    page.line("What they learn from a completion is not compared here.")
    page.line(NOT_MEASURED)
