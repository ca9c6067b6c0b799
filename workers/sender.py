"""Publication of a learner's weights to the engines, from one rank: all ranks gather, and some send or write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.config import ModelConfig
from workers.engines.base import TrainingEngine
from workers.weights import Manifest, Rendezvous, describe

if TYPE_CHECKING:
    from workers.segment import Segment


class WeightSender:
    """Sender of one rank's weights, by shared memory (CPU), by NCCL or, of adapters, by files."""

    def __init__(self, engine: TrainingEngine, model: ModelConfig) -> None:
        self._engine, self._model = engine, model
        self._manifest: Manifest | None = None  # set by `open`
        self._segment: Segment | None = None
        self._nccl: Any = None

    def open(self, segment: str | None, rendezvous: Rendezvous | None) -> Manifest:
        """Set up publication, once per process: through a shared-memory segment or by NCCL."""
        manifest = describe(self._engine.describe_weights(), segment=segment, rendezvous=rendezvous)
        if segment is not None and self._engine.rank == 0:
            from workers.segment import Segment

            self._segment = Segment(segment, manifest.num_bytes)
        self._manifest = manifest
        return manifest

    def send(self) -> None:
        """Publish the current weights. Every rank takes part in gathering them."""
        assert self._manifest is not None
        if self._manifest.rendezvous is not None and self._engine.rank == 0:
            if self._nccl is None:
                from workers.engines.vllm_sender import NcclSender

                self._nccl = NcclSender(self._manifest, self._engine.weights)
            self._nccl.send()
        elif self._segment is not None:
            self._segment.write(self._manifest.entries, self._engine.weights())
        else:
            self._gather()

    def _gather(self) -> None:
        """Take part in gathering what another rank sends. This rank imports no vLLM, which takes seconds."""
        for _ in self._engine.weights():
            pass
        if self._engine.device.type == "cuda":  # the next update may write what is still being gathered
            import torch

            torch.cuda.current_stream().synchronize()

    def write_adapter(self, directory: Path, version: int | None = None) -> None:
        """Write the adapters to a directory (rank 0). Every rank takes part in gathering them."""
        from workers.engines import lora

        assert self._model.lora is not None
        assert self._model.path is not None
        # Copied at once: under ZeRO-3 a tensor is gathered only until the next one is yielded.
        tensors = {name: tensor.cpu().clone() for name, tensor in self._engine.adapter() if self._engine.rank == 0}
        if self._engine.rank == 0:
            lora.write(directory, self._model.lora, self._model.path, tensors, version)

    def close(self) -> None:
        """Remove the shared-memory segment."""
        if self._segment is not None:
            self._segment.remove()
