"""The reference role: the frozen policy's log-probabilities, by the learner's code, and the distance from it. A teacher
is a reference with a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from workers.config import LearnerConfig, ModelConfig, ReferenceConfig
from workers.engines import hf_models, memory
from workers.engines.base import VersionMismatch
from workers.engines.hf_check import check_rows
from workers.engines.inference import answer, asking
from workers.packing import Packed
from workers.scoring import Memory, score_tokens
from workers.types import SATURATED, Drift, Experience, TokenShard, log_ratios, merge

if TYPE_CHECKING:
    from workers.engines.deepspeed_engine import DeepSpeedEngine


class Reference:
    """One rank. With zero_stage 0 every rank holds the model; with 3 it is partitioned over them."""

    def __init__(
        self, model: ModelConfig, config: ReferenceConfig, *, rank: int, address: str, port: int, cuda: bool, chunk: int
    ) -> None:
        self._model, self._config, self._rank, self._chunk = model, config, rank, chunk
        if config.zero_stage == 3:
            from workers.engines import deepspeed_engine

            self._device = deepspeed_engine.join(
                rank=rank, world_size=config.num_ranks, address=address, port=port, cuda=cuda
            )
        else:
            torch.set_num_threads(torch.get_num_threads() if cuda else 1)
            self._device = torch.device("cuda" if cuda else "cpu")
        self._partitioned: DeepSpeedEngine | None = None
        self._whole: nn.Module | None = None
        assert model.path is not None
        self.load(model.path)

    def load(self, path: str, version: int = 0) -> None:
        """Replace the reference by the model in the directory `path`, `version` of the policy (a refresh, a resume)."""
        self._version = -1  # none, until it is whole
        self._memory = Memory()  # of this version's answers
        self.free()
        model = self._model.model_copy(update={"path": path})
        if self._config.zero_stage == 3:
            from workers.engines.deepspeed_engine import DeepSpeedEngine

            shards = LearnerConfig(num_ranks=self._config.num_ranks, logprob_chunk_tokens=self._chunk)
            self._partitioned = DeepSpeedEngine(model, shards, None, head="logprobs", device=self._device, seed=0)
            self._apart = self._partitioned.apart
        else:
            whole = hf_models.load_policy(path, model.dtype, chunk=self._chunk).to(self._device).eval()
            check_rows(whole, self._device, path=path, longest=self._config.tokens_per_micro_batch)
            self._whole, self._apart = whole, whole.packing.apart
        self._version = version

    def free(self) -> None:
        """Free the model that is held, so that there is never room taken for two."""
        if self._partitioned is not None:
            self._partitioned.free()
        held = self._partitioned is not None or self._whole is not None
        self._partitioned = self._whole = None
        if held:
            memory.give_back()

    def logprobs(self, parts: Sequence[Experience], temperature: float = 1.0, version: int | None = None) -> TokenShard:
        """Log-probabilities of this rank's share of the completions, under the distribution at `temperature`.

        Rows of a dataset come again in the next epoch: they are computed once per version of the reference. `version`:
        of the policy, that is to answer; None: the one that is held.

        Raises:
            VersionMismatch: when another one is held.
        """
        if version is not None and version != self._version:
            raise VersionMismatch(f"the reference holds version {self._version}, and was asked for version {version}")
        dataset = parts[0].logprobs is None
        return score_tokens(
            parts,
            lambda packed: self._infer(packed, temperature),
            rank=self._rank,
            world_size=self._config.num_ranks,
            budget=self._config.tokens_per_micro_batch,
            memory=self._memory if dataset and self._config.cache else None,
            apart=self._apart,
        )

    def hidden(self, parts: Sequence[Experience]) -> TokenShard:
        """The last hidden states [t, h] from which the tokens of this rank's share are predicted.

        An output layer makes whole distributions of them: V/h times less to send than its logits. Nothing is kept for
        later epochs. In bfloat16 they travel as their bits (uint16).
        """
        return score_tokens(
            parts,
            self._hidden,
            rank=self._rank,
            world_size=self._config.num_ranks,
            budget=self._config.tokens_per_micro_batch,
            apart=self._apart,
        )

    def _infer(self, packed: Packed, temperature: float) -> NDArray[np.float32]:
        if self._partitioned is not None:
            return self._partitioned.infer(packed, temperature).cpu().numpy()
        assert self._whole is not None
        return asking(self._whole, self._device, temperature)(packed)

    def _hidden(self, packed: Packed) -> NDArray[Any]:
        if self._partitioned is not None:
            states = self._partitioned.hidden(packed).cpu()
        else:
            assert self._whole is not None
            states = answer(self._whole, self._device, packed, hidden=True).cpu()
        return (states.view(torch.uint16) if states.dtype == torch.bfloat16 else states).numpy()

    def drift(self, parts: Sequence[Experience], shares: Sequence[TokenShard]) -> Drift:
        """Distance of the sampling policy from the reference that `shares` come from (k1 estimate of the KL)."""
        sums = log_ratios(merge(parts), shares)
        return Drift(
            kl=float(sums.mean()) if len(sums) else 0.0,
            spread=float(sums.std()) if len(sums) else 0.0,
            saturated=float((np.abs(sums) > SATURATED).mean()) if len(sums) else 0.0,
            num_completions=len(sums),
        )
