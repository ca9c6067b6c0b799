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
    "T1 grpo": "GRPO run killed before every write, fsync, rename and removal, and in the middle of every write",
    "T1 grpo-ahead": "as T1 grpo, with engines that sample one version ahead (`max_staleness: 1`)",
    "T1 ppo": "as T1 grpo, for PPO with its critic",
    "T1 iterative-dpo": "as T1 grpo, for iterative DPO with a reference refresh every round",
    "T1 iterative-dpo-updates": "as T1 grpo, for iterative DPO with checkpoints within its rounds",
    "T2 driver grpo": "GRPO run in a single process, killed at a random moment",
    "T2 driver grpo-ahead": "as T2 driver grpo, with engines that sample one version ahead",
    "T2 driver ppo": "as T2 driver grpo, for PPO",
    "T2 driver iterative-dpo": "as T2 driver grpo, for iterative DPO",
    "T2 driver iterative-dpo-updates": "as T2 driver grpo, for iterative DPO with checkpoints within its rounds",
    "T4": "power cut at a random operation: file contents and names that were not fsynced are lost",
    "T5": "disk that becomes full, at each multiple of 4 KiB that the run writes",
    "T7 checkpoint": "checkpoint file with one flipped bit or a missing end: the checkpoint is refused",
    "T7 ledger": "ledger with one flipped bit or a missing end: refused, or read only up to the damage",
    "T8": "one of two engines keeps the old version, applies half of the new one or fails while receiving it; or the "
    "reference keeps the old version: no batch that was sampled or scored by a wrong version is trained on",
    "T2 grpo": "real Ray: driver, learner rank, engine, reference or reward worker killed at a random moment",
    "T2 ppo": "as T2 grpo, for PPO with its critic",
    "T2 iterative-dpo": "as T2 grpo, for iterative DPO with a reference refresh every round",
    "T2 streamed-rounds": "as T2 iterative-dpo, with eight chunks in each round; for each kill at most one chunk is "
    "sampled again",
    "T2 real engines": "real Ray, vLLM and DeepSpeed, started by `rlhf run` and `rlhf resume`: driver, learner, engine "
    "or reward worker of a GRPO run killed at a random moment",
    "T10": "real Ray: random process stopped (SIGSTOP) at a random moment; a typed error names the process",
    "T17": "canaries as the tokens of Ray, wandb and the hub, in a real run and a real job: they appear in no file of "
    "the run, log, checkpoint, command line, runtime environment or metadata (one trial per place searched)",
    "T18": "programs that try to leave the sandbox of the code reward or to forge a verdict: blocked",
    "T19": "requests without a token to every port that a run and a job server open: refused, except by three of Ray's "
    "Prometheus exporters on the loopback address, which cannot be disabled (`SECURITY.md`)",
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
            "| figure | fault and check | trials passed | failure rate (95 %) | command | machine | wall time | date |",
            "|---|---|--:|--:|---|---|--:|---|",
            *(_row(name, [p for p in measured if p.figure == name]) for name in ROWS),
            "",
            "T6: the ledger of every run lists no step as lost and none as trained on twice.",
            "",
            f"T9, steps repeated after a fault: {_spread(redone)}.",
            "",
            *_hangs([value for p in measured if p.figure == "T10" for value in p.values]),
            *_roles(kills),
            *(["Failures:", "", *failures] if failures else ["No trial failed."]),
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
    spread = f"median {statistics.median(ordered):.1f} s, p99 {p99:.1f} s, over {len(ordered)} trials"
    return [f"T10, time from SIGSTOP to the typed error, with a heartbeat timeout of 10 s: {spread}.", ""]


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
    head = f"| role killed | {' | '.join(figures)} | restarted in place |"
    return [
        "Kills on real Ray, by role. After a kill without a restart in place, the next attempt resumed the run.",
        "Each kill is a line of `tests/faults/measured/kills.jsonl`, with its seed.",
        "",
        head,
        "|---|" + "--:|" * (len(figures) + 1),
        *lines,
        "",
    ]


HEAD = """# Reliability, measured

Measured by `make test-faults`, or in parts by the commands in the table. The recorded measurements are in
`tests/faults/measured/`.

A trial is a run in a process that is really killed (SIGKILL), stopped or deprived of disk space, and then resumed until
it ends. A trial passes if the final weights are bit-identical to those of the uninterrupted run, every row of the
metrics equals that of the uninterrupted run, and the ledger lists every step exactly once. If none of n trials fails,
the failure rate is below 1 − 0.05^(1/n) at 95 % confidence, which is about 3/n.
"""

TAIL = """## Scope and limits

The driver, loop, ledger, checkpoints, recorder, learner and losses are the product's in every trial.

- **T1, T2 driver, T4, T5, T7 and T8** run in one process, with stand-ins that are deterministic to the bit
  (`tests/faults/cpu_run.py`): torch replaces DeepSpeed, a sampler with a seed per completion replaces vLLM, and direct
  calls replace Ray.
- **T2 grpo, T2 ppo, T2 iterative-dpo, T2 streamed-rounds and T10** run on a real Ray cluster whose actors contain the
  same stand-ins, among them two learner ranks in a gloo group and two engines. Ray starts its workers by forking a
  process that has already imported their modules (`orchestrator/cluster/fork_server.py`), and monitors and removes them
  like any other worker. A T2 run is killed up to ten times; each of its kills counts as passed if the whole run passes.
- **T2 real engines** has no stand-ins. Its engines give bit-identical results on one machine and version; on a GPU they
  are not guaranteed to. The first series of this figure found that `rlhf resume` refused a run killed before its first
  checkpoint, which is fixed. It also found that after the death of a driver, two of Ray's own agents may try for a
  minute to reach their dead head. A run of this figure therefore has 90 s to end all its processes; the other figures
  allow 30 s.

The machine ran other work nearly all the time, at a load of about ten on two cores, so wall times are not
representative. Every row has the date of its measurement; the code has changed since. T1, T2 on real Ray, T4, T8 and
T10 are older than the fence between drivers, the checksums of weights and the quarantine of prompts that crash an
engine. `make test` runs a sample of each figure on every change.

T1, T4 and T5 intercept the calls of Python's `os` module. Files that a library writes by itself (weights, samples for
people) are intercepted only when they are fsynced or renamed. The power cut is simulated on a model of a disk. Nothing
here has run on a GPU, on several machines or on Kubernetes.

T12 is on the page [Bad input](bad_input.md), T13 on the page [Fuzzing](fuzzing.md).

## Catalogue of faults

- **automated**: a test injects the fault.
- **simulated**: a test injects only the effect of the fault on the product.
- **missing**: there is no test yet.
- **needs hardware**: the fault cannot be injected on one machine without a GPU or Kubernetes.
"""
