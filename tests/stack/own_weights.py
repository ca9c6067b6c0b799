"""Publish weights to a vLLM engine of this process, and say how far its log-probabilities are from the model's: those
it was started with, the same ones published, others, and the first ones again. A line of JSON, a list that grows, after
each."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

from workers.rollout import environment

os.environ.update(environment(cuda=False))

import numpy as np
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from workers.config import RolloutConfig
from workers.engines import hf_files
from workers.engines.base import Request
from workers.engines.heads import TokenLogprobs
from workers.engines.vllm_engine import VllmEngine
from workers.weights import Segment, describe

PROMPTS = [np.arange(3, 23, dtype=np.int32), np.arange(60, 27, -1, dtype=np.int32)]


def gap(engine: VllmEngine, model: Any) -> float:
    requests = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS, 1)]
    answers = engine.generate(
        requests, max_tokens=30, temperature=1.0, top_p=1.0, top_k=0, stop_token_ids=[], ignore_eos=True
    )
    gaps = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = torch.from_numpy(np.concatenate([prompt, answer.tokens]).astype(np.int64))
        with torch.no_grad():
            logprobs = model(tokens[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        theirs = logprobs.gather(1, tokens[len(prompt) :, None])[:, 0].numpy()
        gaps.append(float(np.abs(theirs - answer.logprobs).max()))
    return max(gaps)


def publish(engine: VllmEngine, model: Any, version: int, path: str) -> None:
    module = TokenLogprobs(copy.deepcopy(model), 64)
    manifest = describe(hf_files.describe(module), segment=path)
    layers = [{n: w.detach() for n, w in layer.items()} for layer in hf_files.by_layer(hf_files.weight_names(module))]
    segment = Segment(path, manifest.num_bytes)
    segment.write(manifest.entries, (item for layer in layers for item in hf_files.as_stored(module, layer).items()))
    engine.receive(manifest, version)


def main(directory: Path, tensor_parallel_size: int = 1) -> None:
    first = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    other = copy.deepcopy(first)
    tiny_models.disturb(other)
    config = RolloutConfig(max_prompt_length=40, max_completion_length=40, cpu_kv_cache_mib=16, max_num_seqs=4)
    config = config.model_copy(update={"tensor_parallel_size": tensor_parallel_size})
    engine = VllmEngine(str(directory), "float32", 80, config, seed=0, cuda=False)
    gaps = [gap(engine, first)]
    print(json.dumps(gaps), flush=True)
    for version, model in enumerate((first, other, first), 1):
        publish(engine, model, version, str(directory / "segment"))
        gaps.append(gap(engine, model))
        print(json.dumps(gaps), flush=True)
    os._exit(0)  # the engine's threads would be waited for


if __name__ == "__main__":  # the workers of an engine in parts import this file, too
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
