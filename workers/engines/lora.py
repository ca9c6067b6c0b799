"""The only file that imports peft, where it is used: low-rank adapters in a frozen model (LoRA, arXiv 2106.09685).

    W' = W + (lora_alpha / r) · B A        W [out, in] frozen, A [r, in], B [out, r]

B starts at zero, so the policy starts as its base; and it is its base again whenever the adapters are switched off,
which is why a run with adapters needs no second model as its reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from workers.config import LoraConfig
from workers.weights import checksum

NAME = "default"  # peft's name of a model's only adapter
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


class LoraError(Exception):
    """Adapters cannot be put where the recipe wants them; the message says where they can."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What one linear layer learns: `down` is A [r, in], `up` is B [out, r]."""

    down: nn.Parameter
    up: nn.Parameter
    scaling: float

    def merged(self, weight: Tensor) -> Tensor:
        """W + scaling · B A, computed in float32 and rounded once; `weight` itself stays as it is."""
        delta = self.up.detach().float() @ self.down.detach().float()
        return (weight.float() + self.scaling * delta).to(weight.dtype)


# ------------------------------------------------------------------------------------------------ in the model


def attach(model: Any, config: LoraConfig) -> None:
    """Freeze the model and give its linear layers (never the output layer) adapters, in place.

    A is drawn from the process's seed, whatever loading has drawn before: every rank and every ZeRO stage starts alike.

    Raises:
        LoraError: when a name in `target_modules` is that of no linear layer.
    """
    from peft import inject_adapter_in_model

    head = model.get_output_embeddings()
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if config.target_modules != "all-linear":
        _check_names(config.target_modules, linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        inject_adapter_in_model(_peft_config(config, None, config.target_modules), model, NAME)
    # The embeddings are frozen too. ZeRO-3 follows the backward pass by what has a gradient on its way into a layer and
    # would take the first layer's weights away too early.
    model.enable_input_require_grads()


def _check_names(wanted: Iterable[str], linear: Iterable[str]) -> None:
    names = list(linear)
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            there = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise LoraError(
                f"model.lora.target_modules: `{target}` is no linear layer of the model's decoder; there are: {there}"
            )


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Every adapter under the Hugging Face name of the module it is in, in the model's order."""
    return {
        name: Adapter(module.lora_A[NAME].weight, module.lora_B[NAME].weight, module.scaling[NAME])
        for name, module in _layers(model)
    }


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Every layer that has adapters, by its name."""
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def base_names(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    """The base's parameters under the names they have in a model without adapters."""
    return {name.replace(".base_layer.", "."): p for name, p in named if ".lora_" not in name}


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within it the model is its base.

    peft's own switch also turns `requires_grad` off and on, and DeepSpeed has hung its gradient hooks on these
    parameters: only the flag that the forward pass looks at is turned here.
    """
    layers = [layer for _, layer in _layers(model)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


# ------------------------------------------------------------------------------------------------ directories


def tensor_names(module: str) -> tuple[str, str]:
    """The names that peft gives to A and B of a module in a file."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def whole_name(weight: str) -> str:
    """The name that peft gives in a file to a weight that is trained whole: its `modules_to_save`."""
    return f"base_model.model.{weight}"


def write(
    directory: Path, config: LoraConfig, base: str, tensors: Mapping[str, Tensor], version: int | None = None
) -> None:
    """An adapter directory that peft, transformers and vLLM load. `version` is that of the policy it was taken from,
    noted in the file itself; None: it is the run's result. With a score layer among the tensors it is a reward model's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    modules = [name.removesuffix(".weight") for name in tensors]
    # "all-linear" is peft's word alone: vLLM wants the names.
    adapted = {name.split(".")[-2] for name in modules if name.endswith((".lora_A", ".lora_B"))}
    targets = tuple(sorted(adapted)) if config.target_modules == "all-linear" else config.target_modules
    whole = [name.rpartition(".")[2] for name in modules if not name.endswith((".lora_A", ".lora_B"))]
    settings = _peft_config(config, base, targets, whole)
    settings.inference_mode = True
    settings.save_pretrained(str(directory))
    noted = {} if version is None else {"version": str(version), "checksums": json.dumps(_checksums(tensors.items()))}
    save_file(dict(tensors), directory / WEIGHTS, metadata={"format": "pt"} | noted)


def written_version(directory: Path) -> int | None:
    """The version noted in an adapter directory; None when there is none, or no adapter.

    Raises:
        LoraError: its weights are not what was written.
    """
    if not (directory / WEIGHTS).is_file() or not (directory / SETTINGS).is_file():
        return None
    with safe_open(directory / WEIGHTS, framework="pt") as file:
        noted = file.metadata() or {}
        if not noted.get("version", "").isdigit():
            return None
        found = _checksums((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    if found != json.loads(noted["checksums"]):
        raise LoraError(f"{directory / WEIGHTS} is not what was written: its checksums are others")
    return int(noted["version"])


def _checksums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    return {name: checksum(tensor) for name, tensor in tensors}


def _peft_config(
    config: LoraConfig, base: str | None, targets: tuple[str, ...] | str, whole: Sequence[str] = ()
) -> Any:
    from peft import LoraConfig as PeftConfig

    return PeftConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="SEQ_CLS" if whole else "CAUSAL_LM",
        modules_to_save=list(whole) or None,
        base_model_name_or_path=base,
    )
