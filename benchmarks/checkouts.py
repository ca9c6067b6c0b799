"""Compare the learner's speed in this checkout with that in another one, in alternating turns.

    python benchmarks/checkouts.py OTHER_CHECKOUT [--turns 40]

Each checkout has its own process, which keeps a model in DeepSpeed (ZeRO stage 3, one rank, float32, one thread). The
processes alternate in forward and backward passes of the same micro-batch: eight prompts of 48 tokens with four
completions of 40 each. CPU time is measured, as it depends less on the load of the machine. The result is the speed of
this checkout relative to the other: the median ratio over the turns, and the ratio of the fastest turns.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
PASSES = 4  # per turn
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path)
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    for model_type in ("llama", "qwen2"):
        with tempfile.TemporaryDirectory() as directory:
            _write(Path(directory), model_type)
            ours, theirs = (_start(tree, directory) for tree in (HERE.parents[1], options.other.resolve()))
            pairs = [(_turn(ours), _turn(theirs)) for _ in range(options.turns)][1:]  # the first one is a warm-up
            for child in (ours, theirs):
                child.stdin.close()
                child.wait()
        mine, others = zip(*pairs, strict=True)
        medians = statistics.median(theirs / ours for ours, theirs in pairs)
        print(f"{model_type}: {medians:.3f} (median of {len(pairs)} turns), {min(others) / min(mine):.3f} (minima)")


def _write(directory: Path, model_type: str) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SHAPE)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)


def _start(checkout: Path, directory: str) -> Any:
    environ = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        f"import runpy; runpy.run_path({str(HERE)!r})['child']()",
        directory,
    ]
    return subprocess.Popen(
        command, env=environ, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None,
        text=True,
    )  # fmt: skip


def _turn(child: Any) -> float:
    child.stdin.write("go\n")
    child.stdin.flush()
    while not (line := child.stdout.readline()).startswith("{"):
        if not line:
            raise SystemExit("the process of a checkout ended")
    return float(json.loads(line)["seconds"])


def child() -> None:
    """Answer each line on standard input with the CPU time of `PASSES` passes."""
    import numpy as np
    import torch

    from workers.config import LearnerConfig, ModelConfig, SftConfig
    from workers.engines import deepspeed_engine
    from workers.packing import pack
    from workers.types import Ragged  # not workers.ragged, which older checkouts do not have

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    device = deepspeed_engine.join(rank=0, world_size=1, address="127.0.0.1", port=port, cuda=False)
    torch.set_num_threads(1)
    engine = deepspeed_engine.DeepSpeedEngine(
        ModelConfig(path=sys.argv[1], dtype="float32"),
        LearnerConfig(zero_stage=3),
        SftConfig(type="sft", learning_rate=1e-3),
        head="logprobs",
        device=device,
        seed=0,
    )
    rng = np.random.Generator(np.random.Philox(0))
    prompts = [rng.integers(2, 2048, 48) for _ in range(8)]
    completions = [rng.integers(2, 2048, 40) for _ in range(32)]
    packed = pack(Ragged.of(prompts), Ragged.of(completions), np.arange(0, 33, 4), np.arange(8))
    for _ in sys.stdin:
        started = time.process_time()
        for _ in range(PASSES):
            logprobs, _entropy = engine.forward(packed)
            engine.backward(logprobs.sum(), last=True)
        print(json.dumps({"seconds": time.process_time() - started}), flush=True)


if __name__ == "__main__":
    main()
