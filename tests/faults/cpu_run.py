"""A whole run in one process, deterministic to the bit, with the product's driver, loop, ledger, learner and losses.

Three parts are replaced: DeepSpeed by torch, vLLM by a sampler based on transformers, and Ray by direct calls. A fork
of this process acts as a machine that can be killed at any moment. `fake_engines.py` puts the same engines into real
Ray actors.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch_engine import TorchEngine
from transformers import AutoModelForCausalLM

from orchestrator.cluster.base import Cluster
from orchestrator.cluster.local import LocalCluster
from orchestrator.config import RunConfig
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Record
from orchestrator.signals import StopRequest
from workers.config import AlgorithmConfig, Head, LearnerConfig, ModelConfig
from workers.engines.base import Request, Response
from workers.learner import Learner
from workers.rollout import Rollout
from workers.segment import Segment
from workers.types import Experience, Finish
from workers.weights import Manifest

ALPHABET = "abcdefgh>"
REWARD = Path(__file__).with_name("letter_reward.py")  # kept light: every start imports it in a new process
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
BLOCK = 4096
EXCLUDED_METRICS = ("timing/", "throughput/", "restarts/")  # metrics that depend on wall time or restarts
# A chunk has two prompts with four completions of up to 14 tokens: the four prompts of a step come in two chunks.
ROLLOUT = {"max_prompt_length": 8, "max_completion_length": 6, "tokens_per_chunk": 112}
TWO_ENGINES = {**ROLLOUT, "num_engines": 2, "tokens_per_chunk": 56}
SAMPLED = {"prompts_per_step": 4, "num_generations": 4, "max_steps": 3, "learning_rate": 1e-2}
PAIRS = {"per_prompt": 2, "truncated_chosen": True}  # few of the short samples end by themselves
MAX_STALENESS = {"grpo-ahead": 1}
# a checkpoint after each update of a round
EVERY_UPDATES = {"iterative-dpo-updates": 1, "iterative-dpo-rounds": 1, "iterative-dpo-mixed": 1}
HELD_OUT = ("iterative-dpo",)  # evaluated after every round: the model is that of the best one, the second of three
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"type": "grpo", "beta": 0.1, **SAMPLED},
    "grpo-ahead": {"type": "grpo", "beta": 0.1, **SAMPLED},
    "ppo": {"type": "ppo", "num_ppo_epochs": 2, "num_mini_batches": 2, **SAMPLED},
    "iterative-dpo": {"type": "dpo", "batch_size": 4, "pairs": PAIRS, **SAMPLED, "learning_rate": 0.1},
    "iterative-dpo-updates": {"type": "dpo", "batch_size": 2, "pairs": PAIRS, **SAMPLED},
    # All 16 prompts in each round, in eight chunks.
    "streamed-rounds": {"type": "dpo", "batch_size": 8, "pairs": PAIRS, **SAMPLED, "prompts_per_step": 16},
}
FURTHER: dict[str, dict[str, Any]] = {  # not in the published measurements
    "iterative-dpo-rounds": {"type": "dpo", "batch_size": 4, "pairs": PAIRS, **SAMPLED},
    "iterative-dpo-mixed": {"type": "dpo", "batch_size": 4, "pairs": PAIRS, **SAMPLED},
    # 16 prompts in six steps, the last of one prompt; few of the short samples end by themselves
    "generate": {"type": "generate", "prompts_per_step": 3, "num_generations": 4, "filters": {"truncated": "keep"}},
}
FURTHER["critique"] = {**FURTHER["generate"], "num_generations": 1, "rows": "critique"}
FURTHER["revision"] = {**FURTHER["generate"], "rows": "revision"}
ROUNDS = {
    "iterative-dpo-rounds": {
        "temperature": {"first": 0.8, "last": 1.2},
        "num_generations": [4, 6],
        "learning_rate": [1e-2, 2e-2],
        "beta": [0.1, 0.3],
        "prompts": "fixed",
        "policy": "base",
    },
    "iterative-dpo-mixed": {"mix": {"earlier_rounds": 1.0, "last": None, "dataset": 0.5}},
}
ASKED = {"critique": "answers.jsonl", "revision": "critiques.jsonl"}  # what they are about
CONSTITUTION = """
principles: [{name: order, critique: g, revision: h}, {name: letters, critique: gg, revision: hh}]
templates:
  critique: "{prompt}{answer}{critique_request}"
  revision: "{prompt}{answer}{critique}{revision_request}"
"""
MIXED = ("iterative-dpo-mixed",)  # with pairs of a dataset


def write_task(directory: Path) -> None:
    """Write the model and the prompts that `config` refers to."""
    from configs.quickstart.tiny import character_tokenizer, create_model  # actors import this file without `configs`

    create_model(directory / "model", SHAPE, character_tokenizer(ALPHABET), seed=0)
    rows = [{"prompt": f"{a}{b}>"} for a in ALPHABET[:4] for b in ALPHABET[:4]]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"{a}>", "chosen": "aa", "rejected": "bcd"} for a in ALPHABET[:8]]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    held_out = [{"prompt": f"{a}{b}>"} for a in ALPHABET[4:8] for b in ALPHABET[4:6]]
    (directory / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    write_answers(directory)


def write_answers(directory: Path) -> None:
    """Write answers, critiques of them, and the constitution that the critiques go by."""
    (directory / "constitution.yaml").write_text(CONSTITUTION)
    prompts = [f"{a}{b}>" for a in ALPHABET[:4] for b in ALPHABET[:4]]
    answers = [{"prompt": prompt, "completion": prompt[1::-1]} for prompt in prompts]
    (directory / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    critiques = [
        {"prompt": prompt, "criticised": prompt[1], "critique": prompt[0], "principle": "order"} for prompt in prompts
    ]
    (directory / "critiques.jsonl").write_text("".join(json.dumps(row) + "\n" for row in critiques))


def config(task: Path, output: Path, algorithm: str, /, **changes: Any) -> RunConfig:
    held_out = {"eval_prompts": str(task / "heldout.jsonl")} if algorithm in HELD_OUT else {}
    mixed = {"dataset": str(task / "pairs.jsonl")} if algorithm in MIXED else {}
    constitution = {"constitution": str(task / "constitution.yaml")} if algorithm in ASKED else {}
    whole = {
        "name": "run",
        "output_dir": str(output),
        "model": {"path": str(task / "model"), "dtype": "float32"},
        "data": {"prompts": str(task / ASKED.get(algorithm, "prompts.jsonl")), **held_out, **mixed},
        "seed": 1 if held_out else 0,
        "evaluation": {"every": 1 if held_out else None},
        "reward": [{"type": "function", "function": f"{REWARD}:letters_a"}],
        "rollout": ROLLOUT,
        "algorithm": {**(ALGORITHMS | FURTHER)[algorithm], **constitution},
        "rounds": ROUNDS.get(algorithm, {}),
        "reference": {"refresh": _refresh(algorithm)},
        "checkpoint": {"every": 1},
        "max_staleness": MAX_STALENESS.get(algorithm, 0),
        **changes,
    }
    return RunConfig.model_validate_json(json.dumps(whole))


def _refresh(algorithm: str) -> str:
    if algorithm == "iterative-dpo-rounds":
        return "ema"
    return "every_round" if algorithm.startswith(("iterative-dpo", "streamed")) else "never"


def local_cluster(*_: Any, **__: Any) -> LocalCluster:
    return LocalCluster(STARTS)


def run(settings: RunConfig, start_cluster: Callable[..., Cluster] = local_cluster) -> None:
    """Start or resume a run, from the state of its directory, and run it to the end."""
    from orchestrator.driver.attempt import Attempt  # imports Ray: too early where an actor imports this file

    torch.set_num_threads(1)
    directory = RunDirectory.create(settings, "")
    if directory.is_complete:
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), StopRequest() as stop:
        Attempt(settings, directory, stop, start_cluster=start_cluster).run()


def outcome(directory: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the SHA-256 of a run's weights, or of the files of its data set, and its metrics without those that depend
    on wall time or restarts."""
    data_set, model = sorted((directory / "data").glob("*.parquet")), directory / "model" / "model.safetensors"
    written = hashlib.sha256(b"".join(path.read_bytes() for path in data_set or [model])).hexdigest()
    return written, [
        {k: v for k, v in row.items() if not any(p in k for p in EXCLUDED_METRICS)} for row in rows(directory)
    ]


def rows(directory: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run so far, one row per step."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def made_again(records: Sequence[Record]) -> list[str]:
    """Return the chunks that were recorded as sampled, or as scored, more than once without being recalled."""
    made = Counter(
        f"{r.fact} of step {r.step}, chunk {r.details['chunk']}"
        for r in records
        if "chunk" in r.details and not r.details["recalled"]
    )
    return [what for what, count in made.items() if count > 1]


def sampled_again(directory: Path) -> int:
    """Return how often a chunk of a run was sampled again, by one of its engines or by several."""
    calls = Counter((directory / "sampled.log").read_text().splitlines())
    again: dict[str, int] = {}
    for call, count in calls.items():
        chunk = call.rpartition(" ")[0]
        again[chunk] = max(again.get(chunk, 0), count - 1)
    return sum(again.values())


def learner(
    *,
    model: ModelConfig,
    config: LearnerConfig,
    algorithm: AlgorithmConfig,
    head: Head,
    rank: int,
    seed: int,
    max_steps: int,
    address: str = "",
    port: int = 0,
    **_: Any,
) -> Learner:
    """Build a learner in place of `workers.learner.join`."""
    torch.manual_seed(seed)
    if config.num_ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        rendezvous = f"tcp://{address}:{port}"
        dist.init_process_group("gloo", rendezvous, timedelta(minutes=30), config.num_ranks, rank)
    engine = SavedEngine(Path(str(model.path)), algorithm, head=head, rank=rank, world_size=config.num_ranks)
    return Learner(engine, model, config, algorithm, head=head, seed=seed, max_steps=max_steps)


class SavedEngine(TorchEngine):
    """Torch engine that writes its state block by block, so that a crash can fall between any two blocks.

    With several ranks, each holds a share of the loss and of the gradient; the shares are summed over all ranks.
    """

    def update(self, learning_rate: float) -> float:
        parameters = [p for p in self._trained() if p.grad is not None]
        if self.world_size > 1:
            flat = torch.cat([p.grad.flatten() for p in parameters])
            dist.all_reduce(flat)
            for p, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                p.grad.copy_(summed.view_as(p))
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._optimisation.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def sum(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(total)
        return float(total)

    def save(self, directory: Path, state: Mapping[str, Any]) -> list[Path]:
        buffer = io.BytesIO()
        whole = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "state": dict(state)}
        torch.save(whole, buffer)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"rank-{self.rank}.pt"
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        for start in range(0, len(buffer.getbuffer()), BLOCK):
            os.write(file, buffer.getbuffer()[start : start + BLOCK])
        os.close(file)
        return [path]

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


class TorchRollout(Rollout):
    """Rollout role with a sampler in plain torch. Each call for a chunk is noted in the run's `sampled.log`."""

    def generate(self, *arguments: Any, **more: Any) -> Experience:
        prefix = arguments[3] if len(arguments) > 3 else None
        if prefix is not None:
            with (Path(prefix).parents[2] / "sampled.log").open("a") as log:
                log.write(f"{Path(prefix).parent.name}/{Path(prefix).name} {self._index}\n")
        return super().generate(*arguments, **more)

    def _start(self, model: ModelConfig, max_model_len: int, *, seed: int, cuda: bool) -> Any:
        return TorchSampler(str(model.path))


class TorchSampler:
    """Replacement for `VllmEngine` with one seed per request, so that any completion can be reproduced exactly."""

    def __init__(self, path: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self._weights = dict(self._model.named_parameters(remove_duplicate=False))
        self.version = 0

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
        answers = []
        for request in requests:
            generator = torch.Generator().manual_seed(request.seed)
            tokens, logprobs = list(request.tokens), []
            finish = Finish.length
            for _ in range(max_tokens):
                scores = self._model(torch.tensor([tokens]), use_cache=False).logits[0, -1] / (temperature or 1.0)
                drawn_one = torch.multinomial(scores.softmax(-1), 1, generator=generator)
                token = int(drawn_one if temperature else scores.argmax())
                tokens.append(token)
                logprobs.append(float(scores.log_softmax(-1)[token]))
                if token in stop_token_ids:
                    finish = Finish.stop
                    break
            drawn = np.asarray(tokens[len(request.tokens) :], np.int32)
            answers.append(Response(drawn, np.asarray(logprobs, np.float32), finish))
        return answers

    def receive(self, manifest: Manifest, version: int, rank_offset: int = 1) -> None:
        assert manifest.segment is not None
        with torch.no_grad():
            for name, tensor in Segment(manifest.segment).read(manifest.entries):
                self._weights[name].copy_(tensor)
        self.version = version


STARTS: dict[str, Callable[..., Any]] = {"policy": learner, "critic": learner, "rollout": TorchRollout}
"""Constructors by role, where they differ from those of the product."""
