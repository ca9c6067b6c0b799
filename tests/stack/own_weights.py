"""Publish weights to a vLLM engine and print how far its log-probabilities are from the model's.

The engine is measured as it was started, after the same weights were published, after other weights, and after the
first weights again. After each measurement, a JSON list of the differences so far (nats) is printed on one line.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from workers.rollout import environment

os.environ.update(environment(cuda=False))

import numpy as np
import tiny_models
import torch
from transformers import AutoModelForCausalLM

PROMPTS = [np.arange(3, 23, dtype=np.int32), np.arange(60, 27, -1, dtype=np.int32)]


def models(directory: Path) -> tuple[Any, Any]:
    """Return the model in a directory, and a copy with other weights."""
    first = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    other = copy.deepcopy(first)
    tiny_models.disturb(other)
    return first, other


def answer(connection: Connection, directory: Path) -> None:
    """Compute log-probabilities with plain transformers until None is received.

    Runs in a process without vLLM, which modifies classes of transformers.
    """
    both = models(directory)
    while (request := connection.recv()) is not None:
        which, prompt, completion = request
        tokens = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
        with torch.no_grad():
            logprobs = both[which](tokens[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        connection.send(logprobs.gather(1, tokens[len(prompt) :, None])[:, 0].numpy())


@contextmanager
def plain(directory: Path) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(theirs, directory), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        ours.send(None)
        process.join()


def gap(engine: Any, connection: Connection, which: int) -> float:
    from workers.engines.base import Request

    requests = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS, 1)]
    answers = engine.generate(
        requests, max_tokens=30, temperature=1.0, top_p=1.0, top_k=0, stop_token_ids=[], ignore_eos=True
    )
    gaps = []
    for prompt, sampled in zip(PROMPTS, answers, strict=True):
        connection.send((which, prompt, sampled.tokens))
        gaps.append(float(np.abs(connection.recv() - sampled.logprobs).max()))
    return max(gaps)


def publish(engine: Any, model: Any, version: int, path: str) -> None:
    from workers.engines import hf_files
    from workers.engines.heads import TokenLogprobs
    from workers.segment import Segment
    from workers.weights import describe

    module = TokenLogprobs(copy.deepcopy(model), 64)
    manifest = describe(hf_files.describe(module), segment=path)
    layers = [{n: w.detach() for n, w in layer.items()} for layer in hf_files.by_layer(hf_files.weight_names(module))]
    segment = Segment(path, manifest.num_bytes)
    segment.write(manifest.entries, (item for layer in layers for item in hf_files.as_stored(module, layer).items()))
    engine.receive(manifest, version)


def main(directory: Path, tensor_parallel_size: int = 1) -> None:
    from workers.config import RolloutConfig
    from workers.engines.vllm_engine import VllmEngine

    both = models(directory)
    config = RolloutConfig(max_prompt_length=40, max_completion_length=40, cpu_kv_cache_mib=16, max_num_seqs=4)
    config = config.model_copy(update={"tensor_parallel_size": tensor_parallel_size})
    with plain(directory) as connection:
        engine = VllmEngine(str(directory), "float32", 80, config, seed=0, cuda=False)
        gaps = [gap(engine, connection, 0)]
        print(json.dumps(gaps), flush=True)
        for version, which in enumerate((0, 1, 0), 1):
            publish(engine, both[which], version, str(directory / "segment"))
            gaps.append(gap(engine, connection, which))
            print(json.dumps(gaps), flush=True)
    os._exit(0)  # a normal exit would wait for the engine's threads


if __name__ == "__main__":  # spawned processes import this file as well
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
