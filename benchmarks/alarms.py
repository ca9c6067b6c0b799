"""Measure whether alarms fire on planted faults, and stay silent on healthy runs.

    python -m benchmarks.alarms                     (`make alarms`; about 25 minutes on 2 cores)
    python -m benchmarks.alarms --seconds 240       stop after 240 s; the next call continues with the missing runs
    python -m benchmarks.alarms --anew kl_budget    measure this case again

Every run uses the real driver, loop, ledger, learner, losses and alarms in one process, with the fakes of
tests/faults/cpu_run.py for vLLM, DeepSpeed and Ray: a one-layer transformer on the letters a to h, which takes seconds.
Each seed has its own model, prompts, pairs and samples. A case with a fault is correct if its alarm fired, a healthy
case if none did. The cases are in alarm_cases.py, their rewards in alarm_rewards.py.

Output: benchmarks/results/alarms.json with every run, and the tables of docs/evidence/alarms.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "workers"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

import cpu_run
import numpy as np
import torch

from benchmarks.alarm_cases import CASES, LETTERS, METHODS, Case
from benchmarks.machine import description
from configs.quickstart.tiny import character_tokenizer, create_model
from orchestrator.cluster.local import LocalCluster
from orchestrator.config import RunConfig
from orchestrator.driver.attempt import Attempt
from orchestrator.errors import Alarmed
from orchestrator.rundir.directory import RunDirectory
from orchestrator.signals import StopRequest
from workers.config import ModelConfig
from workers.engines.base import Request, Response
from workers.learner import Learner
from workers.stats import StepStats
from workers.types import Finish
from workers.weights import Manifest

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "alarms.json"
PAGE = ROOT / "docs" / "evidence" / "alarms.md"
BEGIN, END = "<!-- tables: make alarms -->", "<!-- end of the tables -->"
SEEDS = range(10)
assert cpu_run.ALPHABET[:-1] == LETTERS


# ------------------------------------------------------------------------------------------------ fakes with faults


class Sampler(cpu_run.TorchSampler):
    """Sampler that generates for all requests in one batch, as all prompts have the same length."""

    stale_from: int | None = None  # version from which on new weights are ignored

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_tokens: int,
        temperature: float,
        stop_token_ids: Sequence[int],
        **_: Any,
    ) -> list[Response]:
        draws = torch.stack([_uniform(request.seed, max_tokens) for request in requests])  # [N, max_tokens]
        tokens = torch.tensor([list(request.tokens) for request in requests])
        chosen: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        ended = [False] * len(requests)
        for position in range(max_tokens):
            logits = self._model(tokens, use_cache=False).logits[:, -1]
            log_p = (logits / temperature if temperature else logits).log_softmax(-1)
            below = log_p.exp().cumsum(-1) < draws[:, position, None]  # inverse of the cumulative distribution
            picked = log_p.argmax(-1) if not temperature else below.sum(-1).clamp(max=log_p.shape[-1] - 1)
            for i, token in enumerate(picked.tolist()):
                if not ended[i]:
                    chosen[i].append(token)
                    logprobs[i].append(float(log_p[i, token]))
                    ended[i] = token in stop_token_ids
            if all(ended):
                break
            tokens = torch.cat([tokens, picked[:, None]], 1)
        return [
            Response(np.asarray(c, np.int32), np.asarray(p, np.float32), Finish.stop if e else Finish.length)
            for c, p, e in zip(chosen, logprobs, ended, strict=True)
        ]

    def receive(self, manifest: Manifest, version: int, rank_offset: int = 1) -> None:
        if self.stale_from is None or version < self.stale_from:
            super().receive(manifest, version, rank_offset)
        self.version = version


def _uniform(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def exploding_from(step: int) -> Callable[..., Learner]:
    """Return a constructor of learners whose gradients are 1e6 times too large from `step` (1-based) on."""

    def learner(**arguments: Any) -> Learner:
        made = cpu_run.learner(**arguments)
        engine: Any = made._engine
        real_step, real_forward, factor = made.step, engine.forward, 1.0

        def scaled_step(at: int, *scored: Any, **further: Any) -> StepStats:
            nonlocal factor
            factor = 1e6 if at + 1 >= step else 1.0
            return real_step(at, *scored, **further)

        def forward(*arguments: Any) -> Any:
            outputs, entropy = real_forward(*arguments)
            outputs.register_hook(lambda gradient: gradient * factor)
            return outputs, entropy

        made.step, engine.forward = scaled_step, forward  # type: ignore[method-assign]
        return made

    return learner


def _cluster(case: Case) -> Callable[..., LocalCluster]:
    class Engine(Sampler):
        pass

    Engine.stale_from = case.stale_from

    class Rollout(cpu_run.TorchRollout):
        def _start(self, model: ModelConfig, max_model_len: int, *, seed: int, cuda: bool) -> Any:
            return Engine(str(model.path))

    policy = cpu_run.learner if case.exploding_from is None else exploding_from(case.exploding_from)
    fakes = {"policy": policy, "critic": cpu_run.learner, "rollout": Rollout}
    return lambda *_, **__: LocalCluster(fakes)


# ------------------------------------------------------------------------------------------------ one run


def rows_of(case: Case, seed: int, root: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Execute one run below `root`; return its rows of metrics.jsonl and its exit.json."""
    settings = config_of(case, seed, root)
    directory = RunDirectory.create(settings, "")
    with StopRequest() as stop, contextlib.suppress(Alarmed):  # raised if the gate is closed
        Attempt(settings, directory, stop, start_cluster=_cluster(case)).run()
    rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    return rows, directory.read_exit() or {}


def config_of(case: Case, seed: int, root: Path) -> RunConfig:
    """Write the model and data of `seed` below `root`, and return the recipe that uses them."""
    draw = random.Random(seed)
    tokenizer = character_tokenizer(cpu_run.ALPHABET)
    create_model(root / "model", {**cpu_run.SHAPE, "max_position_embeddings": 128}, tokenizer, seed=seed)
    letters, held_out = (3, 64) if case.is_in_rounds else (2, 24)
    prompts = [f"{''.join(word)}>" for word in itertools.product(LETTERS, repeat=letters)]
    draw.shuffle(prompts)
    data: dict[str, str] = {}
    if case.pairs is None:
        _write(root / "prompts.jsonl", [{"prompt": p} for p in prompts[:-held_out]])
        _write(root / "held-out.jsonl", [{"prompt": p} for p in prompts[-held_out:]])
        data = {"prompts": str(root / "prompts.jsonl"), "eval_prompts": str(root / "held-out.jsonl")}
    else:
        pairs = [case.pairs(draw) for _ in range(128)]
        _write(
            root / "pairs.jsonl",
            [{"prompt": draw.choice(prompts), "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs],
        )
        data = {"dataset": str(root / "pairs.jsonl")}
    evaluation: dict[str, Any] = {"every": 1 if case.is_in_rounds else 10} if "eval_prompts" in data else {}
    if case.refusal is not None:
        data["eval_harmful"] = data["eval_prompts"]
        evaluation["refusal"] = {"type": "refusal", "patterns": [case.refusal]}
    functions = ROOT / "benchmarks" / "alarm_rewards.py"
    rewards = [
        {"type": "function", "function": f"{functions}:{name}", "weight": weight}
        for name, weight in (case.rewards.items() if case.pairs is None else ())
    ]
    algorithm = {**METHODS[case.method], **case.algorithm}
    recipe = {
        "name": "run",
        "seed": seed,
        "output_dir": str(root),
        "model": {"path": str(root / "model"), "dtype": "float32"},
        "data": data,
        "reward": rewards,
        "rollout": {"max_prompt_length": 8, "max_completion_length": case.max_length},
        "algorithm": algorithm,
        "samples_per_step": 0,
        "evaluation": evaluation,
        "checkpoint": {"every": algorithm["max_steps"]},
        **case.changes,
    }
    return RunConfig.model_validate_json(json.dumps(recipe))


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ------------------------------------------------------------------------------------------------ all runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anew", nargs="*", default=[], choices=[case.name for case in CASES], metavar="CASE")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results = {name: runs for name, runs in results.items() if name not in options.anew}
    started = time.monotonic()
    for seed in SEEDS:
        for case in CASES:
            if str(seed) in results.get(case.name, {}) or time.monotonic() - started > options.seconds:
                continue
            results.setdefault(case.name, {})[str(seed)] = _measure(case, seed)
            RESULT.write_text(json.dumps(results, indent=1) + "\n")
    missing = sum(len(SEEDS) - len(results.get(case.name, {})) for case in CASES)
    print(f"{missing} runs are missing: call this again" if missing else f"all runs are in {RESULT}")
    write_page(results)


def _measure(case: Case, seed: int) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        rows, ending = rows_of(case, seed, Path(root))
    alarms = {alarm["name"]: {"step": alarm["step"], "saw": alarm["saw"]} for alarm in reversed(ending["alarms"])}
    return {
        "alarms": dict(sorted(alarms.items())),  # the first time each alarm fired
        "cause": ending["cause"],
        "steps": rows[-1]["step"],
        "seconds": round(time.monotonic() - began, 1),
        "date": datetime.now(UTC).date().isoformat(),
    }


# ------------------------------------------------------------------------------------------------ the page


def write_page(results: Mapping[str, Any]) -> None:
    """Write the tables into docs/evidence/alarms.md, between their markers."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{_tables(results)}{END}{rest.split(END)[1]}")


def _tables(results: Mapping[str, Any]) -> str:
    measured = [case for case in CASES if case.name in results]
    lines = ["| alarm | planted fault | method | fired | at step, median (range) | other alarms that fired (runs) |"]
    lines += ["|---|---|---|--:|---|---|"]
    lines += [_planted(case, list(results[case.name].values())) for case in measured if case.alarm]
    lines += ["", "| healthy runs | without an alarm | alarms that fired |", "|---|--:|---|"]
    lines += [_healthy(case, list(results[case.name].values())) for case in measured if not case.alarm]
    machine, runs = description(), [run for case in measured for run in results[case.name].values()]
    minutes, until = sum(run["seconds"] for run in runs) / 60, max(run["date"] for run in runs)
    where = f"{machine['cpu']}, {machine['cpu_cores']} cores shared with other work"
    lines += ["", f"{len(runs)} runs in {minutes:.0f} minutes on {where}, by `make alarms`; the last on {until}."]
    return "\n".join([*lines, ""])


def _planted(case: Case, runs: Sequence[Mapping[str, Any]]) -> str:
    steps = sorted(run["alarms"][case.alarm]["step"] for run in runs if case.alarm in run["alarms"])
    last = max(run["steps"] for run in runs)
    when = f"{statistics.median(steps):g} ({steps[0]} – {steps[-1]}) of {last}" if steps else "never"
    others = Counter(name for run in runs for name in run["alarms"] if name != case.alarm)
    names = ", ".join(f"{name} {count}" for name, count in others.most_common())
    return f"| `{case.alarm}` | {case.fault} | {case.method} | {len(steps)} of {len(runs)} | {when} | {names} |"


def _healthy(case: Case, runs: Sequence[Mapping[str, Any]]) -> str:
    fired = Counter(name for run in runs for name in run["alarms"])
    names = ", ".join(f"{name} {count}" for name, count in fired.most_common())
    kind = f"{case.method}, {case.fault}" if case.fault else case.method
    return f"| {kind} | {sum(not run['alarms'] for run in runs)} of {len(runs)} | {names} |"


if __name__ == "__main__":
    main()
