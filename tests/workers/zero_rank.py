"""One rank of a DeepSpeed gang in a process of its own: makes four updates under several settings.

    python zero_rank.py RANK WORLD_SIZE PORT OUT SETTINGS

SETTINGS is a JSON object: a name, the model's directory, and fields of LearnerConfig. Rank 0 writes

    OUT/<name>.safetensors          the published weights after three updates
    OUT/<name>-fresh.safetensors    the published weights after one more update, with a fresh optimizer
    OUT/<name>-written-RANK.json    what a rank (each writes its own) reports of the checkpoint
    OUT/<name>.json                 description of the weights, statistics, whether another learner that loaded the
                                    checkpoint after two updates made the third one bit-identically, and the error of
                                    one more update in which the gradient of the last rank alone is NaN

With `lora` among the fields also the adapters, at the start (OUT/<name>-start) and at the end (OUT/<name>-adapter), and
the frozen base after all updates (OUT/<name>-base.safetensors).
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fakes import experience
from safetensors.torch import save_file

from workers.config import LearnerConfig, LoraConfig, ModelConfig, PpoConfig, RewardModelConfig, SftConfig
from workers.learner import Learner
from workers.types import Experience, TokenShard
from workers.updates import NotFinite

if TYPE_CHECKING:
    from workers.engines.deepspeed_engine import DeepSpeedEngine

ALGORITHM = SftConfig(
    type="sft", learning_rate=1e-3, lr_scheduler_type="linear", adam_epsilon=1e-5, weight_decay=0.1, max_grad_norm=0.5
)
SAVED, FRESH = 2, 3  # updates before the checkpoint, and before the optimizer is reset
BATCHES = [
    [([3, 4, 5], [[6, 7, 1]]), ([11], [[3, 4, 5, 6, 7, 8, 1]]), ([9, 10], [[1]])],
    [([4, 5, 6, 7, 8], [[5, 1]]), ([3], [[3, 3, 1]]), ([9, 10], [[5, 6, 7, 1]]), ([6], [[1]])],
    [([8, 7], [[6, 5, 4, 3, 1]])],  # fewer rows than ranks
    [([5, 6], [[4, 1]]), ([10], [[3, 5, 7, 1]])],  # with a fresh optimizer
]


REWARD_MODEL = RewardModelConfig(type="reward_model", learning_rate=1e-3, adam_epsilon=1e-5)
PAIRS = [
    [([3, 4, 5], [[6, 7, 1], [6, 1]]), ([11], [[3, 4, 5, 6, 7, 8, 1], [3, 1]]), ([9, 10], [[1], [5, 1]])],
    [([8, 7], [[6, 5, 4, 3, 1], [6, 6, 1]])],  # fewer rows than ranks
]


def batch(step: int) -> list[Experience]:
    return [experience(BATCHES[step])]


def run(name: str, model: ModelConfig, config: LearnerConfig, device: torch.device, out: Path) -> None:
    learner, engine = start(model, config, device)
    if model.lora is not None:
        learner.send_adapter(str(out / f"{name}-start"), 0)
    stats = [learner.step(i, batch(i), None, None, None) for i in range(SAVED)]
    written = learner.save(str(out / f"{name}-checkpoint"), {"step": SAVED})
    (out / f"{name}-written-{engine.rank}.json").write_text(json.dumps(asdict(written)))
    stats += [learner.step(i, batch(i), None, None, None) for i in range(SAVED, FRESH)]
    resumed, reloaded_engine = start(model, config, device)
    state = resumed.load(str(out / f"{name}-checkpoint"))
    for i in range(SAVED, FRESH):
        resumed.step(i, batch(i), None, None, None)
    after, reloaded = whole(engine), whole(reloaded_engine)
    engine.reset_optimizer()
    stats.append(learner.step(FRESH, batch(FRESH), None, None, None))
    fresh = whole(engine)
    if model.lora is not None:
        learner.send_adapter(str(out / f"{name}-adapter"), len(BATCHES))
        base = base_of(engine)
        critic = critic_of(model, config, device, out / f"{name}-critic")
        if engine.rank == 0:
            save_file(base, out / f"{name}-base.safetensors")
    losses = [engine.sum(s.sums["loss"]) for s in stats]
    refused = refusal(learner, engine)
    if engine.rank == 0:
        save_file(after, out / f"{name}.safetensors")
        save_file(fresh, out / f"{name}-fresh.safetensors")
        results = {
            "described": [(n, str(dtype), shape) for n, dtype, shape in engine.describe_weights()],
            "sent": [(n, str(w.dtype), tuple(w.shape)) for n, w in after.items()],
            "state": dict(state),
            "resumed_to_the_bit": all(torch.equal(after[n], reloaded[n]) for n in after),
            "grad_norms": [s.facts["grad_norm"] for s in stats],
            "losses": losses,
            "refused": refused,
        }
        if model.lora is not None:
            results |= critic
        (out / f"{name}.json").write_text(json.dumps(results))


def refusal(learner: Learner, engine: Any) -> str:
    """Return the error of a step with a NaN gradient on the last rank; empty if there is none."""
    true_forward = engine.forward

    def forward(*arguments: Any) -> Any:
        outputs, entropy = true_forward(*arguments)
        if engine.rank == engine.world_size - 1:
            outputs.register_hook(lambda gradient: gradient * math.nan)
        return outputs, entropy

    engine.forward = forward
    try:
        learner.step(FRESH, batch(FRESH), None, None, None)
    except NotFinite as error:
        return str(error)
    return ""


def run_scores(name: str, model: ModelConfig, config: LearnerConfig, device: torch.device, out: Path) -> None:
    """Train a reward model; write its losses and weights, and whether they are resumed and reloaded exactly."""
    batches = [[experience(rows, rewards=[1.0, 0.0] * len(rows))] for rows in PAIRS]
    learner, engine = start_scores(model, config, device, seed=4)
    stats = []
    for i, given in enumerate(batches):
        stats.append(learner.step(i, given, None, None, None))
        if i == 0:
            learner.save(str(out / f"{name}-checkpoint"), {})
    resumed, reloaded_engine = start_scores(model, config, device, seed=5)
    resumed.load(str(out / f"{name}-checkpoint"))
    for i in range(1, len(batches)):
        resumed.step(i, batches[i], None, None, None)
    exported = str(out / f"{name}-model")
    learner.export(exported)
    torch.distributed.barrier()
    _, reader = start_scores(model.model_copy(update={"path": exported}), config, device, seed=5)
    weights, reloaded, loaded = whole(engine), whole(reloaded_engine), whole(reader)
    losses = [engine.sum(s.sums["loss"]) for s in stats]
    if engine.rank == 0:
        save_file(weights, out / f"{name}.safetensors")
        results = {
            "losses": losses,
            "resumed_to_the_bit": all(torch.equal(weights[n], reloaded[n]) for n in weights),
            "loaded_to_the_bit": all(torch.equal(weights[n], loaded[n]) for n in weights),
        }
        (out / f"{name}.json").write_text(json.dumps(results))


def start_scores(
    model: ModelConfig, config: LearnerConfig, device: torch.device, seed: int
) -> tuple[Learner, DeepSpeedEngine]:
    from workers.engines.deepspeed_engine import DeepSpeedEngine

    engine = DeepSpeedEngine(model, config, REWARD_MODEL, head="scores", device=device, seed=seed)
    return Learner(engine, model, config, REWARD_MODEL, head="scores", seed=0, max_steps=len(PAIRS)), engine


def start(model: ModelConfig, config: LearnerConfig, device: torch.device) -> tuple[Learner, DeepSpeedEngine]:
    from workers.engines.deepspeed_engine import DeepSpeedEngine  # not needed by those that import the batches

    engine = DeepSpeedEngine(model, config, ALGORITHM, head="logprobs", device=device, seed=0)
    return Learner(engine, model, config, ALGORITHM, head="logprobs", seed=0, max_steps=len(BATCHES)), engine


def whole(engine: DeepSpeedEngine) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in engine.weights()}


def base_of(engine: DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """Return the weights under the adapters."""
    from workers.engines import hf_files

    named = hf_files.weight_names(engine._module)
    with engine._gathered(list(named.values())):
        return {name: weight.detach().clone() for name, weight in named.items()}


def critic_of(model: ModelConfig, config: LearnerConfig, device: torch.device, checkpoint: Path) -> dict[str, bool]:
    """Return which parts of a critic with adapters two steps have trained, and whether it resumes exactly."""
    from workers.engines.deepspeed_engine import DeepSpeedEngine

    ppo = PpoConfig(type="ppo", critic_learning_rate=1e-2)
    given = [experience([([3, 4, 5], [[6, 7, 1]]), ([9, 10], [[5, 1]])], logprobs=[-1.0] * 5, rewards=[1.0, 2.0])]
    critics = []
    for _ in range(2):
        engine = DeepSpeedEngine(model, config, ppo, head="values", device=device, seed=0)
        critics.append((Learner(engine, model, config, ppo, head="values", seed=0, max_steps=4), engine))
    (learner, engine), (other, _) = critics
    for step in range(2):  # the head starts at zero: the first step moves only the head
        zeros = [TokenShard(completions=np.arange(2), values=np.zeros(5, np.float32))]
        learner.step(step, given, None, zeros, zeros)
    learner.save(str(checkpoint), {})
    other.load(str(checkpoint))
    moved = [bool(tensor.any()) for name, tensor in engine.adapter() if "lora_B" in name]
    before, after = learner.infer(given).values, other.infer(given).values
    return {
        "critic_adapters_learned": all(moved),
        "critic_resumed_to_the_bit": len(after) > 0 and after.tolist() == before.tolist() and bool(before.all()),
    }


def main() -> None:
    from workers.engines.deepspeed_engine import join

    rank, world_size, port = map(int, sys.argv[1:4])
    out, settings = Path(sys.argv[4]), json.loads(sys.argv[5])
    device = join(rank=rank, world_size=world_size, address="127.0.0.1", port=port, cuda=False)
    for name, (path, changes) in settings.items():
        fields = {key: value for key, value in changes.items() if key != "lora"}
        adapters = LoraConfig(**changes["lora"]) if "lora" in changes else None
        model = ModelConfig(path=path, dtype="float32", lora=adapters)
        train = run_scores if "reward-model" in name else run
        train(name, model, LearnerConfig(num_ranks=world_size, **fields), device, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
