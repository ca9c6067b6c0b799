"""A vLLM engine and a learner, each in a process of its own: they agree before and after weights are published.

With two GPUs weights are published by NCCL, as runs do. NCCL refuses two ranks on one GPU: there, and on a CPU, they
are published through shared memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from gpu import process
from gpu.figures import Figure

from workers.config import LearnerConfig, ModelConfig, RolloutConfig, SftConfig
from workers.types import Experience, Prompt, Sampling
from workers.weights import Manifest, Rendezvous, segment_path

ALPHABET = "abcdefghijklmnop"
ALGORITHM = SftConfig(type="sft", learning_rate=1e-3)
AGREE = {"bfloat16": 0.1, "float32": 1e-4}  # mean difference in nats; in bfloat16 that of the alarm `engine_gap`
ROLES: dict[str, Any] = {}  # the role of this process

Ask = Callable[..., Any]


def agreement(
    device: str, *, shape: dict[str, Any], dtype: str, prompts: int, length: int, share: float = 0.3
) -> Iterator[Figure]:
    """Sample, compare, train, publish, and sample again. `share`: part of a GPU's memory that the engine may use."""
    cuda = device != "cpu"
    gpus = gpu_count() if cuda else 0
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlhf-gpu-check-")))
        model = ModelConfig(path=str(directory), dtype=dtype)
        own = stack.enter_context(process_of(environment_of(engine=False, cuda=cuda, gpu=0)))
        engine = stack.enter_context(process_of(environment_of(engine=True, cuda=cuda, gpu=int(gpus > 1))))
        own.submit(write_model, directory, shape).result()
        config = RolloutConfig(max_prompt_length=64, max_completion_length=length, gpu_memory_utilization=share)
        learning = own.submit(start_learner, model, cuda)
        started = time.perf_counter()
        engine.submit(start_engine, model, config, cuda, gpus > 1).result()
        yield Figure(name="engine: starting", measured=time.perf_counter() - started, unit="s")
        learning.result()
        letters = np.random.default_rng(0).choice(list(ALPHABET), (prompts, 32))
        given = [Prompt(id=f"p{i}", text="".join(row)) for i, row in enumerate(letters)]
        sampling = Sampling(num_generations=4, max_completion_length=length, ignore_eos=True)
        sample = partial(lambda: engine.submit(call, "generate", given, sampling).result())
        gap = partial(lambda sampled: own.submit(gap_of, sampled).result())
        yield from compared(sample, gap, dtype, "engine and learner: difference before training")
        own.submit(call, "step", 0, [sample()], None, None, None).result()
        stale = gap(sample())
        yield Figure(
            name="engine with old weights: difference", measured=stale, at_least=AGREE["float32"] * 100, unit="nats"
        )
        yield from publication(own, engine, nccl=gpus > 1)
        yield from compared(sample, gap, dtype, "engine and learner: difference after publication")
        own.submit(call, "close").result()


def compared(sample: Ask, gap: Ask, dtype: str, name: str) -> Iterator[Figure]:
    started = time.perf_counter()
    sampled = sample()
    speed = len(sampled.completions.values) / (time.perf_counter() - started)
    yield Figure(name=name, measured=gap(sampled), expected=0, at_most=AGREE[dtype], unit="nats")
    yield Figure(name="engine: speed", measured=speed, unit="tokens/s")


def publication(own: ProcessPoolExecutor, engine: ProcessPoolExecutor, *, nccl: bool) -> Iterator[Figure]:
    meeting = Rendezvous(address="127.0.0.1", port=process.free_port(), world_size=2) if nccl else None
    segment = None if nccl else segment_path("gpu-check")
    manifest: Manifest = own.submit(call, "open_weights", segment, meeting).result()
    started = time.perf_counter()
    sent = own.submit(send_weights, manifest)
    if not nccl:
        sent.result()  # shared memory is read after it has been written; NCCL needs both ends at once
    received = engine.submit(call, "receive_weights", manifest, 1, None)
    sent.result()
    received.result()
    way = "NCCL" if nccl else "shared memory"
    seconds = time.perf_counter() - started
    yield Figure(name=f"publication by {way}, {manifest.num_bytes / 1e9:.2f} GB", measured=seconds, unit="s")


# ------------------------------------------------------------------------------------------------ in their processes


def process_of(environment: dict[str, str]) -> ProcessPoolExecutor:
    """Return a process that runs what is submitted, one call after another."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=set_environment, initargs=(environment,))


def set_environment(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def environment_of(*, engine: bool, cuda: bool, gpu: int) -> dict[str, str]:
    from workers.rollout import environment

    visible = {"CUDA_VISIBLE_DEVICES": str(gpu)} if cuda else {}
    return {**(environment(cuda=cuda) if engine else {}), **visible}


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def write_model(directory: Path, shape: dict[str, Any]) -> None:
    from configs.quickstart.tiny import character_tokenizer, create_model

    create_model(directory, {"model_type": "llama", **shape}, character_tokenizer(ALPHABET), seed=0)


def start_learner(model: ModelConfig, cuda: bool) -> None:
    from workers import learner

    meeting = {"rank": 0, "address": "127.0.0.1", "port": process.free_port()}
    config = LearnerConfig(param_persistence_threshold=0)
    ROLES["own"] = learner.join(model, config, ALGORITHM, head="logprobs", cuda=cuda, seed=0, max_steps=9, **meeting)


def start_engine(model: ModelConfig, config: RolloutConfig, cuda: bool, nccl: bool) -> None:
    from workers.engines import vllm_engine
    from workers.rollout import Rollout

    if cuda and not nccl:
        vllm_engine._publication_settings = partial(by_shared_memory, vllm_engine._publication_settings)
    ROLES["own"] = Rollout(model, config, index=0, seed=0, cuda=cuda)


def by_shared_memory(settings: Ask, adapter_rank: int | None, *, cuda: bool) -> dict[str, Any]:
    """Return vLLM's settings of a publication on a CPU, for an engine that shares its GPU with the learner."""
    found: dict[str, Any] = settings(adapter_rank, cuda=False)
    return found


def call(name: str, *arguments: Any) -> Any:
    return getattr(ROLES["own"], name)(*arguments)


def gap_of(sampled: Experience) -> float:
    """Return the mean difference of the learner's log-probabilities to the engine's."""
    values = ROLES["own"].infer([sampled], as_sampled=True).values
    return float(np.abs(values - sampled.logprobs).mean())


def send_weights(manifest: Manifest) -> None:
    """Publish the weights; from host memory where they go through shared memory, whose checksums are computed there."""
    learner = ROLES["own"]
    if manifest.segment is None:
        learner.send_weights()
        return
    weights = ((name, weight.cpu()) for name, weight in learner._engine.weights())
    learner._sender._segment.write(manifest.entries, weights)


if __name__ == "__main__":
    process.main(globals())
