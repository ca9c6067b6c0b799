"""One rank of a gang that saves a checkpoint after two updates and continues, or that resumes another gang's.

    python reshard_rank.py RANK WORLD_SIZE PORT OUT WORK

WORK is a JSON object. For each name it has the model's directory, fields of LearnerConfig (and `dtype`), and the name
of the checkpoint to load (null: start from the model, and save). Rank 0 writes the weights after all updates to
OUT/<name>.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from zero_rank import BATCHES, SAVED, batch, start, whole

from workers.config import LearnerConfig, LoraConfig, ModelConfig


def main() -> None:
    from workers.engines.deepspeed_engine import join

    rank, world_size, port = map(int, sys.argv[1:4])
    out = Path(sys.argv[4])
    device = join(rank=rank, world_size=world_size, address="127.0.0.1", port=port, cuda=False)
    for name, (path, changes, loaded) in json.loads(sys.argv[5]).items():
        fields = {key: value for key, value in changes.items() if key not in ("lora", "dtype")}
        adapters = LoraConfig(**changes["lora"]) if "lora" in changes else None
        model = ModelConfig(path=path, dtype=changes.get("dtype", "float32"), lora=adapters)
        learner, engine = start(model, LearnerConfig(num_ranks=world_size, **fields), device)
        if loaded is not None:
            assert learner.load(str(out / loaded / "policy")) == {"step": SAVED}
        for step in range(0 if loaded is None else SAVED, len(BATCHES)):
            if step == SAVED and loaded is None:
                learner.save(str(out / name / "policy"), {"step": SAVED})
            learner.step(step, batch(step), None, None, None)
        weights = whole(engine)
        if rank == 0:
            save_file(weights, out / f"{name}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
