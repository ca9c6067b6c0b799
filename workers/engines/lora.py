"""Low-rank adapters in a frozen model (LoRA, arXiv 2106.09685), by peft. The only file that imports peft.

    W' = W + (lora_alpha / r) · B A        W [out, in] frozen, A [r, in], B [out, r]

B starts at zero, so the policy starts as its base model. With the adapters disabled it is the base model again, so a
run with adapters needs no second model as its reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from workers.config import LoraConfig
from workers.engines.heads import decoder_of, output_layer_of
from workers.segment import checksum, save_tensors

AnyTensor = TypeVar("AnyTensor", bound=Tensor)
NAME = "default"  # peft's name of a model's only adapter
MAMBA_PROJECTIONS = (".out_proj", ".dt_proj")  # of a mixer, which also has a `conv1d`
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


class LoraError(Exception):
    """Adapters cannot be placed as the recipe says. The message names the possible layers."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Adapter of one linear layer: `down` is A [r, in], `up` is B [out, r].

    `transposed`: the weight of the layer is [in, out], as in GPT-2.
    """

    down: nn.Parameter
    up: nn.Parameter
    scaling: float
    transposed: bool = False

    def merged(self, weight: Tensor) -> Tensor:
        """Return W + scaling · B A, computed in float32 and rounded once. `weight` is not modified."""
        delta = self.up.detach().float() @ self.down.detach().float()
        return (weight.float() + self.scaling * (delta.T if self.transposed else delta)).to(weight.dtype)


# ------------------------------------------------------------------------------------------------ in the model


def attach(model: Any, config: LoraConfig) -> None:
    """Freeze the model and add adapters to its linear layers (never to the output layer), in place.

    The experts of a mixture are parameters of three dimensions, not linear layers: they stay frozen, and so do layers
    whose names in a file peft could confuse with them. A is initialised from the process's seed, regardless of random
    draws while loading, so that every rank and every ZeRO stage starts with the same values.

    Raises:
        LoraError: a name in `target_modules` does not match such a layer.
    """
    from peft import inject_adapter_in_model

    linear = _linear(model)
    wanted = linear
    if config.target_modules != "all-linear":
        _check_names(config.target_modules, linear)
        wanted = [name for name in linear if any(_means(target, name) for target in config.target_modules)]
    if not wanted:
        raise LoraError(f"model.lora: {type(model).__name__} has no linear layers that could have adapters; remove it")
    settings = _peft_config(config, None, tuple(wanted))
    settings.fan_in_fan_out = all(_transposed(model.get_submodule(name)) for name in wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        inject_adapter_in_model(settings, model, NAME)
    # An adapter that `adapters` does not return would be trained, but neither merged nor published.
    adapted = [name for name, _ in _layers(model)]
    if adapted != wanted:
        unexpected = ", ".join(sorted(set(adapted) ^ set(wanted))[:3])
        raise LoraError(f"model.lora: peft added adapters to other layers than those selected ({unexpected} …)")
    _refuse_shared(model)
    # The embeddings are frozen too. ZeRO-3 follows the backward pass by the gradients of layer inputs: without them it
    # would release the first layer's weights too early.
    model.enable_input_require_grads()


def _linear(model: Any) -> list[str]:
    """Return the names of the layers that can have adapters, in the model's order.

    In a vision-language model these are the layers that text passes through. Cross-attention layers of a former
    encoder-decoder are left out.
    """
    head = output_layer_of(model)
    modules = dict(model.named_modules())
    text = {id(m) for m in decoder_of(model).modules()}
    linear = [n for n, m in modules.items() if id(m) in text and (_plain(m) or _transposed(m)) and m is not head]
    linear = [n for n in linear if ".encoder_attn." not in n]
    # The kernel of a Mamba mixer reads the weights of these layers directly and would ignore their adapters.
    linear = [n for n in linear if not (n.endswith(MAMBA_PROJECTIONS) and f"{n.rpartition('.')[0]}.conv1d" in modules)]
    kept = _apart_from_experts(model, {name.rpartition(".")[2] for name in linear})
    return [name for name in linear if name.rpartition(".")[2] in kept]


def _plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward  # a router returns a tuple


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # linear layer of the GPT-2 family, with weight [in, out]


def _apart_from_experts(model: Any, names: set[str]) -> set[str]:
    """Return the layer names that peft does not confuse with the experts or routers of a mixture."""
    from peft.utils.transformers_weight_conversion import (
        convert_peft_config_for_transformers,
        get_model_conversion_mapping,
    )

    settings = _peft_config(LoraConfig(), None, tuple(sorted(names)))
    try:
        convert_peft_config_for_transformers(settings, model, get_model_conversion_mapping(model))
    except ValueError as error:  # some of the layers that are fused in an expert do not exist elsewhere
        raise LoraError(f"model.lora: {error}") from error
    return set(settings.target_modules or ())


def _refuse_shared(model: nn.Module) -> None:
    """Raise LoraError if layers share a weight: their adapter would be merged under only one of its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shared = [sharing for sharing in names.values() if len(sharing) > 1 and ".base_layer." in sharing[0]]
    if shared:
        raise LoraError(
            f"model.lora: {shared[0][0].replace('.base_layer', '')} is shared by {len(shared[0])} layers, and cannot "
            "have adapters here; train all weights, or name other target_modules"
        )


def _check_names(wanted: Iterable[str], linear: Iterable[str]) -> None:
    names = list(linear)
    for target in wanted:
        if not any(_means(target, name) for name in names):
            possible = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise LoraError(
                f"model.lora.target_modules: `{target}` is not a linear layer of the model's decoder (experts of a "
                f"mixture are not supported); use some of: {possible}"
            )


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Return every adapter by the name of its module, in the model's order."""
    return {
        name: Adapter(
            module.lora_A[NAME].weight, module.lora_B[NAME].weight, module.scaling[NAME], module.fan_in_fan_out
        )
        for name, module in _layers(model)
    }


def merged(weights: Mapping[str, Tensor], adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Return the weights, each merged with the adapter of the same name if there is one."""
    return {
        name: adapters[name].merged(weight) if name in adapters else weight.detach() for name, weight in weights.items()
    }


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Return every layer that has an adapter, with its name."""
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def base_names(named: Iterable[tuple[str, AnyTensor]]) -> dict[str, AnyTensor]:
    """Return the weights of the base by the names they have in a model without adapters."""
    return {name.replace(".base_layer.", "."): p for name, p in named if ".lora_" not in name}


@contextmanager
def called(model: nn.Module) -> Iterator[set[str]]:
    """Collect the names of the adapted layers that are called within the context."""
    names: set[str] = set()
    hooks = [
        layer.register_forward_pre_hook(lambda _layer, _inputs, name=name: names.add(name))
        for name, layer in _layers(model)
    ]
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Disable the adapters within the context.

    peft's own switch also toggles `requires_grad` of parameters on which DeepSpeed has gradient hooks. Here only the
    flag that the forward pass reads is changed.
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
    """Return the names in peft's files of A and B of a module."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def whole_name(weight: str) -> str:
    """Return the name in peft's files of a fully trained weight (`modules_to_save`)."""
    return f"base_model.model.{weight}"


def write(
    directory: Path, config: LoraConfig, base: str, tensors: Mapping[str, Tensor], version: int | None = None
) -> None:
    """Write an adapter directory that peft, transformers and vLLM can load.

    `version` is the version of the policy, which is recorded in the file; None: the result of the run. Tensors of fully
    trained layers make it the adapter of a reward model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    modules = [name.removesuffix(".weight") for name in tensors]
    # Only peft understands "all-linear": vLLM needs the names.
    adapted = {name.split(".")[-2] for name in modules if name.endswith((".lora_A", ".lora_B"))}
    targets = tuple(sorted(adapted)) if config.target_modules == "all-linear" else config.target_modules
    whole = [name.rpartition(".")[2] for name in modules if not name.endswith((".lora_A", ".lora_B"))]
    settings = _peft_config(config, base, targets, whole)
    settings.inference_mode = True
    settings.save_pretrained(str(directory))
    metadata = {}
    if version is not None:
        metadata = {"version": str(version), "checksums": json.dumps(_checksums(tensors.items()))}
    save_tensors(tensors, directory / WEIGHTS, metadata)


def written_version(directory: Path) -> int | None:
    """Return the version recorded in an adapter directory; None: no version, or no adapter.

    Raises:
        LoraError: the checksums of the weights do not match.
    """
    if not (directory / WEIGHTS).is_file() or not (directory / SETTINGS).is_file():
        return None
    with safe_open(directory / WEIGHTS, framework="pt") as file:
        metadata = file.metadata() or {}
        if not metadata.get("version", "").isdigit():
            return None
        checksums = _checksums((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    if checksums != json.loads(metadata["checksums"]):
        raise LoraError(f"{directory / WEIGHTS} is corrupt: its checksums do not match")
    return int(metadata["version"])


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
