"""A training engine for one process: the product's models and attention, torch's own AdamW, no process group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from workers.config import AlgorithmConfig, DistillConfig, Head, LearnerConfig, LoraConfig, ModelConfig, Optimisation
from workers.engines import hf_decay, hf_files, hf_models, lora
from workers.engines.attention import layout_of
from workers.engines.divergence import Target
from workers.learner import Learner
from workers.packing import Packed


class TorchEngine:
    """Training engine for one process: the product's models and attention, torch's own AdamW, no process group.

    The engine records the flat gradient and the learning rate of every update, the batches and temperatures of forward
    passes, and the arguments of `sum`. As one of several ranks it has only its own share of the gradient, and makes no
    updates; `sum_of_others` is what the other ranks contribute to `sum`.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        path: Path,
        optimisation: Optimisation,
        *,
        head: Head = "logprobs",
        rank: int = 0,
        world_size: int = 1,
        draw: int = 0,
        teacher: Path | None = None,
        adapters: LoraConfig | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        self._layer = teacher and hf_files.load_output_layer(ModelConfig(path=str(teacher), dtype="float32"))
        self.rank, self.world_size, self._optimisation = rank, world_size, optimisation
        self.module: Any = hf_models.load(
            str(path), "float32", head=head, chunk=64, seed=draw, lora=adapters, labels=labels
        )
        self.apart = self.module.packing.apart
        self.adapters = hf_files.adapters_of(self.module)
        self.optimizer = self._fresh()
        self.gradients: list[Tensor] = []
        self.learning_rates: list[float] = []
        self.forwards: list[Packed] = []
        self.inferred: list[Packed] = []
        self.temperatures: list[float] = []
        self.lasts: list[bool] = []
        self.summed: list[float] = []
        self.sum_of_others = 0.0

    def _fresh(self) -> torch.optim.AdamW:
        o = self._optimisation
        betas = (o.adam_beta1, o.adam_beta2)
        decayed = hf_decay.decayed(self.module)
        groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                groups[name not in decayed]["params"].append(parameter)
        return torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=o.adam_epsilon, weight_decay=o.weight_decay)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def forward(
        self, packed: Packed, temperature: float = 1.0, reference_hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        self.forwards.append(packed)
        self.temperatures.append(temperature)
        hf_models.set_loss_mode(self.module)
        if reference_hidden is None:
            return self._run(packed, temperature)
        assert self._layer is not None
        assert isinstance(self._optimisation, DistillConfig)
        target = Target(hidden=reference_hidden, layer=self._layer, beta=self._optimisation.beta)
        return self._run(packed, temperature, target)

    def infer(self, packed: Packed, temperature: float = 1.0, *, adapted: bool = True) -> Tensor:
        self.inferred.append(packed)
        self.module.eval()
        with torch.no_grad(), nullcontext() if adapted else lora.switched_off(self.module):
            return self._run(packed, temperature)[0]

    def _run(self, packed: Packed, temperature: float, *target: Target) -> Any:
        tokens, positions, predictors, targets = (
            torch.from_numpy(a.astype(np.int64))
            for a in (packed.tokens, packed.positions, packed.predictors, packed.targets)
        )
        return self.module(tokens, positions, layout_of(packed, self.device), predictors, targets, temperature, *target)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.lasts.append(last)
        loss.backward()

    def update(self, learning_rate: float) -> float:
        parameters = self._trained()
        self.gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        self.learning_rates.append(learning_rate)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._optimisation.max_grad_norm)
        if self.world_size == 1:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def sum(self, value: float) -> float:
        self.summed.append(value)
        return value + self.sum_of_others

    def reset_optimizer(self) -> None:
        self.optimizer = self._fresh()

    def reseed(self, seed: int) -> None:
        torch.manual_seed(seed + self.rank)

    def describe_weights(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return hf_files.describe(self.module)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for layer in hf_files.by_layer(hf_files.weight_names(self.module)):
            adapters = {n: a for n in layer if (a := self.adapters.get(n.removesuffix(".weight")))}
            yield from hf_files.as_stored(self.module, lora.merged(layer, adapters)).items()

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        for module, adapter in self.adapters.items():
            yield from zip(lora.tensor_names(module), (adapter.down.detach(), adapter.up.detach()), strict=True)
        for name, parameter in hf_files.trained_whole(self.module).items() if self.adapters else ():
            yield lora.whole_name(name), parameter.detach()

    def save(self, directory: Path, state: Mapping[str, Any]) -> list[Path]:
        directory.mkdir(parents=True)
        whole = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "state": dict(state)}
        torch.save(whole, path := directory / f"rank-{self.rank}.pt")
        return [path]

    def load(self, directory: Path, saved_ranks: int | None = None) -> Mapping[str, Any]:
        whole = torch.load(directory / f"rank-{self.rank}.pt", weights_only=True)
        self.module.load_state_dict(whole["model"])
        self.optimizer.load_state_dict(whole["optimizer"])
        return whole["state"]

    def close(self) -> None:
        pass


def learner_of(
    model: Path,
    algorithm: Mapping[str, Any],
    *,
    head: Head = "logprobs",
    budget: int = 10_000,
    rank: int = 0,
    world_size: int = 1,
    max_steps: int = 4,
    draw: int = 0,
    teacher: Path | None = None,
    adapters: LoraConfig | None = None,
) -> tuple[Learner, TorchEngine]:
    """Return a learner of `model` and its engine. `algorithm` has the form of a recipe."""
    config: Any = TypeAdapter(AlgorithmConfig).validate_python(dict(algorithm))
    engine = TorchEngine(
        model,
        config,
        head=head,
        rank=rank,
        world_size=world_size,
        draw=draw,
        teacher=teacher,
        adapters=adapters,
        labels=config.labels if head == "scores" else (),
    )
    settings = LearnerConfig(num_ranks=world_size, tokens_per_micro_batch=budget)
    model_config = ModelConfig(path=str(model), dtype="float32", lora=adapters)
    return Learner(engine, model_config, settings, config, head=head, seed=3, max_steps=max_steps), engine
