"""One rank of a DeepSpeed gang, as a process of its own: three updates under several settings, and what came of them.

    python zero_rank.py RANK WORLD_SIZE PORT MODEL OUT SETTINGS

SETTINGS is a JSON object: a name, and the fields of LearnerConfig that it changes. Rank 0 writes OUT/<name>.safetensors
with the weights as they are published, and OUT/<name>.json with their description, statistics, and whether a learner that
was saved after two updates and loaded again made the third one to the bit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from fakes import experience
from safetensors.torch import save_file

from workers.config import LearnerConfig, ModelConfig, SftConfig
from workers.engines import deepspeed_engine
from workers.learner import Learner
from workers.types import Experience

ALGORITHM = SftConfig(
    type="sft", learning_rate=1e-3, lr_scheduler_type="linear", adam_epsilon=1e-5, weight_decay=0.1, max_grad_norm=0.5
)
MAX_STEPS = 4
BATCHES = [
    [([3, 4, 5], [[6, 7, 1]]), ([11], [[3, 4, 5, 6, 7, 8, 1]]), ([9, 10], [[1]])],
    [([4, 5, 6, 7, 8], [[5, 1]]), ([3], [[3, 3, 1]]), ([9, 10], [[5, 6, 7, 1]]), ([6], [[1]])],
    [([8, 7], [[6, 5, 4, 3, 1]])],  # fewer rows than ranks
]


def batch(step: int) -> list[Experience]:
    return [experience(BATCHES[step])]


def run(name: str, learner: Learner, engine: deepspeed_engine.DeepSpeedEngine, out: Path) -> None:
    stats = [learner.step(i, batch(i), None, None, None) for i in range(2)]
    learner.save(str(out / f"{name}-checkpoint"), {"turn": 2})
    stats.append(learner.step(2, batch(2), None, None, None))
    after = whole(engine)
    state = learner.load(str(out / f"{name}-checkpoint"))
    learner.step(2, batch(2), None, None, None)
    again = whole(engine)
    if engine.rank == 0:
        save_file(after, out / f"{name}.safetensors")
        described: list[Any] = [(n, str(dtype), shape) for n, dtype, shape in engine.describe_weights()]
        told = {
            "described": described,
            "sent": [(n, str(w.dtype), tuple(w.shape)) for n, w in after.items()],
            "state": {k: str(v)[:60] for k, v in state.items()},
            "bit_equal_after_load": all(torch.equal(after[n], again[n]) for n in after),
            "grad_norms": [s.facts["grad_norm"] for s in stats],
            "losses": [s.sums["loss"] for s in stats],
        }
        (out / f"{name}.json").write_text(json.dumps(told))


def whole(engine: deepspeed_engine.DeepSpeedEngine) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in engine.weights()}


def main() -> None:
    rank, world_size, port = map(int, sys.argv[1:4])
    model, out, settings = ModelConfig(path=sys.argv[4], dtype="float32"), Path(sys.argv[5]), json.loads(sys.argv[6])
    device = deepspeed_engine.join(rank=rank, world_size=world_size, address="127.0.0.1", port=port, cuda=False)
    for name, changes in settings.items():
        config = LearnerConfig(num_ranks=world_size, **changes)
        engine = deepspeed_engine.DeepSpeedEngine(model, config, ALGORITHM, head="logprobs", device=device, seed=0)
        learner = Learner(engine, model, config, ALGORITHM, head="logprobs", seed=0, max_steps=MAX_STEPS)
        run(name, learner, engine, out)
    learner.close()


if __name__ == "__main__":
    main()
