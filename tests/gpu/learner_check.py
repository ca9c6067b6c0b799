"""One ZeRO rank of a learner against plain transformers and against the planner: loss, memory, speed and checkpoint."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from fakes import experience
from gpu import process
from gpu.device import gpu_of, peak_bytes, reset_peak, synchronize
from gpu.figures import Figure

from configs.quickstart.tiny import character_tokenizer
from orchestrator.plan import models
from orchestrator.plan import time as plan_time
from orchestrator.plan.checkpoints import bytes_per_parameter
from orchestrator.plan.constants import DEFAULT
from orchestrator.plan.memory import Sharding, learner_memory
from workers.config import LearnerConfig, LoraConfig, ModelConfig, SftConfig
from workers.engines.deepspeed_engine import DeepSpeedEngine, join
from workers.learner import Learner

ALGORITHM = SftConfig(type="sft", learning_rate=1e-5)
STEPS, ROWS, PROMPT = 4, 4, 8  # steps that are timed but for the first; rows of a micro-batch; tokens of a prompt
MICRO_BATCHES = 2
LOSS_ERROR = {"bfloat16": 0.02, "float32": 1e-4}  # nats per token
OVER_PLAN = 1.1  # factor by which the peak may exceed the planner's figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """Parts of a learner that a check looks into."""

    learner: Learner
    engine: DeepSpeedEngine
    shape: models.ModelShape
    model: ModelConfig
    config: LearnerConfig
    device: str

    @property
    def name(self) -> str:
        adapters = ", LoRA" if self.model.lora else ""
        kept = ", checkpointing" if self.config.gradient_checkpointing else ""
        billions = f"{self.shape.num_params / 1e9:.1f}B"
        return f"learner {billions}{adapters}, {self.config.tokens_per_micro_batch} tokens{kept}"

    @property
    def adapters(self) -> int:
        lora = self.model.lora
        return self.shape.adapter_params(lora.r, lora.target_modules) if lora else 0


def row(rng: np.random.Generator, vocab: int, length: int) -> tuple[list[int], list[list[int]]]:
    return rng.integers(3, vocab, PROMPT).tolist(), [rng.integers(3, vocab, length - PROMPT).tolist()]


def write_model(directory: Path, shape: dict[str, Any], dtype: str, device: str, rows: list[Any]) -> float:
    """Write a random Llama and return the mean negative log-likelihood of `rows` under plain transformers."""
    tokenizer = character_tokenizer("abcdefgh")
    config = transformers.LlamaConfig(**shape, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    losses = []
    with torch.no_grad():
        for prompt, (completion,) in rows:
            logits = model(torch.tensor([prompt + completion], device=device)).logits[0, len(prompt) - 1 : -1]
            losses.append(-logits.float().log_softmax(-1)[range(len(completion)), completion])
    return float(torch.cat(losses).mean())


def learning(
    device: str,
    *,
    shape: dict[str, Any],
    dtype: str,
    tokens: int,
    settings: dict[str, Any],
    lora: dict[str, Any] | None = None,
    saves: bool = False,
) -> Iterator[Figure]:
    """Train a random model of `shape` on micro-batches of `tokens`. `settings`: fields of LearnerConfig."""
    rng = np.random.default_rng(0)
    vocab = shape["vocab_size"]
    small = [row(rng, vocab, tokens // (4 * ROWS)) for _ in range(ROWS)]
    with tempfile.TemporaryDirectory(prefix="rlhf-gpu-check-") as directory:
        path = Path(directory) / "model"
        plain = write_model(path, shape, dtype, device, small)
        if device != "cpu":
            torch.cuda.empty_cache()
        where = join(rank=0, world_size=1, address="127.0.0.1", port=process.free_port(), cuda=device != "cpu")
        model = ModelConfig(path=str(path), dtype=dtype, lora=LoraConfig(**lora) if lora else None)
        config = LearnerConfig(tokens_per_micro_batch=tokens, **settings)
        engine = DeepSpeedEngine(model, config, ALGORITHM, head="logprobs", device=where, seed=0)
        learner = Learner(engine, model, config, ALGORITHM, head="logprobs", seed=0, max_steps=99)
        shapes = models.read(path / "config.json")
        made = Learning(learner=learner, engine=engine, shape=shapes, model=model, config=config, device=device)
        yield from first_step(made, small, plain)
        rows = [row(rng, vocab, tokens // ROWS) for _ in range(ROWS * MICRO_BATCHES)]
        yield from steps(made, rows)
        yield from published(made)
        if saves:
            yield from saved(made, rows, Path(directory) / "checkpoint")
        learner.close()


def first_step(made: Learning, rows: list[Any], plain: float) -> Iterator[Figure]:
    wrong = [n for n, b in made.engine._module.named_buffers() if "inv_freq" in n and b.dtype != torch.float32]
    yield Figure(
        name=f"{made.name}: rotary buffers not in float32", measured=len(wrong), expected=0, at_most=0, unit=""
    )
    loss = made.learner.step(0, [experience(rows)], None, None, None).sums["loss"]
    allowed = LOSS_ERROR[made.model.dtype]
    yield Figure(
        name=f"{made.name}: loss",
        measured=loss,
        expected=plain,
        at_least=plain - allowed,
        at_most=plain + allowed,
        unit="nats",
    )


def steps(made: Learning, rows: list[Any]) -> Iterator[Figure]:
    """Time steps, and compare their speed and peak memory with the planner's."""
    seconds, tokens = [], sum(len(prompt) + len(completion) for prompt, (completion,) in rows)
    reset_peak(made.device)
    for step in range(1, STEPS):
        synchronize(made.device)
        started = time.perf_counter()
        made.learner.step(step, [experience(rows)], None, None, None)
        synchronize(made.device)
        seconds.append(time.perf_counter() - started)
    peak, fastest = peak_bytes(made.device), min(seconds)
    gpu, frozen = gpu_of(made.device), bool(made.adapters)
    context = tokens / len(rows)
    planned = plan_time.learning_s(
        made.shape, gpu, tokens=tokens, context=context, gpus=1, constants=DEFAULT, frozen=frozen
    )
    passes = plan_time.learning_passes(frozen=frozen)
    used = passes * tokens * plan_time.forward_flops(made.shape, context) / fastest / gpu.flops
    yield Figure(name=f"{made.name}: speed", measured=tokens / fastest, expected=tokens / planned, unit="tokens/s")
    yield Figure(name=f"{made.name}: MFU", measured=used, expected=DEFAULT.train_mfu, unit="")
    if made.device != "cpu":  # tensors on a CPU are not counted
        expected = planned_bytes(made) / 1e9
        yield Figure(
            name=f"{made.name}: peak memory",
            measured=peak / 1e9,
            expected=expected,
            at_most=OVER_PLAN * expected,
            unit="GB",
        )


def planned_bytes(made: Learning) -> float:
    """Return the planner's peak without its runtime, which torch does not count."""
    width = 2 if made.model.dtype == "bfloat16" else 4
    memory = learner_memory(
        made.shape,
        Sharding(ranks=1, zero_stage=made.config.zero_stage, weight_bytes=width),
        tokens=made.config.tokens_per_micro_batch,
        checkpointing=made.config.gradient_checkpointing,
        chunk=made.config.logprob_chunk_tokens,
        offload=made.config.offload_optimizer,
        adapters=made.adapters,
    )
    return memory.total - memory.part("runtime")


def published(made: Learning) -> Iterator[Figure]:
    """Gather all weights as a publication does."""
    started = time.perf_counter()
    sizes = {name: weight.numel() for name, weight in made.engine.weights()}
    synchronize(made.device)
    yield Figure(name=f"{made.name}: gathering all weights", measured=time.perf_counter() - started, unit="s")
    missing = made.shape.num_params - sum(sizes.values())
    yield Figure(
        name=f"{made.name}: weights not gathered", measured=missing, expected=0, at_least=0, at_most=0, unit=""
    )


def saved(made: Learning, rows: list[Any], directory: Path) -> Iterator[Figure]:
    """Save, train on, load, and compare the log-probabilities before and after."""
    before = made.learner.infer([experience(rows)]).values
    started = time.perf_counter()
    made.learner.save(str(directory), {})
    yield Figure(name=f"{made.name}: saving", measured=time.perf_counter() - started, unit="s")
    width = 2 if made.model.dtype == "bfloat16" else 4
    expected = bytes_per_parameter(zero_stage=made.config.zero_stage, weight_bytes=width)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    trained = made.adapters or made.shape.num_params
    yield Figure(name=f"{made.name}: checkpoint", measured=size / trained, expected=expected, unit="bytes/parameter")
    made.learner.step(STEPS, [experience(rows)], None, None, None)
    moved = float(np.abs(made.learner.infer([experience(rows)]).values - before).max())
    started = time.perf_counter()
    made.learner.load(str(directory))
    yield Figure(name=f"{made.name}: loading", measured=time.perf_counter() - started, unit="s")
    error = float(np.abs(made.learner.infer([experience(rows)]).values - before).max())
    yield Figure(name=f"{made.name}: moved by a step after saving", measured=moved, at_least=1e-6, unit="nats")
    yield Figure(name=f"{made.name}: difference after loading", measured=error, expected=0, at_most=0, unit="nats")


if __name__ == "__main__":
    process.main(globals())
