"""A reference of one rank that is loaded six times.

    python refresh_rank.py RANK WORLD_SIZE PORT OUT FIRST SECOND

FIRST and SECOND are model directories, loaded alternately. OUT is written as a JSON object: for each ZeRO stage the
bytes of all living tensors after each load, and the log-probabilities at the end.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
from fakes import experience
from test_reference import GROUPS

from workers.config import ModelConfig, ReferenceConfig
from workers.reference import Reference
from workers.types import assemble


def num_live_bytes() -> int:
    gc.collect()
    sizes = {}
    for obj in gc.get_objects():
        if type(obj) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            storage = obj.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(size for size in sizes.values() if size > 1000)  # weights only


def main() -> None:
    port, results, models = int(sys.argv[3]), {}, sys.argv[5:7]
    sampled = experience(GROUPS)
    for stage in (3, 0):
        held = []
        config = ReferenceConfig(num_ranks=1, zero_stage=stage)
        model = ModelConfig(path=models[1], dtype="float32")
        reference = Reference(model, config, rank=0, address="127.0.0.1", port=port, cuda=False, chunk=64)
        for load in range(6):
            reference.load(models[load % 2], load)
            last = assemble([reference.logprobs([sampled], version=load)], sampled.completions)
            held.append(num_live_bytes())
        results[f"stage-{stage}"] = {"tensors": held, "last": last.tolist()}
        reference.free()
    Path(sys.argv[4]).write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
