"""Generation by vLLM, and the receiving end of weight publication. The sending end of NCCL is vllm_sender.py.

The engine lives in the actor's own process: no orphan children, deterministic scheduling, tensors without pickling.
Set `environment()` before this module is imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
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
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.interfaces import supports_lora

from workers.engines import lora
from workers.engines.base import EngineError, Request, Response, VersionMismatch
from workers.types import Finish
from workers.weights import Entry, Manifest, Segment

if TYPE_CHECKING:
    from workers.config import RolloutConfig

SHARED_MEMORY = "rlhf_shared_memory"
CPU_BATCHED_TOKENS = 4096  # of one engine step, at least
# Measured with vLLM 0.32 on a CPU, float32, tiny models.
WRONG = dict.fromkeys(
    ("Cohere2MoeForCausalLM", "CTRLLMHeadModel", "DogeForCausalLM", "Ernie4_5_MoeForCausalLM", "GPTNeoXForCausalLM"),
    "answers with log-probabilities that are far off the model's",
)
NOT_TAKING = dict.fromkeys(
    ("ExaoneMoeForCausalLM", "GptOssForCausalLM"), "keeps its old experts when new weights arrive"
)


# ------------------------------------------------------------------------------------------------ generation


class VllmEngine:
    """One vLLM engine; a process can hold only one, for life."""

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
        """`adapter_rank`: of the adapters that will be published; None: whole weights will be."""
        if os.environ.get("VLLM_ALLOW_INSECURE_SERIALIZATION") not in (None, "0"):
            raise EngineError("VLLM_ALLOW_INSECURE_SERIALIZATION is set: messages would fall back to pickle; unset it")
        if os.environ.get("VLLM_SERVER_DEV_MODE") not in (None, "0"):
            raise EngineError("VLLM_SERVER_DEV_MODE is set: it opens calls that run anything they are sent; unset it")
        self.check(path, dtype, adapters=adapter_rank is not None, cuda=cuda)
        machine: dict[str, Any] = (
            {"gpu_memory_utilization": config.gpu_memory_utilization}
            if cuda
            else {
                "kv_cache_memory_bytes": config.cpu_kv_cache_mib * 2**20,
                "enforce_eager": True,
                # After a part of a prompt vLLM winds the request's generator back, which CPU generators cannot do.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, max_model_len),
            }
        )
        weights: dict[str, Any] = (
            {"weight_transfer_config": {"backend": "nccl" if cuda else SHARED_MEMORY}}
            | {"worker_extension_cls": "" if cuda else f"{__name__}.Registration"}
            if adapter_rank is None
            # One adapter at a time, and none kept beside it: there is no older one that could be used by mistake.
            else {"enable_lora": True, "max_lora_rank": _padded(adapter_rank), "max_loras": 1, "max_cpu_loras": 1}
        )
        self._llm = LLM(
            model=path,
            dtype=dtype,
            trust_remote_code=False,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            tensor_parallel_size=config.tensor_parallel_size,
            # In an actor vLLM would choose Ray, and ask the actor's own placement group for more GPUs than it has.
            distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else None,
            seed=seed,
            logprobs_mode="processed_logprobs",  # of the distribution that is really sampled from
            skip_tokenizer_init=True,
            disable_log_stats=True,
            **machine,
            **weights,
        )
        self._connected = False
        self._adapted = adapter_rank is not None
        self._adapter: LoRARequest | None = None
        self._receiving: int | None = None  # a version that has begun to arrive

    @staticmethod
    def check(path: str, dtype: str, *, adapters: bool, cuda: bool) -> None:
        """Ask vLLM whether it can serve the model at `path`, before anything of it is loaded.

        Raises:
            EngineError: it has no implementation of the model, or none that takes adapters.
        """
        try:
            named = ModelConfig(model=path, dtype=dtype, trust_remote_code=False, skip_tokenizer_init=True)
        except ValueError as error:  # pydantic's, of many lines
            raise EngineError(f"{path}: vLLM cannot read this model: {_first_fault(error)}") from error
        try:
            served, _ = ModelRegistry.resolve_model_cls(named.architectures, model_config=named)
        except ValueError as error:
            raise EngineError(
                f"{path}: vLLM cannot sample from {' or '.join(named.architectures)}; use a method without samples "
                f"(offline dpo, kto, sft, reward_model) or another model ({error})"
            ) from error
        known = WRONG if adapters else WRONG | NOT_TAKING
        if fault := next((f"{name} {known[name]}" for name in named.architectures if name in known), None):
            raise EngineError(f"{path}: vLLM's {fault}; use a method without samples, or another model")
        # With adapters vLLM runs experts by Triton.
        if adapters and not cuda and named.get_num_experts():
            raise EngineError(
                "model.lora: vLLM on a CPU takes no adapters for a mixture of experts; remove it (whole weights are "
                "then published), or use a method without samples"
            )
        if adapters and not supports_lora(served):
            raise EngineError(
                f"model.lora: vLLM's {served.__name__} takes no adapters; remove it (whole weights are then published) "
                "or use a method without samples"
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
        """Answers in the order of the requests. Prompts that repeat are prefilled once (prefix cache)."""
        params = [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=r.seed,
                stop_token_ids=list(stop_token_ids),
                ignore_eos=ignore_eos,  # vLLM knows the end token of the model by itself
                logprobs=0,  # the sampled token's own
                flat_logprobs=True,
                detokenize=False,
            )
            for r in requests
        ]
        if self._receiving is not None:
            raise VersionMismatch(f"version {self._receiving} did not arrive whole: nothing to sample from")
        prompts = [{"prompt_token_ids": list(r.tokens)} for r in requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._adapter)
        for output in outputs:
            if self._adapted and _version(output.lora_request) != self.version:
                raise EngineError(f"asked version {self.version}, version {_version(output.lora_request)} answered")
        return [_response(output.outputs[0]) for output in outputs]

    # -------------------------------------------------------------------------------------------- weights

    def receive(self, manifest: Manifest, version: int, rank_offset: int = 1) -> None:
        """Take one publication over all four phases; afterwards the prefix cache is empty.

        A failure leaves the engine half loaded: it generates no more before a complete publication has arrived.
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
        """Take the adapters of `version` from `directory` and sample from them from now on.

        vLLM knows an adapter by a number: the version is that number, so an old one cannot pass for a new one. When it
        fails the engine generates no more. What it holds already is not taken again.

        Raises:
            EngineError: when the directory holds another version or none, or vLLM did not load it.
        """
        if self._receiving is None and version == self.version:
            return
        self._receiving = version
        found = lora.written_version(Path(directory))
        if found != version:
            raise EngineError(
                f"{directory} holds {'no adapter' if found is None else f'version {found}'}, not version {version}"
            )
        engine = self._llm.llm_engine
        if version in engine.list_loras():
            raise EngineError(f"the adapters of version {version} are there already, and vLLM would keep the old ones")
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
        """Of the last publication that was received completely; 0: the weights it was started with."""
        if self._adapted:
            return _version(self._adapter)
        reported = self._llm.get_weight_version()
        return int(reported) if reported and reported.isdigit() else 0


def _first_fault(error: ValueError) -> str:
    """What pydantic found, without the name of the class, the link to its pages and the list of all architectures."""
    lines = [line.strip() for line in str(error).splitlines()]
    fault = next((line for line in lines if line.startswith("Value error")), lines[0]).removeprefix("Value error, ")
    return fault.partition(" [type=")[0].partition(". Supported architectures")[0]


def _padded(rank: int) -> int:
    """The smallest rank vLLM has room for that is no smaller."""
    return int(min(size for size in get_args(MaxLoRARanks) if size >= rank))


def _version(adapter: LoRARequest | None) -> int:
    return int(adapter.lora_int_id) if adapter is not None else 0


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
    """Weight-transfer backend for CPU: the learner has written a segment, the engine maps and loads it."""

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate
    _segment: Segment | None = None

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        self._segment = Segment(init_info.path)

    def start_weight_update(self) -> None:
        if not os.environ.get("NOFIX"):
            _forget_experts_kernels(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        if self._segment is None:
            raise EngineError("weights arrived before the segment was opened")
        columns = zip(update_info.names, update_info.dtype_names, update_info.shapes, update_info.offsets, strict=True)
        entries = [Entry(name=n, dtype=d, shape=tuple(s), offset=o) for n, d, s, o in columns]
        model: Any = self.model
        if not hasattr(model, "lm_head"):  # as of Gemma 2: the embeddings are its head, and the name is unknown to it
            entries = [entry for entry in entries if entry.name != "lm_head.weight"]
        expected = {name for name, _ in model.named_parameters()}
        # Cloned: layer-wise reload may keep what it is given until the layer is complete, and the segment is rewritten.
        taken = model.load_weights((n, t.clone()) for n, t in self._segment.read(entries))
        if taken is not None and (kept := sorted(expected - taken)):
            raise EngineError(f"weights that were sent did not reach {', '.join(kept[:5])} ({len(kept)}) of the engine")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def finish_weight_update(self) -> None:
        if untouched := _untouched(self.model):
            raise EngineError(
                f"the engine did not take the new weights of {', '.join(untouched[:5])} ({len(untouched)}), and would "
                "keep the old ones; use a method without samples for this model"
            )
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._segment = None


def _forget_experts_kernels(model: Any) -> None:
    """Have a mixture's experts packed anew when their weights arrive. vLLM packs them for the CPU's kernel when it sets
    the kernel up, and takes a kernel that is there for a sign that only storage has to be filled: it would be filled
    with weights as they are in a file, which the kernel would read as packed ones."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _untouched(model: Any) -> list[str]:
    """Layers with weights that nothing has arrived for: vLLM gives them their old ones back and logs a line. Where
    a GPU's share of a vocabulary is padding alone, weights without elements arrive."""
    waiting = {n: (m, get_layerwise_info(m)) for n, m in model.named_modules() if not is_deferred_attention_layer(m)}
    return [n for n, (m, i) in waiting.items() if m._parameters and i.can_load() and not i.loaded_weights]


class Registration:
    """Named as worker_extension_cls, so that every worker process of the engine imports this module."""


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
