"""Do the alarms ring when something is wrong, and only then? Whole runs, some with a planted fault.

    python -m benchmarks.alarms                     (`make alarms`; about 10 minutes on 2 cores)
    python -m benchmarks.alarms --seconds 240       stops after that; called again it goes on with what is missing
    python -m benchmarks.alarms --anew kl_budget    measures this case again

Every run is the product's driver, loop, ledger, learner, losses and alarms in one process, with the stand-ins of
tests/faults/cpu_run.py for vLLM, DeepSpeed and Ray: a transformer of one layer on the letters a to h, seconds instead
of days. Each seed has its own model, prompts, pairs and samples. A planted case is right when its alarm rang; a healthy
one when none did. Written: benchmarks/results/alarms.json with every run, docs/alarms.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "workers"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

import cpu_run
import numpy as np
import torch

from benchmarks.machine import description
from orchestrator.cluster.local import LocalCluster
from orchestrator.config import RunConfig
from orchestrator.driver.driver import Attempt
from orchestrator.errors import Alarmed
from orchestrator.rundir.directory import RunDirectory
from orchestrator.signals import StopRequest
from workers.config import ModelConfig
from workers.engines import hf_models
from workers.engines.base import Request, Response
from workers.learner import Learner
from workers.types import Finish, StepStats
from workers.weights import Manifest

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "alarms.json"
PAGE = ROOT / "docs" / "alarms.md"
BEGIN, END = "<!-- tables: make alarms -->", "<!-- end of the tables -->"
SEEDS = range(10)
LETTERS = cpu_run.ALPHABET[:-1]


# ------------------------------------------------------------------------------------------------ the stand-ins


class Sampler(cpu_run.TorchSampler):
    """All requests at once: the prompts here have one length. `deaf_from`: from this version on it takes no weights."""

    deaf_from: int | None = None

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
        for place in range(max_tokens):
            logits = self._model(tokens, use_cache=False).logits[:, -1]
            told = (logits / temperature if temperature else logits).log_softmax(-1)
            below = told.exp().cumsum(-1) < draws[:, place, None]  # the inverse of the distribution function
            picked = told.argmax(-1) if not temperature else below.sum(-1).clamp(max=told.shape[-1] - 1)
            for i, token in enumerate(picked.tolist()):
                if not ended[i]:
                    chosen[i].append(token)
                    logprobs[i].append(float(told[i, token]))
                    ended[i] = token in stop_token_ids
            if all(ended):
                break
            tokens = torch.cat([tokens, picked[:, None]], 1)
        return [
            Response(np.asarray(c, np.int32), np.asarray(p, np.float32), Finish.stop if e else Finish.length)
            for c, p, e in zip(chosen, logprobs, ended, strict=True)
        ]

    def receive(self, manifest: Manifest, version: int, rank_offset: int = 1) -> None:
        if self.deaf_from is None or version < self.deaf_from:
            super().receive(manifest, version, rank_offset)
        self.version = version


def _uniform(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def exploding_from(step: int) -> Callable[..., Learner]:
    """A learner whose gradients are a million times too large in `step` (from 1) and after it."""

    def learner(**arguments: Any) -> Learner:
        made = cpu_run.learner(**arguments)
        engine: Any = made._engine
        sound_step, sound_forward, factor = made.step, engine.forward, 1.0

        def scaled_step(at: int, *scored: Any, **further: Any) -> StepStats:
            nonlocal factor
            factor = 1e6 if at + 1 >= step else 1.0
            return sound_step(at, *scored, **further)

        def forward(*asked: Any) -> Any:
            outputs, entropy = sound_forward(*asked)
            outputs.register_hook(lambda gradient: gradient * factor)
            return outputs, entropy

        made.step, engine.forward = scaled_step, forward  # type: ignore[method-assign]
        return made

    return learner


def _cluster(case: Case) -> Callable[..., LocalCluster]:
    class Engine(Sampler):
        pass

    Engine.deaf_from = case.deaf_from

    class Rollout(cpu_run.TorchRollout):
        def _start(self, model: ModelConfig, max_model_len: int, *, seed: int, cuda: bool) -> Any:
            return Engine(str(model.path))

    policy = cpu_run.learner if case.exploding_from is None else exploding_from(case.exploding_from)
    stand_ins = {"policy": policy, "critic": cpu_run.learner, "rollout": Rollout}
    return lambda *_, **__: LocalCluster(stand_ins)


# ------------------------------------------------------------------------------------------------ the cases


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A kind of run; `alarm` is what its planted fault should ring, None for a healthy one."""

    name: str
    alarm: str | None
    fault: str  # in words
    method: str
    algorithm: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=lambda: {"first_letter": 1.0})  # name -> weight
    pairs: Callable[[random.Random], tuple[str, str]] | None = None
    max_length: int = 8
    deaf_from: int | None = None
    exploding_from: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def ordered_pair(draw: random.Random) -> tuple[str, str]:
    """Rising letters are better than falling ones of the same length."""
    letters = "".join(sorted(draw.sample(LETTERS, draw.randint(3, 6))))
    return letters, letters[::-1]


def longer_pair(draw: random.Random) -> tuple[str, str]:
    """The longer one is better, whatever it says."""
    word = [draw.choice(LETTERS) for _ in range(8)]
    return "".join(word[: draw.randint(6, 8)]), "".join(word[: draw.randint(3, 4)])


def near_pair(draw: random.Random) -> tuple[str, str]:
    """Two answers of which hardly anything tells which is better."""
    word = [draw.choice(LETTERS) for _ in range(6)]
    other = list(word)
    other[draw.randrange(6)] = draw.choice(LETTERS)
    return "".join(word), "".join(other) if other != word else "".join(reversed(word))


SAMPLED = {"num_generations": 8, "max_steps": 40, "learning_rate": 3e-3}
GRPO = {"type": "grpo", "prompts_per_step": 8, "beta": 0.05, **SAMPLED}
PPO = {
    "type": "ppo",
    "prompts_per_step": 32,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "max_steps": 40,
    "learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "kl_coef": 0.05,
}
DPO = {"type": "dpo", "batch_size": 32, "max_steps": 40, "learning_rate": 2e-3}
ROUNDS = {"type": "dpo", "prompts_per_step": 32, "pairs_per_prompt": 2, "batch_size": 16, **SAMPLED, "max_steps": 8}
METHODS = {"GRPO": GRPO, "PPO": PPO, "offline DPO": DPO, "iterative DPO": ROUNDS}

CASES = (
    Case(name="healthy GRPO", alarm=None, fault="", method="GRPO"),
    Case(name="healthy PPO", alarm=None, fault="", method="PPO"),
    Case(name="healthy offline DPO", alarm=None, fault="", method="offline DPO", pairs=ordered_pair),
    Case(
        name="healthy iterative DPO",
        alarm=None,
        fault="",
        method="iterative DPO",
        changes={"reference": {"refresh": "every_round"}},
    ),
    Case(
        name="chosen_falling",
        alarm="chosen_falling",
        fault="learning rate × 15, β / 5, pairs that hardly differ",
        method="offline DPO",
        algorithm={"learning_rate": 3e-2, "beta": 0.02},
        pairs=near_pair,
    ),
    Case(
        name="kl_budget",
        alarm="kl_budget",
        fault="no KL coefficient to speak of, learning rate × 3; budget 6 nats",
        method="PPO",
        algorithm={"kl_coef": 1e-4, "learning_rate": 1e-2},
        changes={"alarms": {"kl_budget": {"max_kl": 6.0}}},
    ),
    Case(
        name="length_drift",
        alarm="length_drift",
        fault="a reward for every token, learning rate / 3",
        method="GRPO",
        algorithm={"beta": 0.0, "learning_rate": 1e-3},
        rewards={"length": 1.0},
        max_length=96,
    ),
    Case(
        name="pair_length_gap",
        alarm="pair_length_gap",
        fault="pairs in which the longer answer is chosen",
        method="offline DPO",
        pairs=longer_pair,
    ),
    Case(
        name="reward_hacking",
        alarm="reward_hacking",
        fault="a proxy that counts one letter; what it stands for is only looked at",
        method="GRPO",
        algorithm={"beta": 0.0},
        rewards={"letters_a": 1.0, "variety": 0.0},
    ),
    Case(
        name="repetition",
        alarm="repetition",
        fault="the same proxy, alone",
        method="PPO",
        algorithm={"kl_coef": 1e-4},
        rewards={"letters_a": 1.0},
    ),
    Case(
        name="entropy_collapse",
        alarm="entropy_collapse",
        fault="a reward of noise, no KL, learning rate × 30",
        method="GRPO",
        algorithm={"beta": 0.0, "learning_rate": 1e-1},
        rewards={"noise": 1.0},
    ),
    Case(
        name="no_signal",
        alarm="no_signal",
        fault="a reward that is always 0.5",
        method="GRPO",
        rewards={"constant": 1.0},
    ),
    Case(
        name="engine_gap",
        alarm="engine_gap",
        fault="the engine takes no weights after step 12",
        method="GRPO",
        deaf_from=12,
    ),
    Case(
        name="gradient_explosion",
        alarm="gradient_explosion",
        fault="gradients × 10⁶ after step 12",
        method="GRPO",
        exploding_from=13,
    ),
    Case(
        name="staleness",
        alarm="staleness",
        fault="max_staleness 6",
        method="GRPO",
        changes={"max_staleness": 6},
    ),
    Case(
        name="reference_saturation",
        alarm="reference_saturation",
        fault="rounds against a reference that is never refreshed, learning rate × 10, β / 10",
        method="iterative DPO",
        algorithm={"learning_rate": 3e-2, "beta": 0.01},
    ),
    Case(
        name="safety_gate",
        alarm="safety_gate",
        fault="the proxy, with a gate on something that it destroys",
        method="GRPO",
        algorithm={"beta": 0.0},
        rewards={"letters_a": 1.0, "without_a": 0.0},
        changes={"alarms": {"safety_gate": {"metrics": ["eval/rewards/without_a/mean"]}}},
    ),
)


# ------------------------------------------------------------------------------------------------ running one


def rows_of(case: Case, seed: int, house: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One run: its rows of metrics, and its exit.json."""
    settings = config_of(case, seed, house)
    directory = RunDirectory.create(settings, "")
    with StopRequest() as stop, contextlib.suppress(Alarmed):  # the gate is shut
        Attempt(settings, directory, stop, start_cluster=_cluster(case)).run()
    rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    return rows, directory.read_exit() or {}


def config_of(case: Case, seed: int, house: Path) -> RunConfig:
    """The model and data of `seed`, written to `house`, and the recipe that names them."""
    draw = random.Random(seed)
    tokenizer = hf_models.character_tokenizer(cpu_run.ALPHABET)
    hf_models.create_model(house / "model", {**cpu_run.SHAPE, "max_position_embeddings": 128}, tokenizer, seed=seed)
    prompts = [f"{a}{b}>" for a in LETTERS for b in LETTERS]
    draw.shuffle(prompts)
    data: dict[str, str] = {}
    if case.pairs is None:
        _write(house / "prompts.jsonl", [{"prompt": p} for p in prompts[:40]])
        _write(house / "held-out.jsonl", [{"prompt": p} for p in prompts[40:]])
        data = {"prompts": str(house / "prompts.jsonl"), "eval_prompts": str(house / "held-out.jsonl")}
    else:
        pairs = [case.pairs(draw) for _ in range(128)]
        _write(
            house / "pairs.jsonl",
            [{"prompt": draw.choice(prompts), "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs],
        )
        data = {"dataset": str(house / "pairs.jsonl")}
    functions = ROOT / "benchmarks" / "alarm_rewards.py"
    rewards = [
        {"type": "function", "function": f"{functions}:{name}", "weight": weight}
        for name, weight in (case.rewards.items() if case.pairs is None else ())
    ]
    algorithm = {**METHODS[case.method], **case.algorithm}
    whole = {
        "name": "run",
        "seed": seed,
        "output_dir": str(house),
        "model": {"path": str(house / "model"), "dtype": "float32"},
        "data": data,
        "reward": rewards,
        "rollout": {"max_prompt_length": 8, "max_completion_length": case.max_length},
        "algorithm": algorithm,
        "samples_per_step": 0,
        "evaluation": {"every": 10} if "eval_prompts" in data else {},
        "checkpoint": {"every": algorithm["max_steps"]},
        **case.changes,
    }
    return RunConfig.model_validate_json(json.dumps(whole))


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ------------------------------------------------------------------------------------------------ all of them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anew", nargs="*", default=[], choices=[case.name for case in CASES], metavar="CASE")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found = {name: runs for name, runs in found.items() if name not in wanted.anew}
    started = time.monotonic()
    for seed in SEEDS:
        for case in CASES:
            if str(seed) in found.get(case.name, {}) or time.monotonic() - started > wanted.seconds:
                continue
            found.setdefault(case.name, {})[str(seed)] = _measure(case, seed)
            RESULT.write_text(json.dumps(found, indent=1) + "\n")
    missing = sum(len(SEEDS) - len(found.get(case.name, {})) for case in CASES)
    print(f"{missing} runs are missing: call it again" if missing else f"all runs are in {RESULT}")
    write_page(found)


def _measure(case: Case, seed: int) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as house, contextlib.redirect_stdout(io.StringIO()):
        rows, ending = rows_of(case, seed, Path(house))
    alarms = {alarm["name"]: {"step": alarm["step"], "saw": alarm["saw"]} for alarm in reversed(ending["alarms"])}
    return {
        "alarms": dict(sorted(alarms.items())),  # the first time of each
        "cause": ending["cause"],
        "steps": rows[-1]["step"],
        "seconds": round(time.monotonic() - began, 1),
        "date": datetime.now(UTC).date().isoformat(),
    }


# ------------------------------------------------------------------------------------------------ the page


def write_page(found: Mapping[str, Any]) -> None:
    """The tables in docs/alarms.md, between their marks."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{_tables(found)}{END}{rest.split(END)[1]}")


def _tables(found: Mapping[str, Any]) -> str:
    measured = [case for case in CASES if case.name in found]
    lines = ["| alarm | planted fault | method | rang | at step, median (range) | others that rang, runs |"]
    lines += ["|---|---|---|--:|---|---|"]
    lines += [_planted(case, list(found[case.name].values())) for case in measured if case.alarm]
    lines += ["", "| healthy runs of | silent | what rang |", "|---|--:|---|"]
    lines += [_healthy(case, list(found[case.name].values())) for case in measured if not case.alarm]
    machine, runs = description(), [run for case in measured for run in found[case.name].values()]
    minutes, until = sum(run["seconds"] for run in runs) / 60, max(run["date"] for run in runs)
    where = f"{machine['cpu']}, {machine['cpu_cores']} cores shared with other work"
    lines += ["", f"{len(runs)} runs, {minutes:.0f} minutes on {where}, up to {until}, by `make alarms`."]
    return "\n".join([*lines, ""])


def _planted(case: Case, runs: Sequence[Mapping[str, Any]]) -> str:
    steps = sorted(run["alarms"][case.alarm]["step"] for run in runs if case.alarm in run["alarms"])
    last = max(run["steps"] for run in runs)
    when = f"{statistics.median(steps):g} ({steps[0]} – {steps[-1]}) of {last}" if steps else "never"
    others = Counter(name for run in runs for name in run["alarms"] if name != case.alarm)
    told = ", ".join(f"{name} {count}" for name, count in others.most_common())
    return f"| `{case.alarm}` | {case.fault} | {case.method} | {len(steps)} of {len(runs)} | {when} | {told} |"


def _healthy(case: Case, runs: Sequence[Mapping[str, Any]]) -> str:
    last_fired = Counter(name for run in runs for name in run["alarms"])
    told = ", ".join(f"{name} {count}" for name, count in last_fired.most_common())
    return f"| {case.method} | {sum(not run['alarms'] for run in runs)} of {len(runs)} | {told} |"


if __name__ == "__main__":
    main()
