"""Page docs/evidence/reliability.md, generated from the measurements."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import catalogue
from measurements import Piece

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "reliability.md"

ROWS = {
    "T1 grpo": "killed before every write, fsync, rename and removal of a GRPO run, and in the middle of every write",
    "T1 grpo-ahead": "the same, GRPO whose engines sample a version ahead (`max_staleness: 1`)",
    "T1 ppo": "the same, PPO with its critic",
    "T1 iterative-dpo": "the same, iterative DPO with a reference refresh every round",
    "T1 iterative-dpo-updates": "the same, iterative DPO with checkpoints within its rounds",
    "T2 driver grpo": "the one process of a GRPO run killed at a random moment",
    "T2 driver grpo-ahead": "the same, GRPO a version ahead",
    "T2 driver ppo": "the same, PPO",
    "T2 driver iterative-dpo": "the same, iterative DPO",
    "T2 driver iterative-dpo-updates": "the same, iterative DPO with checkpoints within its rounds",
    "T4": "power cut at a random operation: what was not fsynced is lost, bytes and names",
    "T5": "disk full after every 4 KiB of the whole run",
    "T7 checkpoint": "one bit flipped, or the end cut off, in a file of a checkpoint: refused",
    "T7 ledger": "the same in the ledger: refused, or read up to the damage and no further",
    "T8": "one of two engines keeps the old version, takes a half of it or fails at it; or the reference keeps the old "
    "one: no batch is learned from that was sampled or compared by another version",
    "T2 grpo": "real Ray: driver, rank of the learner, engine, reference or reward worker killed at a random moment",
    "T2 ppo": "the same, PPO with its critic",
    "T2 iterative-dpo": "the same, iterative DPO with a reference refresh every round",
    "T2 real engines": "real Ray, vLLM and DeepSpeed, by `rlhf run` and `rlhf resume`: driver, learner, engine or "
    "reward worker of a GRPO run killed at a random moment",
    "T10": "real Ray: a random process stopped (SIGSTOP) at a random moment: a typed error names it",
    "T17": "canaries as the token of Ray, wandb and the hub, in a real run and a real job: in no file of the run, log, "
    "checkpoint, command line, runtime environment or metadata (a trial is a place)",
    "T18": "programs that try to leave the sandbox of the code reward, and verdicts that they forge: blocked",
    "T19": "requests without a token to every port that a run and a job server open: refused, but for three of Ray's "
    "exporters for Prometheus on the loopback, which have no switch (`SECURITY.md`)",
}
"""Descriptions of the figures, in the order of the page."""


def write(measured: Sequence[Piece], kills: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """Write the page. Return its text, and whether any trial failed."""
    measured = [*measured, *map(_piece, kills)]
    redone = [steps for p in measured for steps in p.redone]
    failures = [f"- {p.figure}: {why}" for p in measured for why in p.failures]
    text = "\n".join(
        [
            HEAD,
            "| | what happens | good | failure rate (95 %) | command | machine | wall time | date |",
            "|---|---|--:|--:|---|---|--:|---|",
            *(_row(name, [p for p in measured if p.figure == name]) for name in ROWS),
            "",
            "T6: in every run arithmetic on the ledger found no step lost and none learned from twice. T9, "
            f"steps done again after a fault: {_spread(redone)}.",
            "",
            *_hangs([value for p in measured if p.figure == "T10" for value in p.values]),
            *_roles(kills),
            *(["Failures:", "", *failures] if failures else ["No failure."]),
            "",
            TAIL,
            catalogue.table(),
        ]
    )
    PAGE.write_text(text)
    return text, bool(failures)


def _piece(kill: dict[str, Any]) -> Piece:
    """Convert a kill to a piece. The kill counts as failed when its run failed."""
    real = kill["figure"] == "T2 real engines"
    return Piece(
        figure=kill["figure"],
        command=f"python tests/faults/{'real_kills' if real else 'kills'}.py",
        trials=1,
        failures=(f"seed {kill['seed']}: {kill['wrong']}",) if kill["wrong"] else (),
        redone=(kill["redone"],),
        seconds=kill["seconds"],
        machine=kill["machine"],
        date=kill["date"],
    )


def _row(name: str, found: Sequence[Piece]) -> str:
    if not found:
        return f"| {name} | {ROWS[name]} | not measured | — | | | | |"
    trials, failed = sum(p.trials for p in found), sum(len(p.failures) for p in found)
    bound = f"< {1 - 0.05 ** (1 / trials):.1%}" if not failed else "—"
    commands = " ".join(f"`{c}`" for c in sorted({p.command.split(" --")[0] for p in found}))
    dates = sorted({p.date for p in found})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    machines = "; ".join(sorted({p.machine for p in found}))
    minutes = sum(p.seconds for p in found) / 60
    good = f"{trials - failed} of {trials}"
    return f"| {name} | {ROWS[name]} | {good} | {bound} | {commands} | {machines} | {minutes:.1f} min | {when} |"


def _spread(redone: Sequence[int]) -> str:
    if not redone:
        return "not measured"
    return f"median {statistics.median(redone):g}, at most {max(redone)}, over {len(redone)} faults"


def _hangs(seconds: Sequence[float]) -> list[str]:
    if not seconds:
        return []
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    told = f"median {statistics.median(ordered):.1f} s, p99 {p99:.1f} s, over {len(ordered)}"
    return [f"T10, from SIGSTOP to the typed error, with a deadline of 10 s: {told}.", ""]


def _roles(kills: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of the kills on real Ray by role, and how many were repaired in place."""
    if not kills:
        return []
    figures = list(dict.fromkeys(kill["figure"] for kill in kills))
    counts = Counter((kill["role"], kill["figure"]) for kill in kills)
    in_place = Counter(kill["role"] for kill in kills if kill["went_on"] == "in place")
    lines = [
        f"| {role} | {' | '.join(str(counts[role, figure]) for figure in figures)} | {in_place[role]} |"
        for role in sorted({kill["role"] for kill in kills})
    ]
    head = f"| killed | {' | '.join(figures)} | of them healed in place |"
    return [
        "Kills on real Ray by role; what was not healed in place was resumed by the next attempt. Each is a line of",
        "`tests/faults/measured/kills.jsonl`, with its seed.",
        "",
        head,
        "|---|" + "--:|" * (len(figures) + 1),
        *lines,
        "",
    ]


HEAD = """# Reliability, measured

By `make test-faults`, or in pieces by the commands in the table; the pieces are `tests/faults/measured/`.

A trial is a run in a process that is really killed (SIGKILL), stopped or starved, and resumed until it ends. It counts
as good when the final weights are equal to the bit and every row of the metrics is equal to those of the uninterrupted
run, and the ledger knows of every step once. No failure in n trials bounds the failure rate, at 95 %,
by 1 − 0.05^(1/n), which is about 3/n.
"""

TAIL = """## What this is and is not

The driver, loop, ledger, checkpoints, recorder, learner and losses are the product's in every trial. T1, T2 driver,
T4, T5, T7 and T8 play in one process with stand-ins that are deterministic to the bit (`tests/faults/cpu_run.py`):
torch for DeepSpeed, a sampler with a seed per completion for vLLM, direct calls for Ray. T2 and T10 play on a real Ray
cluster whose actors hold the same stand-ins, two ranks of a learner in a gloo group and two engines among them; Ray
starts its workers by forking a process that has its imports done (`orchestrator/cluster/fork_server.py`), and watches
and buries them as any other. A run there is killed up to ten times, and a kill is good when the whole run is. "T2 real
engines" has no stand-in at all: on one machine and version its engines repeat themselves to the bit; on a GPU they are
not promised to. Its first series found that `rlhf resume` refused a run killed before its first checkpoint (mended),
and that after a driver's death two agents of Ray itself may try for a minute to tell their dead head: a run that leaves
nothing behind leaves nothing after 90 s (other lives: 30 s).

The machine had other work nearly all the time, at a load of about ten on two cores: wall times say little. T5, T7, T18,
"T2 real engines" and "T2 driver" (but for GRPO) were measured on this code, T17 and T19 just before its last fixes; T1,
T2 on real Ray, T4, T8 and T10 before drivers were fenced off from each other, weights had checksums and engines left
out what kills them. `make test` does a sample of each on every change.

The watch of T1, T4 and T5 is on Python's `os`; what a library writes by itself (weights, samples for people) is seen
when it is fsynced or renamed. A power cut is a model of a disk, not a disk. Nothing here has run on a GPU, on several
machines or on Kubernetes.

T12, bad input, is [a page of its own](bad_input.md), and so is T13, [fuzzing](fuzzing.md).

## The catalogue of faults

"automated": a test injects it. "simulated": a test injects its effect on the product, not the fault itself. "missing":
no test yet. "needs hardware": it cannot be injected on one machine without a GPU or Kubernetes.
"""
