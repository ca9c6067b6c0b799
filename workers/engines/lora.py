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
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from workers.config import LoraConfig
from workers.engines.heads import decoder_of, output_layer_of
from workers.weights import checksum, save_tensors

AnyTensor = TypeVar("AnyTensor", bound=Tensor)
NAME = "default"  # peft's name of a model's only adapter
MIXED = (".out_proj", ".dt_proj")  # beside a Mamba mixer's `conv1d`
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


class LoraError(Exception):
    """Adapters cannot be put where the recipe wants them; the message says where they can."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What one linear layer learns: `down` is A [r, in], `up` is B [out, r]. `transposed`: the layer's weight is
    [in, out], as GPT-2's are."""

    down: nn.Parameter
    up: nn.Parameter
    scaling: float
    transposed: bool = False

    def merged(self, weight: Tensor) -> Tensor:
        """W + scaling · B A, computed in float32 and rounded once; `weight` itself stays as it is."""
        delta = self.up.detach().float() @ self.down.detach().float()
        return (weight.float() + self.scaling * (delta.T if self.transposed else delta)).to(weight.dtype)


# ------------------------------------------------------------------------------------------------ in the model


def attach(model: Any, config: LoraConfig) -> None:
    """Freeze the model and give its linear layers (never the output layer) adapters, in place.

    A mixture's experts are no linear layers but parameters of three dimensions: they are frozen, and so are layers that
    peft could not tell from them in a file. A is drawn from the process's seed, whatever loading has drawn before:
    every rank and every ZeRO stage starts alike.

    Raises:
        LoraError: when a name in `target_modules` is that of no such layer.
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
    # What has adapters that `adapters` does not know would be trained, and neither merged nor published.
    found = [name for name, _ in _layers(model)]
    if found != wanted:
        odd = ", ".join(sorted(set(found) ^ set(wanted))[:3])
        raise LoraError(f"model.lora: peft put adapters elsewhere than in the layers that were named ({odd} …)")
    _refuse_shared(model)
    # The embeddings are frozen too. ZeRO-3 follows the backward pass by what has a gradient on its way into a layer and
    # would take the first layer's weights away too early.
    model.enable_input_require_grads()


def _linear(model: Any) -> list[str]:
    """Every layer that can have adapters, by its name, in the model's order: of a vision-language model those that text
    passes through, of a decoder that was part of an encoder-decoder none of its cross-attention."""
    head = output_layer_of(model)
    modules = dict(model.named_modules())
    text = {id(m) for m in decoder_of(model).modules()}
    linear = [n for n, m in modules.items() if id(m) in text and (_plain(m) or _transposed(m)) and m is not head]
    linear = [n for n in linear if ".encoder_attn." not in n]
    # A Mamba mixer's kernel takes these layers' weights and would pass their adapters by.
    linear = [n for n in linear if not (n.endswith(MIXED) and f"{n.rpartition('.')[0]}.conv1d" in modules)]
    kept = _apart_from_experts(model, {name.rpartition(".")[2] for name in linear})
    return [name for name in linear if name.rpartition(".")[2] in kept]


def _plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward  # a router's answers a tuple


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # transformers', of the GPT-2 family: a linear layer of weight [in, out]


def _apart_from_experts(model: Any, names: set[str]) -> set[str]:
    """Those of the names of linear layers by which peft does not mean a mixture's experts or routers."""
    from peft.utils.transformers_weight_conversion import (
        convert_peft_config_for_transformers,
        get_model_conversion_mapping,
    )

    asked = _peft_config(LoraConfig(), None, tuple(sorted(names)))
    try:
        convert_peft_config_for_transformers(asked, model, get_model_conversion_mapping(model))
    except ValueError as error:  # some of the layers that are fused in an expert are not there otherwise
        raise LoraError(f"model.lora: {error}") from error
    return set(asked.target_modules or ())


def _refuse_shared(model: nn.Module) -> None:
    """A weight that several layers share has one adapter in memory, and would be merged under one of its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shared = [found for found in names.values() if len(found) > 1 and ".base_layer." in found[0]]
    if shared:
        raise LoraError(
            f"model.lora: {shared[0][0].replace('.base_layer', '')} is shared by {len(shared[0])} layers, and cannot "
            "have adapters here; train all weights, or name other target_modules"
        )


def _check_names(wanted: Iterable[str], linear: Iterable[str]) -> None:
    names = list(linear)
    for target in wanted:
        if not any(_means(target, name) for name in names):
            there = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise LoraError(
                f"model.lora.target_modules: `{target}` is no linear layer of the model's decoder (a mixture's experts "
                f"have none); there are: {there}"
            )


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Every adapter under the name of the module it is in, in the model's order."""
    return {
        name: Adapter(
            module.lora_A[NAME].weight, module.lora_B[NAME].weight, module.scaling[NAME], module.fan_in_fan_out
        )
        for name, module in _layers(model)
    }


def merged(weights: Mapping[str, Tensor], learned: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Weights by name, each with what the adapter of that name has learned; the others as they are."""
    return {
        name: learned[name].merged(weight) if name in learned else weight.detach() for name, weight in weights.items()
    }


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Every layer that has adapters, by its name."""
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def base_names(named: Iterable[tuple[str, AnyTensor]]) -> dict[str, AnyTensor]:
    """The base's weights under the names they have in a model without adapters."""
    return {name.replace(".base_layer.", "."): p for name, p in named if ".lora_" not in name}


@contextmanager
def called(model: nn.Module) -> Iterator[set[str]]:
    """Within it, gather the names of the layers with adapters whose forward pass is called."""
    found: set[str] = set()
    hooks = [
        layer.register_forward_pre_hook(lambda _layer, _given, name=name: found.add(name))
        for name, layer in _layers(model)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


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
    save_tensors(tensors, directory / WEIGHTS, noted)


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
