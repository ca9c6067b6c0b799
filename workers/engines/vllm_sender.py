"""Sending side of a weight publication by NCCL. Imports vLLM's weight transfer, but no engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from workers.engines.base import EngineError
from workers.weights import Manifest


class NcclSender:
    """Sender of weights by NCCL, on rank 0 of the policy. Not run on a GPU yet.

    On every other rank vLLM's trainer would only iterate over the weights, which needs no vLLM (`WeightSender`).
    The orchestrator drives the receiving side (`VllmEngine.receive`), so the client of vLLM's trainer does nothing.
    """

    def __init__(self, manifest: Manifest, weights: Any) -> None:
        if manifest.rendezvous is None:
            raise EngineError("an NCCL publication needs a rendezvous")
        meet = manifest.rendezvous
        self._trainer = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                master_address=meet.address, master_port=meet.port, world_size=meet.world_size, packed=True, rank=0
            ),
            client=_NullClient(),
            source=_Source(manifest, weights),
        )

    def send(self) -> None:
        self._trainer.send_weights()


class _NullClient:
    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class _Source(WeightSource):  # type: ignore[misc]
    """Weights of a learner in the interface of vLLM's trainer. `weights()` starts a new pass."""

    def __init__(self, manifest: Manifest, weights: Any) -> None:
        self._manifest, self._weights = manifest, weights

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(e.name, getattr(torch, e.dtype), e.shape) for e in self._manifest.entries]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._weights())
