"""Exported and published weights: the family's names, every buffer, merged adapters, score layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from torch.nn import Linear, Module
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from workers.config import LoraConfig, ModelConfig
from workers.engines import hf_files, hf_models, lora
from workers.engines.base import ModelError
from workers.engines.heads import TokenLogprobs, TokenScores
from workers.weights import Average

TEXT = torch.arange(3, 40)[None]
LORA = LoraConfig(r=4, lora_alpha=8)
# One family for each kind of storage: plain and tied, buffers, experts as one parameter in memory, other names.
MIXTURES = [
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "glm4_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "granitemoe",
    "phimoe", "ernie4_5_moe",
]  # fmt: skip
DENSE = [name for name in tiny_models.FAMILIES if name not in MIXTURES]
ADAPTED = ["llama", "phi3", "gemma4_text", "phi", "gpt2", "gpt_neox", "opt", "falcon_h1"]
SCORED = [
    "qwen2", "qwen3", "llama", "mistral", "phi3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "opt", "gptj", "mixtral",
    "qwen3_moe", "deepseek_v3",
]  # fmt: skip


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write(tmp_path_factory.mktemp(request.param), request.param)


def plain(directory: Path) -> Any:
    """Load a model with plain transformers, which depends on nothing of ours but the files."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


def adapted(directory: Path) -> Any:
    """Load a model with adapters whose weights are not zero."""
    torch.manual_seed(0)
    model = plain(directory)
    lora.attach(model, LORA)
    with torch.no_grad():
        for adapter in lora.adapters(model).values():
            adapter.up.normal_(0, 0.3)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(TEXT).logits


def sent(module: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a module as a training engine publishes them."""
    adapters = hf_files.adapters_of(module)
    for layer in hf_files.by_layer(hf_files.weight_names(module)):
        adapted = {n: a for n in layer if (a := adapters.get(n.removesuffix(".weight")))}
        yield from hf_files.as_stored(module, lora.merged(layer, adapted)).items()


def exported(source: Path, module: Any, target: Path, **settings: Any) -> Path:
    hf_files.export(str(source), hf_files.describe(module), sent(module), target, **settings)
    return target


def reloaded(directory: Path, kind: Any = AutoModelForCausalLM) -> Any:
    model, loading = kind.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading.values()), loading
    return model


def keys(directory: Path) -> set[str]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("family", [*DENSE, *MIXTURES], indirect=True)
def test_an_export_is_what_save_pretrained_writes(family: Path, tmp_path: Path) -> None:
    model = plain(family)
    tiny_models.disturb(model)
    expected = logits(model)
    out = exported(family, TokenLogprobs(model, 64), tmp_path / "out")
    assert keys(out) == keys(family)
    assert torch.equal(logits(reloaded(out)), expected)
    assert not torch.allclose(expected, logits(plain(family)), atol=0.1), "the model has changed"


@pytest.mark.parametrize("family", ["qwen2", "glm4_moe", "mixtral", "gpt_neox"], indirect=True)
def test_every_weight_is_described_as_it_is_sent(family: Path) -> None:
    module = TokenLogprobs(plain(family), 64)
    assert [(n, w.dtype, tuple(w.shape)) for n, w in sent(module)] == hf_files.describe(module)


def test_experts_are_described_one_by_one(tmp_path: Path) -> None:
    module = TokenLogprobs(plain(tiny_models.write(tmp_path, "qwen3_moe")), 64)
    described = {name: shape for name, _, shape in hf_files.describe(module)}
    in_memory = hf_files.weight_names(module)
    assert tuple(in_memory["model.layers.1.mlp.experts.gate_up_proj"].shape) == (4, 2 * 32, 64)
    assert described["model.layers.1.mlp.experts.3.gate_proj.weight"] == (32, 64)
    assert described["model.layers.1.mlp.experts.3.down_proj.weight"] == (64, 32)
    assert not any(name.endswith("gate_up_proj") for name in described)


def test_an_engine_is_sent_the_tied_head_and_a_file_is_not(tmp_path: Path) -> None:
    module = TokenLogprobs(plain(tiny_models.write(tmp_path / "tied", "qwen2")), 64)
    assert "lm_head.weight" in dict(sent(module))
    assert "lm_head.weight" not in keys(exported(tmp_path / "tied", module, tmp_path / "out"))


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe"], indirect=True)
def test_shards_hold_a_mixture_too(family: Path, tmp_path: Path) -> None:
    model = plain(family)
    out = exported(family, TokenLogprobs(model, 64), tmp_path / "out", shard_bytes=60_000)
    assert len(list(out.glob("model-*.safetensors"))) > 4
    assert torch.equal(logits(reloaded(out)), logits(plain(family)))


@pytest.mark.parametrize("family", [*ADAPTED, *MIXTURES], indirect=True)
def test_merged_adapters_are_the_adapted_model(family: Path, tmp_path: Path) -> None:
    model = adapted(family)
    expected = logits(model)
    assert not torch.allclose(expected, logits(plain(family)), atol=0.1), "the adapters have an effect"
    merged = reloaded(exported(family, TokenLogprobs(model, 64), tmp_path / "out"))
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft corrects it on loading, with a warning
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "glm4_moe", "deepseek_v3", "qwen2_moe"], indirect=True)
def test_an_adapter_directory_is_the_adapted_model_for_peft(family: Path, tmp_path: Path) -> None:
    model = adapted(family)
    expected = logits(model)
    tensors = {
        name: tensor.detach().clone()
        for place, adapter in hf_files.adapters_of(TokenLogprobs(model, 64)).items()
        for name, tensor in zip(lora.tensor_names(place), (adapter.down, adapter.up), strict=True)
    }
    lora.write(tmp_path / "adapter", LORA, str(family), tensors)
    assert torch.equal(logits(PeftModel.from_pretrained(plain(family), tmp_path / "adapter")), expected)
    assert others_may_read(tmp_path / "adapter" / lora.WEIGHTS)


def test_experts_and_routers_have_no_adapters(tmp_path: Path) -> None:
    model = plain(tiny_models.write(tmp_path, "glm4_moe"))
    lora.attach(model, LoraConfig(r=4))
    names = {name.rpartition(".")[2] for name in lora.adapters(model)}
    # The first layer's MLP is dense, with names that peft confuses with the experts.
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for target in ("gate_up_proj", "experts", "down_proj"):
        with pytest.raises(
            lora.LoraError, match=f"`{target}` is not a linear layer .*use some of: k_proj, o_proj, q_proj"
        ):
            lora.attach(plain(tmp_path), LoraConfig(r=4, target_modules=(target,)))


def test_a_transposed_weight_is_merged_transposed() -> None:
    # A = [[3, 4]], B = [[5], [6]], scaling 1: B A = [[15, 20], [18, 24]]; transposed for an [in, out] weight.
    down, up = torch.nn.Parameter(torch.tensor([[3.0, 4.0]])), torch.nn.Parameter(torch.tensor([[5.0], [6.0]]))
    zero = torch.zeros(2, 2)
    assert lora.Adapter(down, up, 1.0).merged(zero).tolist() == [[15, 20], [18, 24]]
    assert lora.Adapter(down, up, 1.0, transposed=True).merged(zero).tolist() == [[15, 18], [20, 24]]


@pytest.mark.parametrize("family", SCORED, indirect=True)
def test_a_reward_model_scores_alike_after_reload(family: Path, tmp_path: Path) -> None:
    model = plain(family)
    score = Linear(64, 1, bias=False)
    with torch.no_grad():
        expected = score(model.get_decoder().eval()(TEXT).last_hidden_state[:, -1])
    out = exported(family, TokenScores(model.get_decoder(), score), tmp_path / "out")
    assert torch.allclose(logits(reloaded(out, AutoModelForSequenceClassification)), expected, atol=1e-6)
    if hasattr(model, "_supports_attention_backend") and model._supports_attention_backend:
        reloaded_scorer = hf_models.load_scorer(str(out), "float32")  # as the reward of another run reads it
        assert keys(exported(out, reloaded_scorer, tmp_path / "again")) == keys(out)


def test_a_family_without_reward_models_is_refused(tmp_path: Path) -> None:
    decoder = plain(tiny_models.write(tmp_path, "granite")).get_decoder()
    with pytest.raises(ModelError, match="no reward models of the family `granite`"):
        hf_files.adapters_of(TokenScores(decoder, Linear(64, 1, bias=False)))


def test_a_decoder_that_is_no_part_of_its_family_s_reward_model_is_refused(tmp_path: Path) -> None:
    decoder = plain(tiny_models.write(tmp_path, "llama")).get_decoder()
    decoder.further = Module()
    decoder.further.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ModelError, match="LlamaForSequenceClassification is none"):
        hf_files.weight_names(TokenScores(decoder, Linear(64, 1, bias=False)))


def test_the_output_layer_is_read_under_the_name_in_the_file(tmp_path: Path) -> None:
    model = plain(tiny_models.write(tmp_path, "gpt_neox"))
    assert "embed_out.weight" in keys(tmp_path)
    layer = hf_files.load_output_layer(ModelConfig(path=str(tmp_path), dtype="float32"))
    assert torch.equal(layer.weight, model.get_output_embeddings().weight)


def others_may_read(file: Path) -> bool:
    """Return the read permissions of others, compared with a plainly written file."""
    beside = file.with_name("beside")
    beside.touch()
    return file.stat().st_mode == beside.stat().st_mode


def test_exported_files_get_default_permissions(tmp_path: Path) -> None:
    source = tiny_models.write(tmp_path / "source", "llama")
    GenerationConfig(temperature=0.25, do_sample=True).save_pretrained(source)
    (source / "generation_config.json").chmod(0o600)
    out = exported(source, TokenLogprobs(plain(source), 64), tmp_path / "out")
    assert GenerationConfig.from_pretrained(out).temperature == 0.25
    for name in ("model.safetensors", "generation_config.json"):
        assert others_may_read(out / name), name


# ------------------------------------------------------------------------------------------------ moving average


@pytest.mark.parametrize("family", ["qwen2", "mixtral", "gpt2"], indirect=True)
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 20_000])
def test_an_average_with_an_earlier_export(family: Path, shard_bytes: int, tmp_path: Path) -> None:
    """Check tied weights, which files contain once, and experts, which files hold one by one, as well."""
    model = plain(family)
    earlier = exported(family, TokenLogprobs(model, 64), tmp_path / "earlier", shard_bytes=shard_bytes)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    tiny_models.disturb(model)
    average = Average(directory=str(earlier), alpha=0.75)
    out = exported(family, TokenLogprobs(model, 64), tmp_path / "out", average=average, shard_bytes=shard_bytes)
    mixed, after = reloaded(out), dict(model.named_parameters())
    for name, weight in mixed.named_parameters():
        torch.testing.assert_close(weight, 0.25 * before[name] + 0.75 * after[name], atol=1e-7, rtol=1e-6)
        assert not torch.allclose(weight, after[name]) or torch.equal(before[name], after[name])


def test_an_average_in_bfloat16_is_computed_in_float32(tmp_path: Path) -> None:
    family = tiny_models.write(tmp_path / "family", "qwen2")
    model = plain(family).to(torch.bfloat16)
    earlier = exported(family, TokenLogprobs(model, 64), tmp_path / "earlier")
    name = "model.norm.weight"
    weight = dict(model.named_parameters())[name]
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(0.0078125)
    average = Average(directory=str(earlier), alpha=0.6)
    out = exported(family, TokenLogprobs(model, 64), tmp_path / "out", average=average)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        stored = file.get_tensor(name)
    expected = (1 - 0.6) * before.float() + 0.6 * weight.detach().float()
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored, expected.bfloat16())


def test_an_earlier_export_without_a_weight_is_refused(tmp_path: Path) -> None:
    family = tiny_models.write(tmp_path / "family", "qwen2")
    average = Average(directory=str(tiny_models.write(tmp_path / "other", "gpt2")), alpha=0.5)
    with pytest.raises(ModelError, match=r"other has no weight .* restore it"):
        exported(family, TokenLogprobs(plain(family), 64), tmp_path / "out", average=average)
