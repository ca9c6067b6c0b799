"""Comparison of one rank of a DeepSpeed gang with plain torch in the same process.

    python bfloat16_rank.py RANK WORLD_SIZE PORT OUT WORK

WORK is a JSON object. For each name it has "loading" or "updates", the model's directory, its dtype, and fields of
LearnerConfig. Rank 0 writes the differences to OUT/<name>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from fakes import experience
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from workers.config import LearnerConfig, ModelConfig, SftConfig
from workers.engines import hf_models
from workers.packing import Packed, pack

if TYPE_CHECKING:
    from workers.engines.deepspeed_engine import DeepSpeedEngine

ALGORITHM = SftConfig(type="sft", learning_rate=1e-3, adam_epsilon=1e-5, weight_decay=0.1, max_grad_norm=0.5)
LENGTH, LATE = 1000, 600  # length of a row, and the token from which on rotary frequencies must be exact
MICRO_BATCHES = (64, 3, 3, 3)  # per rank and update
SAVED, FRESH = 2, 3  # updates before the checkpoint, and before the optimizer reset


def row(seed: int, length: int) -> Packed:
    tokens = np.random.default_rng(seed).integers(3, 12, size=length).tolist()
    batch = experience([(tokens[:1], [tokens[1:]])])
    return pack(batch.prompt_tokens, batch.completions, batch.group_offsets, np.array([0]))


def start(path: str, dtype: Any, config: LearnerConfig, device: torch.device) -> DeepSpeedEngine:
    from workers.engines.deepspeed_engine import DeepSpeedEngine

    model = ModelConfig(path=path, dtype=dtype)
    return DeepSpeedEngine(model, config, ALGORITHM, head="logprobs", device=device, seed=0)


# ------------------------------------------------------------------------------------------------ loading


def loading(path: str, dtype: str, config: LearnerConfig, device: torch.device, out: Path) -> dict[str, Any]:
    """Compare buffers with those of plain transformers, and log-probabilities late in a long row."""
    engine = start(path, dtype, config, device)
    plain: Any = AutoModelForCausalLM.from_pretrained(path, dtype=hf_models.DTYPES[dtype])
    ours, theirs = (dict(m.named_buffers(remove_duplicate=False)) for m in (engine._module.model, plain))
    assert sorted(ours) == sorted(theirs)
    wrong = [n for n, b in theirs.items() if ours[n].dtype != b.dtype or not torch.equal(ours[n], b)]
    packed = row(1, LENGTH)
    answered = engine.infer(packed)
    tokens, predictors, targets = (engine.tensor(a) for a in (packed.tokens, packed.predictors, packed.targets))
    with torch.no_grad():
        logits = plain.eval()(tokens[None]).logits[0, predictors].float()
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    gap = (answered - expected)[LATE:].abs()
    return {"buffers": len(theirs), "wrong": wrong, "gap": float(gap.mean())}


# ------------------------------------------------------------------------------------------------ updates


class Plain:
    """Reference training in one process: micro-batch gradients in the model's dtype; their sum, the master weights and
    torch's own AdamW in float32."""

    def __init__(self, path: str, dtype: str) -> None:
        self.module = hf_models.load_policy(path, dtype, chunk=64)
        self.masters = {n: nn.Parameter(p.detach().float().clone()) for n, p in self.module.named_parameters()}
        self.optimizer = self.fresh()

    def fresh(self) -> torch.optim.AdamW:
        exempt = {n for n in self.masters if "norm" in n or n.endswith("bias")}
        groups = [
            {"params": [p for n, p in self.masters.items() if n not in exempt], "weight_decay": ALGORITHM.weight_decay},
            {"params": [p for n, p in self.masters.items() if n in exempt], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=ALGORITHM.learning_rate, eps=ALGORITHM.adam_epsilon)

    def update(self, losses: list[Any]) -> float:
        sums = {n: torch.zeros_like(p) for n, p in self.masters.items()}
        for loss in losses:
            self.module.zero_grad()
            loss(self.module).backward()
            for name, parameter in self.module.named_parameters():
                sums[name] += parameter.grad.float()
        for name, master in self.masters.items():
            master.grad = sums[name]
        norm = float(nn.utils.clip_grad_norm_(self.masters.values(), ALGORITHM.max_grad_norm))
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(self.masters[name])
        return norm


def updates(path: str, dtype: str, config: LearnerConfig, device: torch.device, out: Path) -> dict[str, Any]:
    """Compare master weights, moments and norms after each update, and check that a loaded checkpoint resumes exactly.

    Differences are relative to the largest moment.
    """
    engine, plain = start(path, dtype, config, device), Plain(path, dtype)
    found: dict[str, Any] = {"masters": [], "moments": [], "norms": [], "published": []}
    resumed = None
    for step, count in enumerate(MICRO_BATCHES):
        if step == SAVED:
            engine.save(out / "checkpoint", {"step": step})
            torch.distributed.barrier()
            resumed = start(path, dtype, config, device)
            assert resumed.load(out / "checkpoint") == {"step": step}
        if step == FRESH:
            engine.reset_optimizer()
            plain.optimizer = plain.fresh()
        norm = plain.update([loss_of(engine, step, i, count) for i in range(count * engine.world_size)])
        own_norm = learn(engine, step, count)
        found["norms"].append(abs(own_norm / norm - 1))
        for name, largest in differences(engine, plain).items():
            found[name].append(largest)
        if step == SAVED and resumed is not None:
            learn(resumed, step, count)
            ours, theirs = ({n: w.clone() for n, w in e.weights()} for e in (engine, resumed))
            found["resumed_to_the_bit"] = all(torch.equal(w, theirs[n]) for n, w in ours.items())
            found["buffers_resumed"] = all(
                torch.equal(a, b) for a, b in zip(engine._module.buffers(), resumed._module.buffers(), strict=True)
            )
            resumed.free()
    return found


def loss_of(engine: DeepSpeedEngine, step: int, micro_batch: int, count: int) -> Any:
    packed = row(1000 * step + micro_batch, 12)

    def loss(module: Any) -> Tensor:
        total: Tensor = -module(*engine._inputs(packed), 1.0)[0].sum() / (count * engine.world_size)
        return total

    return loss


def learn(engine: DeepSpeedEngine, step: int, count: int) -> float:
    for i in range(count):
        loss = loss_of(engine, step, i * engine.world_size + engine.rank, count)(engine._engine)
        engine.backward(loss, last=i == count - 1)
    return engine.update(ALGORITHM.learning_rate)


def differences(engine: DeepSpeedEngine, plain: Plain) -> dict[str, float]:
    masters, moments, published = [], [], []
    weights = {f"model.{name}": weight.clone() for name, weight in engine.weights()}
    for name, parameter in engine._module.named_parameters():
        master = plain.masters[name]
        held = safe_get_full_fp32_param(parameter)  # None if there are no separate master weights
        masters.append(float(((parameter if held is None else held) - master).detach().abs().max()))
        published.append(float((weights[name] - plain.module.get_parameter(name)).abs().max()))
        for moment in ("exp_avg", "exp_avg_sq"):
            ours = moment_of(engine, parameter, moment)
            theirs = plain.optimizer.state[master][moment]
            moments.append(float((ours - theirs).abs().max() / theirs.abs().max()))
    return {"masters": max(masters), "moments": max(moments), "published": max(published)}


def moment_of(engine: DeepSpeedEngine, parameter: nn.Parameter, name: str) -> Tensor:
    optimizer = engine._engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):  # stage 0 in float32
        held: Tensor = optimizer.state[parameter][name]
        return held
    if getattr(optimizer, "_hp_optimizer_states_linked", False) and not hasattr(optimizer, "linked_by_test"):
        # Stages 1 and 2 link moments when the first parameter group has some: link again, now that the second one has.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
        optimizer.linked_by_test = True
    whole: Tensor = safe_get_full_optimizer_state(parameter, name)
    return whole


def main() -> None:
    from workers.engines.deepspeed_engine import join

    rank, world_size, port = map(int, sys.argv[1:4])
    out = Path(sys.argv[4])
    device = join(rank=rank, world_size=world_size, address="127.0.0.1", port=port, cuda=False)
    for name, (task, path, dtype, fields) in json.loads(sys.argv[5]).items():
        run = {"loading": loading, "updates": updates}[task]
        directory = out / name
        directory.mkdir(exist_ok=True)
        found = run(path, dtype, LearnerConfig(num_ranks=world_size, **fields), device, directory)
        if rank == 0:
            (out / f"{name}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
