"""Shapes of models, read from a config.json or looked up by name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Shape of a decoder with gated MLPs and grouped-query attention; with `experts`, a mixture of experts.

    Example: `find("meta-llama/Llama-3.1-8B-Instruct").num_params == 8_030_261_248`.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # width of the MLP, or of one expert
    vocab: int
    tied: bool = False  # the output layer is the embedding
    experts: int = 0  # per layer; 0: a dense model
    active_experts: int = 0  # per token
    shared_intermediate: int = 0  # width of the expert that every token uses; 0: none
    gated: bool = True  # three matrices in an MLP, else two

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def attention_params(self) -> int:
        """Attention parameters of one layer, with its two norms."""
        return 2 * self.hidden * (self.attention_width + self.kv_width) + 2 * self.hidden

    def _mlp_params(self, experts: int) -> int:
        matrices = 3 if self.gated else 2
        mlp = matrices * self.hidden * self.intermediate
        if not self.experts:
            return mlp
        return experts * mlp + matrices * self.hidden * self.shared_intermediate + self.hidden * self.experts

    @property
    def layer_params(self) -> int:
        return self.attention_params + self._mlp_params(self.experts)

    @property
    def head_params(self) -> int:
        """Parameters of the output layer, or of the embedding: they have the same shape."""
        return self.vocab * self.hidden

    @property
    def num_params(self) -> int:
        return self.layers * self.layer_params + (1 if self.tied else 2) * self.head_params + self.hidden

    @property
    def active_params(self) -> int:
        """Parameters used for one token; all of them in a dense model."""
        idle = (self.experts - self.active_experts) * (3 if self.gated else 2) * self.hidden * self.intermediate
        return self.num_params - (self.layers * idle if self.experts else 0)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers, in bfloat16."""
        return 4 * self.layers * self.kv_width

    def adapter_params(self, rank: int, targets: str | tuple[str, ...]) -> int:
        """Return the number of LoRA parameters: rank x (in + out) for each adapted linear layer.

        In a mixture of experts only attention projections count: peft does not adapt fused experts."""
        h, q, kv, i = self.hidden, self.attention_width, self.kv_width, self.intermediate
        sizes = {"q_proj": h + q, "k_proj": h + kv, "v_proj": h + kv, "o_proj": q + h}
        if not self.experts:
            sizes |= {"up_proj": h + i, "down_proj": i + h} | ({"gate_proj": h + i} if self.gated else {})
        chosen = sizes if targets == "all-linear" else [t for t in sizes if t in targets]
        return self.layers * rank * sum(sizes[name] for name in chosen)


def _llama(name: str, hidden: int, layers: int, heads: int, intermediate: int, **more: Any) -> ModelShape:
    defaults = {"kv_heads": 8, "head_dim": 128, "vocab": 128256}
    return ModelShape(
        name=name, hidden=hidden, layers=layers, heads=heads, intermediate=intermediate, **(defaults | more)
    )


_QWEN: Mapping[str, int] = {"vocab": 151936}
_LARGE_QWEN: Mapping[str, int] = {"vocab": 152064}
_TIED: Mapping[str, Any] = {"vocab": 151936, "tied": True}
TABLE: Mapping[str, ModelShape] = {
    shape.name: shape
    for shape in (  # the published config.json of each
        _llama("llama-3.2-1b", 2048, 16, 32, 8192, head_dim=64, tied=True),
        _llama("llama-3.2-3b", 3072, 28, 24, 8192, tied=True),
        _llama("llama-3-8b", 4096, 32, 32, 14336),
        _llama("llama-3-70b", 8192, 80, 64, 28672),
        _llama("llama-3-405b", 16384, 126, 128, 53248),
        _llama("llama-2-7b", 4096, 32, 32, 11008, kv_heads=32, vocab=32000),
        _llama("llama-2-13b", 5120, 40, 40, 13824, kv_heads=40, vocab=32000),
        _llama("llama-2-70b", 8192, 80, 64, 28672, vocab=32000),
        _llama("mistral-7b", 4096, 32, 32, 14336, vocab=32768),
        _llama("qwen2.5-0.5b", 896, 24, 14, 4864, kv_heads=2, head_dim=64, **_TIED),
        _llama("qwen2.5-1.5b", 1536, 28, 12, 8960, kv_heads=2, **_TIED),
        _llama("qwen2.5-3b", 2048, 36, 16, 11008, kv_heads=2, **_TIED),
        _llama("qwen2.5-7b", 3584, 28, 28, 18944, kv_heads=4, **_LARGE_QWEN),
        _llama("qwen2.5-14b", 5120, 48, 40, 13824, **_LARGE_QWEN),
        _llama("qwen2.5-32b", 5120, 64, 40, 27648, **_LARGE_QWEN),
        _llama("qwen2.5-72b", 8192, 80, 64, 29568, **_LARGE_QWEN),
        _llama("qwen3-0.6b", 1024, 28, 16, 3072, **_TIED),
        _llama("qwen3-1.7b", 2048, 28, 16, 6144, **_TIED),
        _llama("qwen3-4b", 2560, 36, 32, 9728, **_TIED),
        _llama("qwen3-8b", 4096, 36, 32, 12288, **_QWEN),
        _llama("qwen3-14b", 5120, 40, 40, 17408, **_QWEN),
        _llama("qwen3-32b", 5120, 64, 64, 25600, **_QWEN),
        _llama("qwen3-30b-a3b", 2048, 48, 32, 768, kv_heads=4, experts=128, active_experts=8, **_QWEN),
        _llama("qwen3-235b-a22b", 4096, 94, 64, 1536, kv_heads=4, experts=128, active_experts=8, **_QWEN),
        _llama("mixtral-8x7b", 4096, 32, 32, 14336, vocab=32000, experts=8, active_experts=2),
        _llama("mixtral-8x22b", 6144, 56, 48, 16384, vocab=32768, experts=8, active_experts=2),
        _llama("opt-66b", 9216, 64, 72, 36864, kv_heads=72, vocab=50272, tied=True, gated=False),
    )
}
_DECORATION = re.compile(r"-(instruct|chat|base|it|hf|thinking|math|coder|v\d+(\.\d+)*|\d{4})(?=-|$)")
_UNGATED = ("bert", "roberta", "xlm-roberta", "electra", "deberta", "deberta-v2", "distilbert")  # of classifiers
_DISTILBERT = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"} | {
    "hidden_dim": "intermediate_size"
}
_VERSION = re.compile(r"llama-?3(?:\.[13])?-(8b|70b|405b)")


def find(path: str) -> ModelShape | None:
    """Return the shape of a model, or None if it is not found. Nothing is downloaded.

    `path` is looked up as a local directory, in the planner's table, and in the local Hub cache.

    Raises:
        BadInput: if its config.json does not describe such a decoder.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return read(folder / "config.json")
    if (folder / "adapter_config.json").is_file():
        return None
    plain = _plain(path)
    if ends := [name for name in TABLE if plain == name or plain.endswith(f"-{name}")]:
        return TABLE[max(ends, key=len)]  # a fine-tuned model is named after the one it starts from
    cached = _cache() / f"models--{path.replace('/', '--')}" / "snapshots"
    configs = sorted(cached.glob("*/config.json")) if re.fullmatch(r"[\w.-]+/[\w.-]+", path) else []
    return read(configs[-1]) if configs else None


def _plain(path: str) -> str:
    """Return the table's name of a model: `llama-3-70b` for `meta-llama/Llama-3.3-70B-Instruct`."""
    name = path.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    name = _DECORATION.sub("", name)
    return _VERSION.sub(r"llama-3-\1", name)


def _cache() -> Path:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def read(file: Path) -> ModelShape:
    """Read the shape from a config.json.

    Raises:
        BadInput: if it cannot be read, or lacks keys, which the message lists.
    """
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        problem = Problem(what="cannot be read", where=str(file), why=str(error), fix="copy the whole model again")
        raise BadInput(problem) from None
    config: dict[str, Any] = data.get("text_config") or data if isinstance(data, dict) else {}
    if config.get("model_type") == "distilbert":
        config = {_DISTILBERT.get(key, key): value for key, value in config.items()}
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    missing = [key for key in needed if not _count(config.get(key))]
    experts = next((n for key in ("num_local_experts", "num_experts") if (n := _count(config.get(key)))), 0)
    width = config.get("moe_intermediate_size") if experts else None
    intermediate = _count(width) or _count(config.get("intermediate_size"))
    missing += [] if intermediate else ["intermediate_size"]
    if "kv_lora_rank" in config or "n_routed_experts" in config:
        missing.append("grouped-query attention (it compresses its keys and values)")
    if missing:
        raise BadInput(
            Problem(
                what="the planner does not support this architecture",
                where=str(file),
                why=f"it plans decoders like Llama, Qwen and Mixtral; missing: {', '.join(missing)}",
                fix="plan with a model of one of these families and of similar size",
            )
        )
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return ModelShape(
        name=file.parent.name if "snapshots" not in file.parts else file.parents[2].name.split("--")[-1],
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=_count(config.get("num_key_value_heads")) or heads,
        head_dim=_count(config.get("head_dim")) or hidden // heads,
        intermediate=intermediate,
        vocab=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        experts=experts,
        active_experts=min(experts, _count(config.get("num_experts_per_tok")) or 2) if experts else 0,
        shared_intermediate=_count(config.get("shared_expert_intermediate_size")) if experts else 0,
        gated=config.get("model_type") not in _UNGATED,
    )


def _count(value: Any) -> int:
    """Return `value` if it is a positive integer, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
