"""The reference role: log-probabilities of the frozen policy, by the learner's code, and the drift from it.

A teacher is a reference with a model of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.config import LearnerConfig, ModelConfig, ReferenceConfig
from workers.engines.base import VersionMismatch
from workers.files import mirror
from workers.files.shared_storage import SharesStorage
from workers.gold import is_gold, sampled_only
from workers.scoring import ScoreCache, score_tokens
from workers.types import SATURATED, Drift, Experience, TokenShard, log_ratios, merge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workers.engines.deepspeed_engine import DeepSpeedEngine
    from workers.engines.inference import WholeModel
    from workers.packing import Packed


class Reference(SharesStorage):
    """One rank of the reference. With zero_stage 0 every rank holds the model, with 3 it is partitioned over them."""

    def __init__(
        self,
        model: ModelConfig,
        config: ReferenceConfig,
        *,
        rank: int,
        address: str,
        port: int,
        cuda: bool,
        chunk: int,
        policy: ModelConfig | None = None,
    ) -> None:
        """Load the model.

        Args:
            address: of the gang, like `port` for ZeRO-3 alone.
            chunk: tokens whose logits are formed at a time.
            policy: the policy's model, whose tokenizer a reference of another model must have; None: it is the same.

        Raises:
            ModelError: the tokenizers differ.
        """
        if policy is not None:
            from workers.engines import hf_text

            hf_text.require_same_tokenizer(policy, model, key="reference.path")
        self._model, self._config, self._rank, self._chunk = model, config, rank, chunk
        if config.zero_stage == 3:
            from workers.engines import deepspeed_engine

            self._device = deepspeed_engine.join(
                rank=rank, world_size=config.num_ranks, address=address, port=port, cuda=cuda
            )
        else:
            import torch

            torch.set_num_threads(torch.get_num_threads() if cuda else 1)
            self._device = torch.device("cuda" if cuda else "cpu")
        self._engine: DeepSpeedEngine | WholeModel | None = None
        assert model.path is not None
        self.load(model.path)

    def load(self, path: str, version: int = 0) -> None:
        """Replace the reference by the model in the directory `path`, which holds `version` of the policy."""
        self._version = -1  # none, until the model is loaded
        mirror.require(path)
        self._cache = ScoreCache()
        self.free()
        model = self._model.model_copy(update={"path": path})
        if self._config.zero_stage == 3:
            from workers.engines.deepspeed_engine import DeepSpeedEngine

            shards = LearnerConfig(num_ranks=self._config.num_ranks, logprob_chunk_tokens=self._chunk)
            self._engine = DeepSpeedEngine(model, shards, None, head="logprobs", device=self._device, seed=0)
        else:
            from workers.engines import hf_models
            from workers.engines.hf_check import check_rows
            from workers.engines.inference import WholeModel

            module = hf_models.load_policy(path, model.dtype, chunk=self._chunk).to(self._device).eval()
            check_rows(module, self._device, path=path, longest=self._config.tokens_per_micro_batch)
            self._engine = WholeModel(module, self._device)
        self._version = version

    def free(self) -> None:
        """Release the model, so that two are never in memory at once."""
        if self._engine is None:
            return
        from workers.engines import memory

        self._engine.free()
        self._engine = None
        memory.release()

    def logprobs(self, parts: Sequence[Experience], temperature: float = 1.0, version: int | None = None) -> TokenShard:
        """Compute the log-probabilities of this rank's share of the completions at `temperature`.

        Rows of a dataset come back in the next epoch: they are computed once per version of the reference.

        Args:
            version: version of the policy that the reference must hold; None: any.

        Raises:
            VersionMismatch: the reference holds another version.
        """
        if version is not None and version != self._version:
            raise VersionMismatch(f"the reference holds version {self._version}, and was asked for version {version}")
        is_dataset = parts[0].logprobs is None
        return score_tokens(
            parts,
            lambda packed: self._infer(packed, temperature),
            rank=self._rank,
            world_size=self._config.num_ranks,
            budget=self._config.tokens_per_micro_batch,
            cache=self._cache if is_dataset and self._config.cache else None,
            apart=self._loaded.apart,
        )

    def hidden(self, parts: Sequence[Experience]) -> TokenShard:
        """Compute the last hidden states [t, h] from which the tokens of this rank's share are predicted.

        The learner applies the output layer to them: V/h times less data than logits. Nothing is cached. States in
        bfloat16 are returned as their bits (uint16).
        """
        return score_tokens(
            parts,
            self._hidden,
            rank=self._rank,
            world_size=self._config.num_ranks,
            budget=self._config.tokens_per_micro_batch,
            apart=self._loaded.apart,
        )

    @property
    def _loaded(self) -> DeepSpeedEngine | WholeModel:
        assert self._engine is not None
        return self._engine

    def _infer(self, packed: Packed, temperature: float) -> NDArray[np.float32]:
        return self._loaded.infer(packed, temperature).cpu().numpy()

    def _hidden(self, packed: Packed) -> NDArray[Any]:
        from workers.engines.inference import as_numpy

        return as_numpy(self._loaded.hidden(packed))

    def drift(self, parts: Sequence[Experience], shares: Sequence[TokenShard]) -> Drift:
        """Compute the drift of the sampling policy from the model that computed `shares` (k1 estimate of the KL)."""
        experience = merge(parts)
        ratios = log_ratios(experience, shares)[~is_gold(experience)]
        experience = sampled_only(experience)
        starts, sizes = experience.group_offsets[:-1], np.diff(experience.group_offsets)
        means = np.add.reduceat(ratios, starts) / sizes if len(starts) > 1 else ratios
        return Drift(
            kl=float(ratios.mean()) if len(ratios) else 0.0,
            kl_error=float(means.std(ddof=1)) / len(means) ** 0.5 if len(means) > 1 else 0.0,
            spread=float(ratios.std()) if len(ratios) else 0.0,
            saturated=float((np.abs(ratios) > SATURATED).mean()) if len(ratios) else 0.0,
            num_completions=len(ratios),
        )
