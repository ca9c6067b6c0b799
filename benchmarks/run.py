"""Compare our speed with TRL's own trainers, interleaved in one run: `python -m benchmarks.run` (or `make bench`).

    python -m benchmarks.run dpo grpo-letters --repeats 5 --cores 2

For every benchmark the workload is created once, and both workers are started once. Every contestant (one variant of a
side) does an unmeasured warm-up, equal work is checked, then the repeats alternate forwards and backwards (A B C,
C B A, …), so that each contestant has every other one before and after it. While one side works, the other waits on its
input. Only undisturbed rounds count: if other processes use more than `--max-foreign-cores` during a measurement, it is
repeated, at most twice, and then its round is dropped. Waiting threads spin: with one core occupied by another process,
TRL's steps were 10 to 50 times slower.

The first side is ours, the second TRL. All processes of a side share the same cores.

Results are written to `benchmarks/results/<name>.json` and `.md`. Exit code 1: a worker failed, or the sides did not do
equal work; 2: bad arguments; 3: the machine was too busy for enough rounds. In these cases nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.report import CHECKED_STEPS, Contestant, Repeat, differences, markdown, summary
from benchmarks.sides import ROOT, Worker, WorkerFailed, trl_python, workload_directory

HERE = Path(__file__).resolve().parent
MEASUREMENTS_TRIED, ROUNDS_TRIED = 3, 3
CPU_NOTE = (
    "This is the ratio of a small model on a CPU, not on a GPU: on a GPU TRL scores completion positions only, on a CPU"
    " every position of the padded rectangle, and the output layer has a far larger share of the arithmetic than in a"
    " large model."
)
BENCHMARKS: dict[str, dict[str, Any]] = {
    "dpo": {
        "kind": "dpo",
        "unit": "pair",
        "title": "DPO, 11M parameters, vocabulary 32,000, 8 pairs a step, float32",
        "steps": 2,
        "notes": [
            "Measured: forward, backward, reference log-probabilities, optimizer, metrics; `same, caches built`"
            " excludes building the cache of reference log-probabilities. Not measured: starting processes, loading,"
            " tokenising.",
            "The arithmetic limits the ratio: positions that pass the body and positions that pass the output layer,"
            " both in the table. A ratio beyond their quotient is due to overhead.",
            CPU_NOTE + " Expected on a GPU: 2.25 against padded rows, 1.33 against padding-free ones.",
        ],
    },
    "grpo-letters": {
        "kind": "grpo",
        "unit": "sample",
        "title": "GRPO, the quickstart's task, 1.65M parameters, 16 x 8 samples of up to 10 tokens a step, float32",
        "steps": 10,
        "notes": [
            "Measured: generation, reward, learning, metrics, and the transfer of new weights to the engine.",
            "With so small a model the benchmark measures the overhead per step of both sides.",
            CPU_NOTE,
        ],
    },
    "grpo-long": {
        "kind": "grpo",
        "unit": "sample",
        "title": "GRPO, 4.2M parameters, prompts of 64 and completions of 128 tokens, 4 x 8 samples a step, float32",
        "steps": 2,
        "notes": [
            "Measured: generation, reward, learning, metrics, and the transfer of new weights to the engine.",
            "Every completion has 128 tokens on both sides (the end token is forbidden), so there are no stragglers.",
            CPU_NOTE,
        ],
    },
    "grpo-mixed": {
        "kind": "grpo",
        "unit": "sample",
        "title": "GRPO, 4.2M parameters, prompts of 8 to 512 and completions of 1 to 192 tokens, 4 x 8 samples a step",
        "steps": 3,
        "notes": [
            "Measured: generation, reward, learning, metrics, and the transfer of new weights to the engine.",
            "Each side samples its own completions from the same distribution of lengths; the table has their tokens.",
            CPU_NOTE,
        ],
    },
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="benchmarks against TRL, interleaved in one run"
    )
    parser.add_argument("names", nargs="*", default=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps of each repeat (default: per benchmark)")
    parser.add_argument("--cores", type=int, default=2, help="processor cores of each side")
    parser.add_argument("--variants", default="", help="optional variants to add, such as default-bf16,best-bf16")
    parser.add_argument("--max-foreign-cores", type=float, default=0.3)
    parser.add_argument("--ours", default="benchmarks.ours_worker", help="module of our side's worker")
    parser.add_argument("--ours-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--trl-venv", type=Path, default=ROOT / ".venv-trl", help="created if missing")
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="models, data and logs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}: choose from {', '.join(BENCHMARKS)}")
    return options


class NotReported(Exception):
    """A benchmark has no result; the message gives the reason, `exit_code` the process's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Bench:
    """One benchmark with its two connected workers."""

    def __init__(self, name: str, workers: dict[str, Worker], workload: Path, options: argparse.Namespace) -> None:
        self.name, self.workers, self.options = name, workers, options
        self.kind = BENCHMARKS[name]["kind"]
        self.steps = options.steps or BENCHMARKS[name]["steps"]
        self.workload = workload
        available = json.loads((workload / "workload.json").read_text())["num_steps"]
        if self.steps > available:
            raise NotReported(f"{name} has data for {available} steps: use --steps {available} or fewer", exit_code=2)
        self.sides = {side: worker.ask("hello", cores=options.cores) for side, worker in workers.items()}
        wanted = set(filter(None, options.variants.split(",")))
        self.contestants = [
            Contestant(side=side, variant=variant, about=facts["about"], same_work=facts["same_work"])
            for side, hello in self.sides.items()
            for variant, facts in hello["variants"][self.kind].items()
            if not facts["optional"] or variant in wanted
        ]

    def ask(self, contestant: Contestant, steps: int, seed: int = 0, replay: bool = False) -> dict[str, Any]:
        fields: dict[str, Any] = {"workload": str(self.workload), "variant": contestant.variant, "steps": steps}
        if self.kind == "grpo":
            fields |= {"seed": seed, "replay": replay}
        return self.workers[contestant.side].ask(self.kind, **fields)

    def warm_up(self) -> dict[str, dict[str, Any]]:
        """Send one unmeasured request to each contestant; the answers also serve to check equal work.

        GRPO replays given completions for this check."""
        answers = {}
        for contestant in self.contestants:
            say(f"  warm-up {contestant.label}")
            if self.kind == "grpo":
                self.ask(contestant, steps=1)
            answers[contestant.label] = self.ask(contestant, min(self.steps, CHECKED_STEPS), replay=True)
        return answers

    def run(self) -> list[list[Repeat]]:
        """Return undisturbed rounds with one repeat per contestant: the requested number, or fewer if disturbed."""
        rounds: list[list[Repeat]] = []
        for index in range(ROUNDS_TRIED * self.options.repeats):
            order = self.contestants if index % 2 == 0 else self.contestants[::-1]
            measured = [self._measure(contestant, index) for contestant in order]
            if all(map(self._quiet, measured)):
                rounds.append(measured)
            if len(rounds) == self.options.repeats:
                break
        return rounds

    def _quiet(self, repeat: Repeat) -> bool:
        return bool(repeat.foreign_cores <= self.options.max_foreign_cores)

    def _measure(self, contestant: Contestant, index: int) -> Repeat:
        for _ in range(MEASUREMENTS_TRIED):
            repeat = self._measure_once(contestant, index)
            if self._quiet(repeat):
                break
        return repeat

    def _measure_once(self, contestant: Contestant, index: int) -> Repeat:
        """Measure one request. Both sides have the same prompts in each repeat, and its index as sampling seed."""
        pids = {"benchmark": os.getpid()} | {side: worker.pid for side, worker in self.workers.items()}
        begin, before = time.perf_counter(), {name: machine.cpu_seconds(pid) for name, pid in pids.items()}
        answer = self.ask(contestant, self.steps, seed=index)
        wall_s, after = time.perf_counter() - begin, {name: machine.cpu_seconds(pid) for name, pid in pids.items()}
        used_s = {name: after[name].tree_s - before[name].tree_s for name in pids}
        machine_s = after["benchmark"].machine_s - before["benchmark"].machine_s
        idle_s = sum(used_s[side] for side in self.workers if side != contestant.side)
        repeat = Repeat(
            index=index,
            label=contestant.label,
            answer=answer,
            foreign_cores=max(0.0, machine_s - used_s["benchmark"]) / wall_s,
            idle_side_cores=idle_s / wall_s,
        )
        say(f"  {index} {contestant.label}: {answer['train_s']:.2f} s, foreign load {repeat.foreign_cores:.2f} cores")
        return repeat


def unequal(kind: str, contestants: list[Contestant], answers: dict[str, dict[str, Any]]) -> list[str]:
    """Return the differences between contestants of equal work and TRL's `default` variant."""
    checked = [contestant for contestant in contestants if contestant.same_work]
    reference = [contestant for contestant in checked if contestant.variant == "default"][-1]
    expected = answers[reference.label]
    return [
        f"{contestant.label} against {reference.label}: {difference}"
        for contestant in checked
        for difference in differences(kind, expected, answers[contestant.label])
    ]


def bench(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one benchmark and return its result."""
    say(f"{name}: {BENCHMARKS[name]['title']}")
    options.work.mkdir(parents=True, exist_ok=True)
    modules = {
        "ours": (options.ours_python, options.ours),
        "trl": (trl_python(options.trl_venv), "benchmarks.trl_worker"),
    }
    workload = workload_directory(name, options.work)
    with contextlib.ExitStack() as stack:
        workers = {
            side: stack.enter_context(Worker(side, *module, log=options.work / f"{name}-{side}.log"))
            for side, module in modules.items()
        }
        this = Bench(name, workers, workload, options)
        checked = this.warm_up()
        if problems := unequal(this.kind, this.contestants, checked):
            raise NotReported("\n".join(["not equal work, so nothing is reported:", *problems]), exit_code=1)
        load_before = os.getloadavg()
        rounds = this.run()
    if len(rounds) < options.repeats:
        raise NotReported(
            f"{name}: other processes left only {len(rounds)} of {options.repeats} rounds undisturbed, so nothing is"
            " reported: run again on a quiet machine, or allow more with --max-foreign-cores",
            exit_code=3,
        )
    return _result(this, list(itertools.chain.from_iterable(rounds)), load_before, checked)


def _result(
    this: Bench, repeats: list[Repeat], load_before: tuple[float, ...], checked: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    options, facts = this.options, BENCHMARKS[this.name]
    return {
        "name": this.name,
        "title": facts["title"],
        "unit": facts["unit"],
        "notes": facts["notes"],
        "command": _command(options),
        "date": datetime.date.today().isoformat(),
        "machine": machine.description(),
        "cores": options.cores,
        "steps": this.steps,
        "max_foreign_cores": options.max_foreign_cores,
        "load_before": load_before,
        "load_after": os.getloadavg(),
        "equal_work": _equal_work(this, checked),
        "sides": {side: {key: hello[key] for key in ("versions", "cores")} for side, hello in this.sides.items()},
        "rows": summary(this.contestants, repeats),
        "checked": {label: {key: answer[key] for key in ("losses", "grad_norms")} for label, answer in checked.items()},
        "repeats": [asdict(repeat) for repeat in repeats],
    }


def _command(options: argparse.Namespace) -> str:
    """Return the command that repeats the benchmark, without options for paths."""
    defaults = parse([])
    changed = [
        f"--{k} {getattr(options, k)}"
        for k in ("repeats", "steps", "cores", "variants")
        if getattr(options, k) != getattr(defaults, k)
    ]
    return " ".join(["python -m benchmarks.run", *options.names, *changed])


def _equal_work(this: Bench, checked: dict[str, dict[str, Any]]) -> str:
    losses = {contestant.label: checked[contestant.label]["losses"] for contestant in this.contestants}
    where = "on the same given completions" if this.kind == "grpo" else "on the measured rows"
    shown = "; ".join(f"{label} " + ", ".join(f"{loss:.7g}" for loss in values) for label, values in losses.items())
    return (
        f"losses within 2e-5 and gradient norms within 1e-3 over the first {min(this.steps, CHECKED_STEPS)} steps"
        f" {where} ({shown})."
    )


def write(result: dict[str, Any], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{result['name']}.json").write_text(json.dumps(result, indent=1) + "\n")
    (directory / f"{result['name']}.md").write_text(markdown(result))


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # raises SystemExit, so that the workers are stopped too
    machine.use_cores(options.cores)
    exit_code = 0
    for name in options.names:
        try:
            result = bench(name, options)
        except (NotReported, WorkerFailed) as error:
            print(error, file=sys.stderr)
            exit_code = exit_code or getattr(error, "exit_code", 1)
            continue
        write(result, options.results)
        say("\n" + markdown(result))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
