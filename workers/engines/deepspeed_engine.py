"""Training engine by DeepSpeed: one rank of a ZeRO-partitioned model. The only file that imports deepspeed."""

from __future__ import annotations

import io
import os
import shutil
import socket
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from workers import progress
from workers.config import Head, LearnerConfig, ModelConfig, Optimisation
from workers.engines import hf_buffers, hf_decay, hf_files, hf_models, lora
from workers.engines.attention import layout_of
from workers.engines.base import EngineError
from workers.engines.divergence import OutputLayer, Target
from workers.engines.hf_check import check_rows
from workers.engines.network import interface_to
from workers.packing import Packed

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
TAG = "state"  # directory of DeepSpeed's checkpoint
STATE = "rlhf"  # key of our state in DeepSpeed's checkpoint


def join(*, rank: int, world_size: int, address: str, port: int, cuda: bool) -> torch.device:
    """Join the gang's process group. Return the device of this rank."""
    local_rank = 0  # each rank sees exactly one GPU
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
    )
    if interface := interface_to(address):  # gloo itself takes the one of this host's name, which may be loopback
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if not cuda:
        torch.set_num_threads(1)
        # DeepSpeed's shared-memory all-reduce for CPUs is compiled at first use and leaves files behind if a rank is
        # killed. gloo is fast enough for models that are trained on a CPU.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if cuda else "gloo"
    store = _store(rank, world_size, address, port)
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, world_size=world_size, rank=rank, store=store)
    deepspeed.init_distributed(backend, timeout=COLLECTIVE_TIMEOUT, verbose=False)  # uses the existing group
    return torch.device("cuda", local_rank) if cuda else torch.device("cpu")


def _store(rank: int, world_size: int, address: str, port: int) -> TCPStore:
    """Create the store through which the ranks meet.

    The store has no authentication and listens on every interface by default: here only on that of `address`.
    """
    listening = None
    if rank == 0:
        with socket.create_server((address, port)) as server:
            listening = server.detach()
    return TCPStore(
        address, port, world_size, is_master=rank == 0, timeout=COLLECTIVE_TIMEOUT, master_listen_fd=listening
    )


class DeepSpeedEngine:
    """Implementation of `TrainingEngine`; without optimiser settings, for inference alone."""

    def __init__(
        self,
        model: ModelConfig,
        config: LearnerConfig,
        optimisation: Optimisation | None,
        *,
        head: Head,
        device: torch.device,
        seed: int,
        divergence: tuple[OutputLayer, float] | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        """Load the model and check it.

        Args:
            optimisation: settings of the optimiser; None: the model is not trained.
            head: output of the model for each token; `labels`: names of its scores, if it has several.
            divergence: output layer of the model from which `forward` can compute the divergence D_β, and β.

        Raises:
            ModelError: the model is not supported.
        """
        assert model.path is not None
        self._divergence = divergence and (divergence[0].to(device), divergence[1])
        torch.manual_seed(seed)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = device
        settings = _settings(model, config, optimisation)
        self._module: Any = hf_models.load(
            model.path,
            model.dtype,
            head=head,
            chunk=config.logprob_chunk_tokens,
            seed=seed,
            deepspeed=settings if config.zero_stage == 3 else None,
            lora=model.lora,
            labels=labels,
        )
        self._adapters = hf_files.adapters_of(self._module)
        if config.gradient_checkpointing:
            hf_models.enable_checkpointing(self._module)
        if config.zero_stage == 3:
            # A decoder layer is gathered as one unit: hooks on each of its parts took a third of a tiny step.
            deepspeed.utils.set_z3_leaf_modules(
                self._module, hf_models.layer_classes(self._module), raise_if_not_found=False
            )
        parameters = {"model_parameters": _groups(self._module, optimisation)} if optimisation else {}
        with redirect_stdout(io.StringIO()):  # DeepSpeed prints its memory
            self._engine: Any = deepspeed.initialize(model=self._module, config=settings, **parameters)[0]
        self._decays = [group["weight_decay"] for group in self._engine.optimizer.param_groups] if optimisation else []
        hf_buffers.recompute(self._module)
        self._stage, self.apart = config.zero_stage, self._module.packing.apart
        if optimisation is not None and head != "values":
            self.describe_weights()  # a model that cannot be exported is refused now
        check_rows(self._module, device, path=model.path, longest=config.tokens_per_micro_batch)

    # -------------------------------------------------------------------------------------------- compute

    def forward(
        self, packed: Packed, temperature: float = 1.0, reference_hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        hf_models.set_loss_mode(self._module)
        further: tuple[Target, ...] = ()
        if reference_hidden is not None:
            assert self._divergence is not None
            layer, beta = self._divergence
            further = (Target(hidden=reference_hidden, layer=layer, beta=beta),)
        return cast("tuple[Tensor, Tensor | None]", self._engine(*self._inputs(packed), temperature, *further))

    def infer(self, packed: Packed, temperature: float = 1.0, *, adapted: bool = True) -> Tensor:
        self._engine.eval()
        with torch.no_grad(), nullcontext() if adapted else lora.switched_off(self._module):
            return cast(Tensor, self._engine(*self._inputs(packed), temperature)[0])

    def hidden(self, packed: Packed) -> Tensor:
        """Return the last hidden states from which the T targets are predicted, without gradient: [T, h]."""
        self._engine.eval()
        tokens, positions, layout, predictors, _ = self._inputs(packed)
        with torch.no_grad():
            return cast(Tensor, self._engine(tokens, positions, layout, predictors, None, 1.0)[0])

    def _inputs(self, packed: Packed) -> tuple[Any, ...]:
        layout = layout_of(packed, self.device)
        tokens, positions, predictors, targets = (
            self.tensor(a) for a in (packed.tokens, packed.positions, packed.predictors, packed.targets)
        )
        return tokens, positions, layout, predictors, targets

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Copy an array to this rank's device. Integers become int64, other numbers float32."""
        wide = array.astype(np.int64) if array.dtype.kind == "i" else array.astype(np.float32)
        return torch.from_numpy(wide).to(self.device)

    # -------------------------------------------------------------------------------------------- optimise

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks, but losses here are shares of a sum over ranks.
        self._engine.backward(loss * self.world_size)

    def update(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm: Any = None
        if isinstance(self._engine.optimizer, torch.optim.Optimizer):  # stage 0 in float32: DeepSpeed has no norm
            norm = nn.utils.get_total_norm([p.grad for p in self._module.parameters() if p.grad is not None])
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0 if norm is None else norm)

    def sum(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def reset_optimizer(self) -> None:
        for state in self._states():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    value.zero_()  # in place: DeepSpeed saves and loads views of it
                else:
                    state[name] = 0

    def reseed(self, seed: int) -> None:
        torch.manual_seed(seed + self.rank)

    # -------------------------------------------------------------------------------------------- weights

    def describe_weights(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return hf_files.describe(self._module)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for layer in hf_files.by_layer(hf_files.weight_names(self._module)):
            adapters = {n: a for n in layer if (a := self._adapters.get(n.removesuffix(".weight")))}
            with self._gathered([*layer.values(), *(p for a in adapters.values() for p in (a.down, a.up))]):
                yield from hf_files.as_stored(self._module, lora.merged(layer, adapters)).items()
            progress.report()

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        for module, adapter in self._adapters.items():
            pair = (adapter.down, adapter.up)
            with self._gathered(pair):
                yield from zip(lora.tensor_names(module), (p.detach() for p in pair), strict=True)
        for name, parameter in hf_files.trained_whole(self._module).items() if self._adapters else ():
            with self._gathered([parameter]):
                yield lora.whole_name(name), parameter.detach()

    @contextmanager
    def _gathered(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Gather partitioned weights within the context. All ranks enter it together."""
        # Tied weights occur twice, and buffers are never partitioned.
        unique = list({id(p): p for p in weights if isinstance(p, nn.Parameter)}.values())
        with deepspeed.zero.GatheredParameters(unique, enabled=self._stage == 3), torch.no_grad():
            yield

    # -------------------------------------------------------------------------------------------- state

    def save(self, directory: Path, state: Mapping[str, Any]) -> Sequence[Path]:
        with self._writes() as written:
            # The frozen base of adapters is not saved: it is at model.path.
            self._engine.save_checkpoint(
                str(directory),
                tag=TAG,
                client_state={STATE: dict(state)},
                exclude_frozen_parameters=bool(self._adapters),
            )
        if self._engine.zero_optimization() and not written:
            raise EngineError(f"rank {self.rank} wrote no part of the checkpoint {directory}")
        # DeepSpeed's rank 0 writes the name of the tag and its recovery scripts beside the states.
        return [*written, *(p for p in directory.iterdir() if p.is_file())] if self.rank == 0 else written

    @contextmanager
    def _writes(self) -> Iterator[list[Path]]:
        """Collect the files that DeepSpeed writes for this rank within the context."""
        writer, written = self._engine.checkpoint_engine, list[Path]()
        save = writer.save

        def noted(state_dict: Any, path: str) -> None:
            save(state_dict, path)
            written.append(Path(path))

        writer.save = noted
        try:
            yield written
        finally:
            del writer.save  # the method of its class remains

    def load(self, directory: Path, saved_ranks: int | None = None) -> Mapping[str, Any]:
        if saved_ranks is None or self._stage == 0:  # at stage 0 rank 0 alone writes
            saved_ranks = len(list((directory / TAG).glob("*_optim_states.pt")))
        if saved_ranks in (0, self.world_size):  # 0: stage 0, where every rank has the full state
            return self._load(directory, TAG)
        with self._resharded(directory) as universal:
            return self._load(universal.parent, universal.name)

    def _load(self, directory: Path, tag: str) -> Mapping[str, Any]:
        path, state = self._engine.load_checkpoint(str(directory), tag=tag, load_module_strict=not self._adapters)
        if path is None:
            raise FileNotFoundError(f"{socket.gethostname()} sees no DeepSpeed checkpoint in {directory}/{tag}")
        if self._decays:
            self._repair_groups()
        return cast("Mapping[str, Any]", state[STATE])

    def _repair_groups(self) -> None:
        """Restore the weight decay and step counter of each parameter group.

        When DeepSpeed loads a universal checkpoint at stage 3, it gives all groups the settings of the first one, and
        one shared step counter, which each group would advance.
        """
        for group, decay in zip(self._engine.optimizer.param_groups, self._decays, strict=True):
            group["weight_decay"] = decay
        for state in self._states():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()

    def _states(self) -> Iterable[dict[str, Any]]:
        """Return the states of torch's optimiser inside DeepSpeed's wrapper."""
        inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        return cast("Iterable[dict[str, Any]]", inner.state.values())

    @contextmanager
    def _resharded(self, directory: Path) -> Iterator[Path]:
        """Convert a checkpoint of another number of ranks to DeepSpeed's universal format within the context.

        The format holds each parameter and its moments in full, and each rank reads its part. Rank 0 writes it beside
        the checkpoint and removes it afterwards.
        """
        universal = directory.parent.with_name(f".{directory.parent.name}-{directory.name}.partial")
        if self.rank == 0:
            shutil.rmtree(universal, ignore_errors=True)
            with redirect_stdout(io.StringIO()):
                ds_to_universal.main(
                    Namespace(
                        input_folder=str(directory / TAG),
                        output_folder=str(universal),
                        num_extract_workers=1,
                        num_merge_workers=1,
                        keep_temp_folder=False,
                        strict=True,
                        inject_missing_state=True,
                    )
                )
        dist.barrier()
        if not universal.is_dir():
            raise EngineError(f"{socket.gethostname()} does not see {universal}: other ranks need a shared output_dir")
        self._engine._config.load_universal_checkpoint = True
        try:
            yield universal
        finally:
            self._engine._config.load_universal_checkpoint = False
        dist.barrier()
        if self.rank == 0:
            shutil.rmtree(universal)
            (universal.parent / "latest_universal").unlink(missing_ok=True)

    def free(self) -> None:
        """Release the engine's memory. The process group remains for the next engine. All ranks call it together."""
        self._engine.destroy()  # removes hooks, which refer to the modules
        # ZeRO-3 keeps references in two more places: a global stack, and caches of methods.
        modules = parameter_offload.FWD_MODULE_STACK
        modules[:] = [module for module in modules if module is not self._module]
        for method in vars(PartitionedParameterCoordinator).values():
            for cell in getattr(method, "__closure__", None) or ():
                if hasattr(cell.cell_contents, "cache_clear"):
                    cell.cell_contents.cache_clear()
        del self._engine, self._module, self._adapters

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def _groups(module: nn.Module, optimisation: Optimisation) -> list[dict[str, Any]]:
    """Group the trained parameters by whether weight decay applies to them; without weight decay, all in one group."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not optimisation.weight_decay:
        return [{"params": list(trained.values())}]
    decayed = hf_decay.decayed(module)
    groups = (
        {"params": [p for n, p in trained.items() if n in decayed], "weight_decay": optimisation.weight_decay},
        {"params": [p for n, p in trained.items() if n not in decayed], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def _settings(model: ModelConfig, config: LearnerConfig, optimisation: Optimisation | None) -> dict[str, Any]:
    """Return DeepSpeed's configuration."""
    mixed = model.dtype == "bfloat16"
    # DeepSpeed's stage 0 accumulates bfloat16 gradients in bfloat16, and starts AdamW with a dummy update that applies
    # weight decay. Stage 1 computes the correct update, sharded over ranks.
    zero: dict[str, Any] = {"stage": max(1, config.zero_stage) if mixed else config.zero_stage}
    if config.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = config.param_persistence_threshold
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # `backward` sets the boundaries, because the number of micro-batches varies
        "zero_optimization": zero,
        "bf16": {"enabled": mixed},
        "steps_per_print": 2**31,
    }
    if mixed:  # accumulate gradients in float32 over micro-batches and ranks
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"
    if optimisation is None:
        return settings
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    settings["gradient_clipping"] = optimisation.max_grad_norm
    settings["optimizer"] = {
        "type": "AdamW",
        "params": {
            "lr": optimisation.learning_rate,
            "betas": [optimisation.adam_beta1, optimisation.adam_beta2],
            "eps": optimisation.adam_epsilon,
            "weight_decay": optimisation.weight_decay,
            "torch_adam": not config.offload_optimizer,
        },
    }
    return settings
