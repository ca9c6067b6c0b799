"""Generation by vLLM, and the receiving side of weight publication. vllm_sender.py is the sending side of NCCL.

The engine runs in the actor's own process: no orphaned children, deterministic scheduling, no pickling of tensors.
`workers.rollout.environment()` must be set before this module is imported.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]
from vllm import LLM, SamplingParams
from vllm.config import ModelConfig
from vllm.config.lora import MaxLoRARanks
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.interfaces import supports_lora

from workers import progress
from workers.engines import lora
from workers.engines.base import EngineError, Request, Response, VersionMismatch
from workers.segment import Segment
from workers.types import Finish
from workers.weights import Entry, Manifest

if TYPE_CHECKING:
    from workers.config import RolloutConfig

SHARED_MEMORY = "rlhf_shared_memory"
CPU_BATCHED_TOKENS = 4096  # minimum of `max_num_batched_tokens` on a CPU
# Families that do not work, measured with vLLM 0.32 on a CPU in float32 with tiny models.
WRONG = dict.fromkeys(
    ("Cohere2MoeForCausalLM", "CTRLLMHeadModel", "DogeForCausalLM", "Ernie4_5_MoeForCausalLM", "GPTNeoXForCausalLM"),
    "returns log-probabilities that are far from the model's",
)
STALE = dict.fromkeys(("ExaoneMoeForCausalLM", "GptOssForCausalLM"), "keeps its old experts when new weights arrive")


# ------------------------------------------------------------------------------------------------ generation


class VllmEngine:
    """One vLLM engine. A process can create only one."""

    def __init__(
        self,
        path: str,
        dtype: str,
        max_model_len: int,
        config: RolloutConfig,
        *,
        seed: int,
        cuda: bool,
        adapter_rank: int | None = None,
    ) -> None:
        """Start the engine.

        Args:
            path: model directory.
            max_model_len: tokens of the longest sequence.
            adapter_rank: rank of the adapters that will be published; None: full weights will be published.

        Raises:
            EngineError: vLLM cannot serve the model, or an environment variable makes it unsafe.
        """
        if os.environ.get("VLLM_ALLOW_INSECURE_SERIALIZATION") not in (None, "0"):
            raise EngineError("VLLM_ALLOW_INSECURE_SERIALIZATION is set: messages would fall back to pickle; unset it")
        if os.environ.get("VLLM_SERVER_DEV_MODE") not in (None, "0"):
            raise EngineError("VLLM_SERVER_DEV_MODE is set: it opens calls that run any code; unset it")
        self.check(path, dtype, adapters=adapter_rank is not None, cuda=cuda)
        self._llm = LLM(
            model=path,
            dtype=dtype,
            trust_remote_code=False,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            tensor_parallel_size=config.tensor_parallel_size,
            # In an actor vLLM would choose Ray, and request more GPUs of the actor's placement group than it has.
            distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else None,
            seed=seed,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
            skip_tokenizer_init=True,
            disable_log_stats=True,
            **_device_settings(config, max_model_len, cuda=cuda),
            **_publication_settings(adapter_rank, cuda=cuda),
        )
        self._connected = False
        self._adapted = adapter_rank is not None
        self._adapter: LoRARequest | None = None
        self._receiving: int | None = None  # version whose transfer has begun

    @staticmethod
    def check(path: str, dtype: str, *, adapters: bool, cuda: bool) -> None:
        """Check that vLLM can serve the model at `path`, before loading it.

        Raises:
            EngineError: vLLM does not support the model, or no adapters of it, or computes wrong results with it.
        """
        try:
            config = ModelConfig(model=path, dtype=dtype, trust_remote_code=False, skip_tokenizer_init=True)
        except ValueError as error:  # of pydantic, with many lines
            raise EngineError(f"{path}: vLLM cannot read this model: {_summary(error)}") from error
        try:
            model_class, _ = ModelRegistry.resolve_model_cls(config.architectures, model_config=config)
        except ValueError as error:
            raise EngineError(
                f"{path}: vLLM cannot sample from {' or '.join(config.architectures)}; use a method without samples "
                f"(offline dpo, kto, sft, reward_model) or another model ({error})"
            ) from error
        faults = WRONG if adapters else WRONG | STALE
        if fault := next((f"{name} {faults[name]}" for name in config.architectures if name in faults), None):
            raise EngineError(f"{path}: vLLM's {fault}; use a method without samples, or another model")
        # With adapters vLLM computes experts with Triton, which needs a GPU.
        if adapters and not cuda and config.get_num_experts():
            raise EngineError(
                "model.lora: vLLM on a CPU takes no adapters for a mixture of experts; remove it (full weights are "
                "then published), or use a method without samples"
            )
        if adapters and not supports_lora(model_class):
            raise EngineError(
                f"model.lora: vLLM's {model_class.__name__} takes no adapters; remove it (full weights are then "
                "published) or use a method without samples"
            )

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        stop_token_ids: Sequence[int],
        ignore_eos: bool,
    ) -> list[Response]:
        """Sample one completion per request, in the order of the requests. Repeated prompts are prefilled once."""
        params = [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=r.seed,
                stop_token_ids=list(stop_token_ids),
                ignore_eos=ignore_eos,  # vLLM also stops at the model's end-of-sequence token
                logprobs=0,  # of the sampled token alone
                flat_logprobs=True,
                detokenize=False,
            )
            for r in requests
        ]
        if self._receiving is not None:
            raise VersionMismatch(f"version {self._receiving} did not arrive whole: nothing to sample from")
        prompts = [{"prompt_token_ids": list(r.tokens)} for r in requests]
        bar = partial(_Reporting, file=io.StringIO(), mininterval=3600.0)  # drawn nowhere
        outputs = self._llm.generate(prompts, params, use_tqdm=bar, lora_request=self._adapter)
        for output in outputs:
            if self._adapted and _version(output.lora_request) != self.version:
                raise EngineError(f"version {_version(output.lora_request)} was sampled instead of {self.version}")
        return [_response(output.outputs[0]) for output in outputs]

    # -------------------------------------------------------------------------------------------- weights

    def receive(self, manifest: Manifest, version: int, rank_offset: int = 1) -> None:
        """Receive one publication in vLLM's four phases, and reset the prefix cache.

        After a failure the engine may be partially loaded: it refuses to generate until a complete publication has
        arrived.
        """
        self._receiving = version
        if not self._connected:
            self._llm.init_weight_transfer_engine({"init_info": _init_info(manifest, rank_offset)})
            self._connected = True
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": _update_info(manifest)})
        self._llm.finish_weight_update(weight_version=str(version))
        self._llm.reset_prefix_cache()
        self._receiving = None

    def receive_adapter(self, directory: str, version: int) -> None:
        """Load the adapters of `version` from `directory` and use them for sampling, unless they are loaded already.

        vLLM identifies an adapter by a number. The version is that number, so an old adapter cannot be mistaken for a
        new one. After a failure the engine refuses to generate.

        Raises:
            EngineError: the directory holds another version or none, or vLLM did not load it.
        """
        if self._receiving is None and version == self.version:
            return
        self._receiving = version
        written = lora.written_version(Path(directory))
        if written != version:
            raise EngineError(
                f"{directory} holds {'no adapter' if written is None else f'version {written}'}, not version {version}"
            )
        engine = self._llm.llm_engine
        if version in engine.list_loras():
            raise EngineError(f"vLLM already holds adapters of version {version} and would not reload them")
        request = LoRARequest(f"version-{version}", version, directory)
        engine.add_lora(request)
        if engine.list_loras() != {version}:
            raise EngineError(
                f"vLLM holds the adapters of {sorted(engine.list_loras())}, not of version {version} alone"
            )
        self._llm.reset_prefix_cache()
        self._adapter, self._receiving = request, None

    @property
    def version(self) -> int:
        """Version of the last complete publication; 0: the initial weights."""
        if self._adapted:
            return _version(self._adapter)
        reported = self._llm.get_weight_version()
        return int(reported) if reported and reported.isdigit() else 0


def _device_settings(config: RolloutConfig, max_model_len: int, *, cuda: bool) -> dict[str, Any]:
    if cuda:
        return {"gpu_memory_utilization": config.gpu_memory_utilization}
    return {
        "kv_cache_memory_bytes": config.cpu_kv_cache_mib * 2**20,
        "enforce_eager": True,
        # After a chunk of a prompt vLLM rewinds the request's generator, which CPU generators do not support.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, max_model_len),
    }


def _publication_settings(adapter_rank: int | None, *, cuda: bool) -> dict[str, Any]:
    if adapter_rank is None:
        return {
            "weight_transfer_config": {"backend": "nccl" if cuda else SHARED_MEMORY},
            "worker_extension_cls": "" if cuda else f"{__name__}.Registration",
        }
    # One adapter at a time, and none cached: no older one can be used by mistake.
    return {"enable_lora": True, "max_lora_rank": _padded(adapter_rank), "max_loras": 1, "max_cpu_loras": 1}


def _summary(error: ValueError) -> str:
    """Return the message of a pydantic error, without class name, link and the list of all architectures."""
    lines = [line.strip() for line in str(error).splitlines()]
    fault = next((line for line in lines if line.startswith("Value error")), lines[0]).removeprefix("Value error, ")
    return fault.partition(" [type=")[0].partition(". Supported architectures")[0]


def _padded(rank: int) -> int:
    """Return the smallest rank that vLLM supports and that is at least `rank`."""
    return int(min(size for size in get_args(MaxLoRARanks) if size >= rank))


def _version(adapter: LoRARequest | None) -> int:
    return int(adapter.lora_int_id) if adapter is not None else 0


class _Reporting(tqdm):  # type: ignore[misc]
    """Progress bar of vLLM that reports each finished completion as progress."""

    def update(self, n: float | None = 1) -> bool:
        progress.report()
        return bool(super().update(n))


def _response(output: Any) -> Response:
    finish = {"stop": Finish.stop, "length": Finish.length}.get(output.finish_reason, Finish.aborted)
    tokens = np.asarray(output.token_ids, np.int32)
    logprobs = np.asarray(output.logprobs.logprobs, np.float32)
    if tokens.shape != logprobs.shape:
        raise EngineError(f"{len(tokens)} tokens came with {len(logprobs)} log-probabilities")
    return Response(tokens, logprobs, finish)


# ------------------------------------------------------------------------------------------------ shared memory


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):  # type: ignore[misc]
    path: str


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):  # type: ignore[misc]
    """Weight-transfer backend of vLLM for CPUs: maps the segment that the learner has written, and loads it."""

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate
    _segment: Segment | None = None

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        self._segment = Segment(init_info.path)

    def start_weight_update(self) -> None:
        _drop_expert_kernels(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        if self._segment is None:
            raise EngineError("weights arrived before the segment was opened")
        columns = zip(update_info.names, update_info.dtype_names, update_info.shapes, update_info.offsets, strict=True)
        entries = [Entry(name=n, dtype=d, shape=tuple(s), offset=o) for n, d, s, o in columns]
        model: Any = self.model
        if not hasattr(model, "lm_head"):  # for example Gemma 2, which uses the embeddings as its head
            entries = [entry for entry in entries if entry.name != "lm_head.weight"]
        expected = {name for name, _ in model.named_parameters()}
        # Cloned, because layer-wise reload may keep tensors until the layer is complete, and the segment is rewritten.
        loaded = model.load_weights((n, t.clone()) for n, t in self._segment.read(entries))
        if loaded is not None and (stale := sorted(expected - loaded)):
            raise EngineError(f"no weights arrived for {', '.join(stale[:5])} ({len(stale)}) of the engine")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def finish_weight_update(self) -> None:
        if untouched := _untouched(self.model):
            raise EngineError(
                f"the engine did not load the new weights of {', '.join(untouched[:5])} ({len(untouched)}), and would "
                "keep the old ones; use a method without samples for this model"
            )
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._segment = None


def _drop_expert_kernels(model: Any) -> None:
    """Drop the kernels of a mixture's experts, so that new weights are packed for them again.

    vLLM packs expert weights for the CPU kernel when it creates the kernel. If the kernel exists, vLLM copies weights
    into its storage unpacked, and the kernel would misread them.
    """
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _untouched(model: Any) -> list[str]:
    """Return the layers that have received no weights: vLLM would restore their old ones and only log it.

    A GPU's share of a vocabulary may be padding alone; it receives weights without elements.
    """
    waiting = {n: (m, get_layerwise_info(m)) for n, m in model.named_modules() if not is_deferred_attention_layer(m)}
    return [n for n, (m, i) in waiting.items() if m._parameters and i.can_load() and not i.loaded_weights]


class Registration:
    """Class for `worker_extension_cls`, by which every worker process of the engine imports this module."""


if SHARED_MEMORY not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(SHARED_MEMORY, SharedMemoryEngine)


def _init_info(manifest: Manifest, rank_offset: int) -> dict[str, Any]:
    if manifest.rendezvous is None:
        return {"path": manifest.segment}
    meet = manifest.rendezvous
    return {
        "master_address": meet.address,
        "master_port": meet.port,
        "rank_offset": rank_offset,
        "world_size": meet.world_size,
        "packed": True,
    }


def _update_info(manifest: Manifest) -> dict[str, Any]:
    info: dict[str, Any] = {
        "names": [e.name for e in manifest.entries],
        "dtype_names": [e.dtype for e in manifest.entries],
        "shapes": [list(e.shape) for e in manifest.entries],
    }
    if manifest.segment is not None:
        info["offsets"] = [e.offset for e in manifest.entries]
    return info
