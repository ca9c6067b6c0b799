"""Sending of weights by NCCL, on the ranks that have nothing to send."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A process of its own: others of this test run may have imported vLLM.
SENDING = """
import json, sys
import torch
from workers.config import ModelConfig
from workers.sender import WeightSender
from workers.weights import Rendezvous

class Engine:
    rank, world_size, device = int(sys.argv[1]), 2, torch.device("cpu")
    gathered = []

    def describe_weights(self):
        return [(name, torch.float32, (2,)) for name in ("embed", "head")]

    def weights(self):
        for name in ("embed", "head"):
            self.gathered.append(name)
            yield name, torch.zeros(2)

engine = Engine()
sender = WeightSender(engine, ModelConfig(path="/nowhere"))
sender.open(None, Rendezvous(address="127.0.0.1", port=1, world_size=2))
for _ in range(2):
    sender.send()
print(json.dumps({"gathered": engine.gathered, "vllm": "vllm" in sys.modules}))
"""


def test_a_rank_that_sends_nothing_gathers_every_weight_and_imports_no_vllm() -> None:
    command, environment = [sys.executable, "-c", SENDING, "1"], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {"gathered": ["embed", "head", "embed", "head"], "vllm": False}
