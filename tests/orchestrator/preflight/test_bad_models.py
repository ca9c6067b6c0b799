"""Models that a recipe cannot use, refused by their files before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_dir import OFFLINE_DPO, RecipeDir, refused, safetensors_header, tokenizer

from orchestrator.cli.main import main

Golden = Callable[[str, str], None]
HELD_OUT = {"data": "{dataset: ./pairs.jsonl, eval_prompts: ./prompts.jsonl}", "reward": "[{type: math}]"}


def test_b12_models(recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.recipe()
    model = recipe_dir.path / "model"
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused("recipe.yaml", "b12-lfs-pointer", golden, capsys)
    (model / "model.safetensors").unlink()
    (model / "tokenizer.json").unlink()
    refused("recipe.yaml", "b12-no-weights", golden, capsys)
    (model / "config.json").unlink()
    refused("recipe.yaml", "b12-no-config", golden, capsys)
    model.rmdir()
    refused("recipe.yaml", "b12-no-directory", golden, capsys)


def test_b12_a_config_without_a_type(recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe_dir.path / "model" / "config.json").write_text('{"vocab_size": 10}')
    recipe_dir.recipe()
    refused("recipe.yaml", "b12-no-model-type", golden, capsys)


STAGE_2 = {**OFFLINE_DPO, "policy": "{zero_stage: 2}"}
LORA = {"model": "{path: ./model, lora: {}}"}


@pytest.mark.parametrize(
    ("model_type", "name", "changes"),
    [
        ("bert", "family-refused", {}),
        ("deepseek_v32", "family-of-sparse-attention", {}),
        ("t5", "family-writes-no-text", {}),
        ("of_tomorrow", "family-unknown", {}),
        ("xlstm", "family-not-in-bfloat16", {**STAGE_2, "model": "{path: ./model, dtype: bfloat16}"}),
        ("rwkv", "family-not-partitioned", {**OFFLINE_DPO, "policy": "{zero_stage: 3}"}),
        ("rwkv", "family-not-partitioned-as-reference", {**STAGE_2, "reference": "{zero_stage: 3}"}),
        ("zamba", "family-without-adapters", {**OFFLINE_DPO, **LORA}),
        ("gpt_neox", "family-not-sampled", {}),
        ("gpt_neox", "family-not-sampled-when-held-out", {**OFFLINE_DPO, **HELD_OUT}),
        ("gpt_oss", "family-not-published", {}),
        ("bloom", "family-whose-adapters-no-engine-takes", LORA),
    ],
)
def test_models_of_unsupported_families(
    model_type: str,
    name: str,
    changes: dict[str, str | None],
    recipe_dir: RecipeDir,
    golden: Golden,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _of_type(recipe_dir, model_type)
    recipe_dir.recipe(changes)
    refused("recipe.yaml", name, golden, capsys)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("xlstm", {**STAGE_2, "model": "{path: ./model, dtype: float32}"}),
        ("rwkv", STAGE_2),
        ("gpt_neox", OFFLINE_DPO),  # no engine
        ("gpt_oss", {**LORA, "cluster": "{device: cuda, allow_open: true}"}),
        ("bloom", {}),  # whole weights are published
    ],
)
def test_a_fault_of_a_family_matters_only_where_the_feature_is_used(
    model_type: str, changes: dict[str, str | None], recipe_dir: RecipeDir
) -> None:
    _of_type(recipe_dir, model_type)
    recipe_dir.recipe(changes)
    assert main(["validate", "recipe.yaml"]) == 0


def test_a_composite_has_the_faults_of_its_own_type_and_those_of_its_text(
    recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "mamba"}}
    (recipe_dir.path / "model" / "config.json").write_text(json.dumps(config))
    recipe_dir.recipe(OFFLINE_DPO)
    assert main(["validate", "recipe.yaml"]) == 0
    assert "models of type mamba cannot take packed rows" in capsys.readouterr().out
    config = {"model_type": "gemma4", "text_config": {"model_type": "gemma4_text"}}
    (recipe_dir.path / "model" / "config.json").write_text(json.dumps(config))
    recipe_dir.recipe({**OFFLINE_DPO, "policy": "{zero_stage: 3}"})
    assert main(["validate", "recipe.yaml"]) == 2
    assert "models of type gemma4 cannot be partitioned" in capsys.readouterr().err


def test_adapters_of_mixtures_are_refused_for_an_engine_on_a_cpu(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_dir.recipe({**LORA, "cluster": "{device: cpu}"})
    _of_type(recipe_dir, "gemma4_text", num_experts=8)
    refused("recipe.yaml", "family-whose-adapters-no-cpu-takes", golden, capsys)
    _of_type(recipe_dir, "gemma4_text")
    assert main(["validate", "recipe.yaml"]) == 0
    recipe_dir.recipe({**LORA, "cluster": "{device: cuda, allow_open: true}"})
    _of_type(recipe_dir, "gemma4_text", num_experts=8)
    assert main(["validate", "recipe.yaml"]) == 0


def test_teachers_and_critics_have_the_faults_of_their_families(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recipe_dir.path / "model", recipe_dir.path / "other")
    (recipe_dir.path / "other" / "config.json").write_text('{"model_type": "xlstm"}')
    distill = "{type: distill, prompts_per_step: 4, num_generations: 2, objective: divergence, max_steps: 2}"
    teacher = "{model: {path: ./other, dtype: bfloat16}, zero_stage: 3}"
    recipe_dir.recipe({"algorithm": distill, "teacher": teacher, "reward": None})
    refused("recipe.yaml", "family-of-a-teacher", golden, capsys)
    ppo = "{type: ppo, prompts_per_step: 4, num_generations: 2, max_steps: 2}"
    recipe_dir.recipe({"algorithm": ppo, "critic_model": "{path: ./other}", "critic": "{zero_stage: 3}"})
    refused("recipe.yaml", "family-of-a-critic", golden, capsys)


def test_a_later_stage_has_the_faults_of_the_model_that_the_first_began_with(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    _of_type(recipe_dir, "gpt_neox")
    _two_stages(recipe_dir)
    refused("both.yaml", "family-not-sampled-in-a-later-stage", golden, capsys)


def test_texts_that_engine_and_learner_would_read_at_different_positions(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    rope = {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}
    config = {"model_type": "phi3", "max_position_embeddings": 131072, **rope}
    (recipe_dir.path / "model" / "config.json").write_text(json.dumps(config))
    recipe_dir.recipe({"rollout": "{max_prompt_length: 3072, max_completion_length: 1024}"})
    assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    recipe_dir.recipe({"rollout": "{max_prompt_length: 3072, max_completion_length: 1025}"})
    refused("recipe.yaml", "positions-by-length", golden, capsys)
    recipe_dir.recipe({**OFFLINE_DPO, "data": "{dataset: ./pairs.jsonl, max_length: 8192}"})
    assert main(["validate", "recipe.yaml"]) == 0, "no engine"


def test_a_family_that_was_not_measured_is_named(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    _of_type(recipe_dir, "gemma3n")
    recipe_dir.recipe()
    assert main(["validate", "recipe.yaml"]) == 0
    assert "models of type gemma3n were not measured" in capsys.readouterr().out


def test_weights_that_are_quantised(recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}
    (recipe_dir.path / "model" / "config.json").write_text(json.dumps(config))
    recipe_dir.recipe()
    refused("recipe.yaml", "quantised", golden, capsys)


def _two_stages(recipe_dir: RecipeDir) -> None:
    """Write both.yaml: sft, then grpo on its model."""
    recipe_dir.recipe(
        {"data": "{dataset: ./demos.jsonl}", "algorithm": "{type: sft, batch_size: 4}", "reward": None}, "base.yaml"
    )
    Path("both.yaml").write_text(
        "stages:\n- {recipe: base.yaml}\n- name: second\n  model: {from_stage: arith}\n"
        "  data: {prompts: ./prompts.jsonl}\n  reward: [{type: math}]\n"
        "  algorithm: {type: grpo, prompts_per_step: 4, num_generations: 2, max_steps: 10}\n"
    )


def _of_type(recipe_dir: RecipeDir, model_type: str, **further: int) -> None:
    (recipe_dir.path / "model" / "config.json").write_text(json.dumps({"model_type": model_type, **further}))


def test_the_cost_of_a_model_without_packing_is_reported(
    recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    _of_type(recipe_dir, "mamba")
    recipe_dir.recipe()
    assert main(["validate", "recipe.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "models of type mamba cannot take packed rows" in printed
    assert "each prompt is computed 2 times, once per completion" in printed


def test_adapters_for_layers_that_the_model_lacks(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = {
        "model.embed_tokens.weight": [32, 8],
        "model.layers.0.self_attn.q_proj.weight": [8, 8],
        "model.layers.0.self_attn.q_proj.bias": [8],
        "model.layers.0.mlp.up_proj.weight": [16, 8],
        "model.norm.weight": [8],
        "lm_head.weight": [32, 8],
        "score.weight": [1, 8],
    }
    (recipe_dir.path / "model" / "model.safetensors").write_bytes(safetensors_header(shapes))
    recipe_dir.recipe({"model": "{path: ./model, lora: {target_modules: [up_proj, c_attn, lm_head, score, proj]}}"})
    refused("recipe.yaml", "lora-unknown-targets", golden, capsys)
    recipe_dir.recipe({"model": "{path: ./model, lora: {target_modules: [up_proj, self_attn.q_proj]}}"})
    assert main(["validate", "recipe.yaml"]) == 0


def test_b15_conversations_need_a_chat_template(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_dir.jsonl("prompts.jsonl", [{"prompt": [{"role": "user", "content": "1+1="}], "solution": "2"}] * 8)
    recipe_dir.recipe()
    refused("recipe.yaml", "b15-no-chat-template", golden, capsys)
    (recipe_dir.path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert main(["validate", "recipe.yaml"]) == 0


def test_a_teacher_with_another_tokenizer(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("model", "teacher")
    vocabularies = {"model": {"a": 0, "b": 1, "c": 2}, "teacher": {"a": 0, "c": 1, "b": 2}}
    for directory, vocabulary in vocabularies.items():
        Path(directory, "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    distill = {
        "algorithm": "{type: distill, prompts_per_step: 4, max_steps: 10}",
        "teacher": "{model: {path: ./teacher}}",
        "reward": None,
    }
    recipe_dir.recipe(distill)
    refused("recipe.yaml", "teacher-of-another-tokenizer", golden, capsys)
    Path("teacher/model.safetensors").unlink()
    shutil.copy("model/tokenizer.json", "teacher/tokenizer.json")
    refused("recipe.yaml", "teacher-without-weights", golden, capsys)
    shutil.copy("model/model.safetensors", "teacher/model.safetensors")
    assert main(["validate", "recipe.yaml"]) == 0


def test_a_reference_with_another_tokenizer(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("model", "earlier")
    vocabularies = {"model": {"a": 0, "b": 1, "c": 2}, "earlier": {"a": 0, "c": 1, "b": 2}}
    for directory, vocabulary in vocabularies.items():
        Path(directory, "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    algorithm = "{type: dpo, prompts_per_step: 4, num_generations: 2, max_steps: 3}"
    recipe_dir.recipe({"algorithm": algorithm, "reference": "{path: ./earlier}"})
    refused("recipe.yaml", "reference-of-another-tokenizer", golden, capsys)
    shutil.copy("model/tokenizer.json", "earlier/tokenizer.json")
    assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    recipe_dir.recipe({"algorithm": algorithm, "reference": "{path: ./nowhere}"})
    refused("recipe.yaml", "reference-that-is-missing", golden, capsys)


def test_a_stage_hands_its_tokenizer_on_to_the_teacher_it_makes(
    recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("model", "other")
    for directory, token in (("model", "a"), ("other", "b")):
        Path(directory, "tokenizer.json").write_text(json.dumps({"model": {"vocab": {token: 0}}}))
    for origin, code in (("model", 0), ("other", 2)):
        Path("stages.yaml").write_text(
            f"stages:\n- {{name: base, model: {{path: {origin}}}, data: {{dataset: demos.jsonl}}, "
            "algorithm: {type: sft, batch_size: 4}}\n"
            "- {name: student, model: {path: model}, teacher: {model: {from_stage: base}}, "
            "data: {dataset: demos.jsonl}, algorithm: {type: distill, batch_size: 4}}\n"
        )
        assert main(["validate", "stages.yaml"]) == code
    assert "token 0 is 'a' in one and 'b' in the other" in capsys.readouterr().err


def test_b13_b14_tokenizers(recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer()
    config = Path("model/config.json")
    config.write_text('{"model_type": "llama", "vocab_size": 16}')  # 13 characters and <pad>, <eos>, <unk>
    recipe_dir.recipe()
    assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    config.write_text('{"model_type": "llama", "vocab_size": 15}')
    refused("recipe.yaml", "b13-tokenizer-of-a-larger-model", golden, capsys)
    config.write_text('{"model_type": "llama", "vocab_size": 16}')
    shutil.copytree("model", "critic")
    ppo = {"algorithm": "{type: ppo, prompts_per_step: 4, max_steps: 10}", "critic_model": "{path: ./critic}"}
    recipe_dir.recipe(ppo)
    assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    tokenizer("critic", "9876543210+= ")
    refused("recipe.yaml", "b13-critic-with-another-tokenizer", golden, capsys)
    Path("model/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    recipe_dir.recipe()
    refused("recipe.yaml", "b14-no-end-of-sequence", golden, capsys)


def test_b16_a_head_of_the_wrong_size(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("model", "judge")
    Path("judge/config.json").write_text(
        '{"model_type": "llama", "architectures": ["XForSequenceClassification"], "id2label": {"0": "x"}}'
    )
    recipe_dir.recipe({"reward": "[{type: model, path: ./judge}]"})
    for rows, code in ((1, 0), (2, 2)):
        shapes = {"model.embed_tokens.weight": [32, 8], "score.weight": [rows, 8]}
        Path("judge/model.safetensors").write_bytes(safetensors_header(shapes))
        if code:
            refused("recipe.yaml", "b16-head-of-two-rows", golden, capsys)
        else:
            assert main(["validate", "recipe.yaml"]) == 0
            capsys.readouterr()


def test_b19_heads_are_shared_out_among_gpus(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model/config.json").write_text('{"model_type": "llama", "num_attention_heads": 28, "num_key_value_heads": 4}')
    for size in (1, 2, 4, 28):
        recipe_dir.recipe({"rollout": f"{{tensor_parallel_size: {size}}}"})
        assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    recipe_dir.recipe({"rollout": "{tensor_parallel_size: 8}"})
    refused("recipe.yaml", "b19-heads", golden, capsys)


def _with_positions(directory: str, number: int) -> None:
    if directory != "model":
        shutil.copytree("model", directory)
    Path(directory, "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": number}))


def test_b37_more_tokens_than_positions(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    """Expect 512 + 1024 = 1536 tokens; 512 - 512 leaves no room for a completion, 1535 - 512 leaves 1023."""
    _with_positions("model", 512)
    lengths = "{max_prompt_length: 512, max_completion_length: 1024}"
    recipe_dir.recipe({"rollout": lengths})
    refused("recipe.yaml", "b37-positions-none-left", golden, capsys)
    _with_positions("model", 1535)
    refused("recipe.yaml", "b37-positions", golden, capsys)
    _with_positions("model", 1536)
    assert main(["validate", "recipe.yaml"]) == 0
    stretched = {"rope_scaling": {"type": "linear", "factor": 2}}
    Path("model/config.json").write_text(
        json.dumps({"model_type": "llava", "text_config": {"max_position_embeddings": 768, **stretched}})
    )
    assert main(["validate", "recipe.yaml"]) == 0


def test_b37_positions_of_critic_teacher_reward_model_and_rows(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("model", 2048), ("critic", 1000), ("teacher", 1000), ("scorer", 1000)):
        _with_positions(name, number)
    kind = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    config = {**kind, "max_position_embeddings": 1000}
    Path("scorer/config.json").write_text(json.dumps(config))
    recipe_dir.recipe(
        {
            "algorithm": "{type: ppo, max_steps: 3, prompts_per_step: 4}",
            "critic_model": "{path: ./critic}",
            "reward": "[{type: model, path: ./scorer, max_length: 1001}]",
        }
    )
    refused("recipe.yaml", "b37-positions-of-critic-and-reward", golden, capsys)
    rows = {"data": "{dataset: ./demos.jsonl, max_length: 2049}", "reward": None}
    distill = {"algorithm": "{type: distill, batch_size: 4}", "teacher": "{model: {path: ./teacher}}"}
    recipe_dir.recipe({**rows, **distill})
    refused("recipe.yaml", "b37-positions-of-rows", golden, capsys)
    recipe_dir.recipe({"data": "{dataset: ./demos.jsonl}", "algorithm": "{type: sft, batch_size: 4}", "reward": None})
    _with_positions("model", 512)  # rows are truncated there, which is reported for each
    assert main(["validate", "recipe.yaml"]) == 0


def test_a_stage_has_the_positions_it_began_with(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_positions("model", 600)
    _two_stages(recipe_dir)
    refused("both.yaml", "b37-positions-of-a-stage", golden, capsys)
