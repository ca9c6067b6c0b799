"""One rank of a teacher or of its student over gloo, in a process of its own.

    python distill_rank.py RANK WORLD_SIZE PORT OUT teacher|student STUDENT TEACHER [SETTINGS]

The teacher is partitioned over its ranks. They write their shares of the hidden states to
OUT/hidden-WORLD_SIZE-RANK.npz. The student's ranks read the shares of two ranks and train on them. For each of the
SETTINGS (JSON: a name and fields of LearnerConfig), rank 0 writes the weights to OUT/<name>.safetensors and the
divergences to OUT/<name>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from fakes import experience
from safetensors.torch import save_file
from zero_rank import whole

from workers.config import DistillConfig, LearnerConfig, ModelConfig, ReferenceConfig
from workers.learner import Learner
from workers.reference import Reference
from workers.types import Experience, TokenShard

ALGORITHM = DistillConfig(type="distill", learning_rate=1e-3, adam_epsilon=1e-5, beta=0.5, temperature=0.8)
GROUPS = [([3, 4, 5], [[6, 7, 1], [8, 1]]), ([11], [[3, 4, 5, 6, 7, 8, 1]]), ([9, 10], [[1], [3, 3, 1]]), ([6], [[5]])]
STEPS = 3


def given() -> list[Experience]:
    return [experience(GROUPS)]


def read_shares(out: Path, num_ranks: int) -> list[TokenShard]:
    files = [np.load(out / f"hidden-{num_ranks}-{rank}.npz") for rank in range(num_ranks)]
    return [TokenShard(completions=file["completions"], values=file["values"]) for file in files]


def teach(teacher: str, rank: int, world_size: int, port: int, out: Path) -> None:
    config = ReferenceConfig(num_ranks=world_size, zero_stage=3, tokens_per_micro_batch=6)
    model = ModelConfig(path=teacher, dtype="float32")
    gang = Reference(model, config, rank=rank, address="127.0.0.1", port=port, cuda=False, chunk=4)
    share = gang.hidden(given())
    np.savez(out / f"hidden-{world_size}-{rank}.npz", completions=share.completions, values=share.values)


def learn(
    student: str, teacher: str, rank: int, world_size: int, port: int, out: Path, settings: dict[str, dict[str, int]]
) -> None:
    from workers.engines import deepspeed_engine, hf_files

    device = deepspeed_engine.join(rank=rank, world_size=world_size, address="127.0.0.1", port=port, cuda=False)
    layer = hf_files.load_output_layer(ModelConfig(path=teacher, dtype="float32"))
    model = ModelConfig(path=student, dtype="float32")
    for name, changes in settings.items():
        config = LearnerConfig(num_ranks=world_size, logprob_chunk_tokens=4, **changes)
        engine = deepspeed_engine.DeepSpeedEngine(
            model, config, ALGORITHM, head="logprobs", device=device, seed=0, divergence=(layer, ALGORITHM.beta)
        )
        learner = Learner(engine, model, config, ALGORITHM, head="logprobs", seed=0, max_steps=STEPS)
        steps = [learner.step(i, given(), None, read_shares(out, 2), None) for i in range(STEPS)]
        divergences = [engine.sum(stats.sums["divergence"]) for stats in steps]
        weights = whole(engine)
        if rank == 0:
            save_file(weights, out / f"{name}.safetensors")
            (out / f"{name}.json").write_text(json.dumps(divergences))


def main() -> None:
    import torch

    rank, world_size, port = map(int, sys.argv[1:4])
    out, role, student, teacher = Path(sys.argv[4]), *sys.argv[5:8]
    torch.set_num_threads(1)
    if role == "teacher":
        teach(teacher, rank, world_size, port, out)
    else:
        learn(student, teacher, rank, world_size, port, out, json.loads(sys.argv[8]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
