"""One rank of a DeepSpeed gang in a process of its own: makes two steps of every method.

    python method_rank.py RANK WORLD_SIZE PORT OUT MODEL SETTINGS

SETTINGS is a JSON object of LearnerConfig's fields. Rank 0 writes the weights to OUT/<method>.safetensors, and each
rank its statistics to OUT/<method>-<rank>.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from methods import ALGORITHMS, MORE, name_of, scored
from pydantic import TypeAdapter
from safetensors.torch import save_file
from zero_rank import whole

from workers.config import AlgorithmConfig, LearnerConfig, ModelConfig
from workers.learner import Learner

STEPS, SEED = 2, 3


def main() -> None:
    from workers.engines.deepspeed_engine import DeepSpeedEngine, join

    rank, world_size, port = map(int, sys.argv[1:4])
    out, model = Path(sys.argv[4]), ModelConfig(path=sys.argv[5], dtype="float32")
    settings = LearnerConfig(num_ranks=world_size, **json.loads(sys.argv[6]))
    device = join(rank=rank, world_size=world_size, address="127.0.0.1", port=port, cuda=False)
    for algorithm in (*ALGORITHMS, *MORE):
        recipe = {key: value for key, value in algorithm.items() if key != "head"}
        config: Any = TypeAdapter(AlgorithmConfig).validate_python(recipe)
        head = algorithm.get("head", "logprobs")
        engine = DeepSpeedEngine(model, settings, config, head=head, device=device, seed=SEED)
        learner = Learner(engine, model, settings, config, head=head, seed=3, max_steps=4)
        steps = [asdict(learner.step(i, *scored(algorithm))) for i in range(STEPS)]
        weights = whole(engine)
        (out / f"{name_of(algorithm)}-{rank}.json").write_text(json.dumps(steps))
        if rank == 0:
            save_file(weights, out / f"{name_of(algorithm)}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
