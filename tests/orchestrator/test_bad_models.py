"""Models that a recipe cannot use: what is said of their files before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workshop import Workshop, refused, safetensors_header, tokenizer

from orchestrator.cli import main

Golden = Callable[[str, str], None]


def test_b12_models(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.recipe()
    model = workshop.path / "model"
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused("recipe.yaml", "b12-lfs-pointer", golden, capsys)
    (model / "model.safetensors").unlink()
    (model / "tokenizer.json").unlink()
    refused("recipe.yaml", "b12-no-weights", golden, capsys)
    (model / "config.json").unlink()
    refused("recipe.yaml", "b12-no-config", golden, capsys)
    model.rmdir()
    refused("recipe.yaml", "b12-no-directory", golden, capsys)


def test_adapters_for_layers_that_the_model_has_not(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
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
    (workshop.path / "model" / "model.safetensors").write_bytes(safetensors_header(shapes))
    workshop.recipe({"model": "{path: ./model, lora: {target_modules: [up_proj, c_attn, lm_head, score, proj]}}"})
    refused("recipe.yaml", "lora-unknown-targets", golden, capsys)
    workshop.recipe({"model": "{path: ./model, lora: {target_modules: [up_proj, self_attn.q_proj]}}"})
    assert main(["validate", "recipe.yaml"]) == 0


def test_b15_conversations_need_a_chat_template(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.jsonl("prompts.jsonl", [{"prompt": [{"role": "user", "content": "1+1="}], "solution": "2"}] * 8)
    workshop.recipe()
    refused("recipe.yaml", "b15-no-chat-template", golden, capsys)
    (workshop.path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert main(["validate", "recipe.yaml"]) == 0


def test_a_teacher_with_another_tokenizer(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
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
    workshop.recipe(distill)
    refused("recipe.yaml", "teacher-of-another-tokenizer", golden, capsys)
    Path("teacher/model.safetensors").unlink()
    shutil.copy("model/tokenizer.json", "teacher/tokenizer.json")
    refused("recipe.yaml", "teacher-without-weights", golden, capsys)
    shutil.copy("model/model.safetensors", "teacher/model.safetensors")
    assert main(["validate", "recipe.yaml"]) == 0


def test_a_stage_hands_its_tokenizer_on_to_the_teacher_it_makes(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
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


def test_b13_b14_tokenizers(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer()
    config = Path("model/config.json")
    config.write_text('{"vocab_size": 16}')  # 13 characters and <pad>, <eos>, <unk>
    workshop.recipe()
    assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    config.write_text('{"vocab_size": 15}')
    refused("recipe.yaml", "b13-tokenizer-of-a-larger-model", golden, capsys)
    config.write_text('{"vocab_size": 16}')
    shutil.copytree("model", "critic")
    ppo = {"algorithm": "{type: ppo, prompts_per_step: 4, max_steps: 10}", "critic_model": "{path: ./critic}"}
    workshop.recipe(ppo)
    assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    tokenizer("critic", "9876543210+= ")
    refused("recipe.yaml", "b13-critic-with-another-tokenizer", golden, capsys)
    Path("model/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    workshop.recipe()
    refused("recipe.yaml", "b14-no-end-of-sequence", golden, capsys)


def test_b16_a_head_of_the_wrong_size(workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("model", "judge")
    Path("judge/config.json").write_text('{"architectures": ["XForSequenceClassification"], "id2label": {"0": "x"}}')
    workshop.recipe({"reward": "[{type: model, path: ./judge}]"})
    for rows, code in ((1, 0), (2, 2)):
        shapes = {"model.embed_tokens.weight": [32, 8], "score.weight": [rows, 8]}
        Path("judge/model.safetensors").write_bytes(safetensors_header(shapes))
        if code:
            refused("recipe.yaml", "b16-head-of-two-rows", golden, capsys)
        else:
            assert main(["validate", "recipe.yaml"]) == 0
            capsys.readouterr()


def test_b19_heads_are_shared_out_among_gpus(
    workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model/config.json").write_text('{"num_attention_heads": 28, "num_key_value_heads": 4}')
    for size in (1, 2, 4, 28):
        workshop.recipe({"rollout": f"{{tensor_parallel_size: {size}}}"})
        assert main(["validate", "recipe.yaml"]) == 0
    capsys.readouterr()
    workshop.recipe({"rollout": "{tensor_parallel_size: 8}"})
    refused("recipe.yaml", "b19-heads", golden, capsys)
