"""Distillation from a teacher's hidden states and output layer, compared with Hugging Face and plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import experience
from torch import Tensor
from torch_engine import TorchEngine, learner_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.quickstart.tiny import character_tokenizer, create_model
from workers.config import ModelConfig, ReferenceConfig
from workers.engines.base import ModelError
from workers.engines.hf_files import load_output_layer
from workers.engines.hf_text import require_same_tokenizer
from workers.learner import Learner
from workers.reference import Reference
from workers.stats import StepStats, merge_stats
from workers.types import Experience, TokenShard, assemble_vectors
from workers.vocabulary import first_difference, read_vocabulary

GROUPS = [([3, 4, 5], [[6, 7, 1], [8, 1]]), ([11], [[3, 4, 5, 6, 7, 8, 1]]), ([9, 10], [[1], [3, 3, 1]])]
NUM_TOKENS = 16
BETAS = (0.0, 0.5, 1.0)
SETTINGS = {"type": "distill", "learning_rate": 1e-2, "adam_epsilon": 1e-5, "temperature": 0.8}
TEACHER = {  # another shape than the student's
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


@pytest.fixture(params=["qwen2", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Return student and teacher of a family: tied qwen2, untied llama."""
    student: Path = request.getfixturevalue(request.param)
    config = {"model_type": request.param, "tie_word_embeddings": request.param == "qwen2", **TEACHER}
    create_model(tmp_path / "teacher", config, AutoTokenizer.from_pretrained(student), seed=7)
    return student, tmp_path / "teacher"


def answers(teacher: Path, given: Experience, num_ranks: int = 1, dtype: Any = "float32") -> list[TokenShard]:
    config = ReferenceConfig(num_ranks=num_ranks, tokens_per_micro_batch=6)
    model = ModelConfig(path=str(teacher), dtype=dtype)
    ranks = [Reference(model, config, rank=rank, address="", port=0, cuda=False, chunk=4) for rank in range(num_ranks)]
    return [rank.hidden([given]) for rank in ranks]


def plain_logits(model: Any) -> Tensor:
    """Return the logits at every predicted position: [T, V]."""
    return torch.cat(
        [
            model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            for prompt, group in GROUPS
            for completion in group
        ]
    )


def hugging_face(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


def step(
    pair: tuple[Path, Path], *, at: int = 0, num_ranks: int = 1, shares: int = 2, budget: int = 10_000, **settings: Any
) -> tuple[list[StepStats], list[TorchEngine], list[Learner]]:
    given = experience(GROUPS, logprobs=[-2.0] * NUM_TOKENS)
    hidden = answers(pair[1], given, num_ranks=shares)
    learners = [
        learner_of(pair[0], {**SETTINGS, **settings}, rank=rank, world_size=num_ranks, budget=budget, teacher=pair[1])
        for rank in range(num_ranks)
    ]
    stats = [learner.step(at, [given], None, hidden, None) for learner, _ in learners]
    return stats, [engine for _, engine in learners], [learner for learner, _ in learners]


def test_hidden_states_and_output_layer_make_the_teachers_logits(pair: tuple[Path, Path]) -> None:
    given = experience(GROUPS)
    vectors = assemble_vectors(answers(pair[1], given, num_ranks=2), given.completions)
    layer = load_output_layer(ModelConfig(path=str(pair[1]), dtype="float32"))
    assert layer.bias is None
    logits = torch.from_numpy(vectors.take(np.arange(NUM_TOKENS))) @ layer.weight.T
    torch.testing.assert_close(logits, plain_logits(hugging_face(pair[1])).detach(), atol=1e-5, rtol=1e-5)


def test_states_in_bfloat16_travel_as_their_bits(pair: tuple[Path, Path]) -> None:
    given = experience(GROUPS)
    (half,), (whole,) = (answers(pair[1], given, dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert half.values.dtype == np.uint16
    states = torch.from_numpy(half.values).view(torch.bfloat16).float()
    torch.testing.assert_close(states, torch.from_numpy(whole.values), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("beta", BETAS)
def test_loss_and_gradient_are_those_of_plain_torch(pair: tuple[Path, Path], beta: float) -> None:
    (stats,), (engine,), _ = step(pair, beta=beta)
    student, teacher = (hugging_face(path) for path in pair)
    p, q = ((plain_logits(model) / 0.8).softmax(-1) for model in (student, teacher))
    m = (1 - beta) * p + beta * q
    kls = {
        0.0: (q * (q / p).log()).sum(-1),
        0.5: ((q * (q / m).log()).sum(-1) + (p * (p / m).log()).sum(-1)) / 2,
        1.0: (p * (p / q).log()).sum(-1),
    }
    expected = kls[beta].mean()
    expected.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    assert stats.sums["loss"] == stats.sums["divergence"] == pytest.approx(expected.item(), rel=1e-4)
    assert stats.sums["entropy"] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-5)
    torch.testing.assert_close(engine.gradients[0], gradient, atol=1e-5, rtol=1e-4)
    assert gradient.abs().max() > 1e-3


def test_micro_batches_and_ranks_add_up(pair: tuple[Path, Path]) -> None:
    (whole,), (one,), _ = step(pair)
    (_,), (many,), _ = step(pair, budget=1)
    assert len(many.forwards) >= len(GROUPS)
    torch.testing.assert_close(many.gradients[0], one.gradients[0], atol=1e-5, rtol=1e-4)
    stats, ranks, _ = step(pair, num_ranks=4)  # one rank has no rows
    torch.testing.assert_close(sum(e.gradients[0] for e in ranks), one.gradients[0], atol=1e-5, rtol=1e-4)
    assert merge_stats(stats)["divergence"] == pytest.approx(whole.sums["divergence"], rel=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_training_moves_the_student_to_its_teacher(pair: tuple[Path, Path], beta: float) -> None:
    given = experience(GROUPS)  # as from a dataset
    hidden = answers(pair[1], given)
    learner, _ = learner_of(pair[0], {**SETTINGS, "beta": beta}, teacher=pair[1])
    found = [learner.step(i, [given], None, hidden, None).sums["divergence"] for i in range(30)]
    assert found[-1] < 0.1 * found[0]


def test_a_student_that_is_its_own_teacher_stays(pair: tuple[Path, Path]) -> None:
    (stats,), (engine,), _ = step((pair[0], pair[0]))
    assert stats.sums["divergence"] == pytest.approx(0, abs=1e-6)
    assert engine.gradients[0].abs().max() < 1e-5


# ------------------------------------------------------------------------------------------------ tokenizers


def test_another_tokenizer_is_refused_with_the_first_token_that_differs(qwen2: Path, tmp_path: Path) -> None:
    create_model(tmp_path / "other", {"model_type": "qwen2", **TEACHER}, character_tokenizer("abxdefgh>:"), seed=0)
    same, other = ModelConfig(path=str(qwen2)), ModelConfig(path=str(tmp_path / "other"))
    require_same_tokenizer(same, same)
    with pytest.raises(ModelError, match="token 5 is 'c' in one and 'x' in the other"):
        require_same_tokenizer(same, other)


def test_vocabularies_are_read_without_a_tokenizer(model: Path, tmp_path: Path) -> None:
    assert read_vocabulary(model) == AutoTokenizer.from_pretrained(model).get_vocab()
    assert read_vocabulary(tmp_path) is None
    assert first_difference({"a": 0}, {"a": 0, "b": 1}) == "token 1 is missing in one and 'b' in the other"


def test_the_output_layer_is_found_among_many_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    model = hugging_face(pair[1])
    model.save_pretrained(tmp_path / "sharded", max_shard_size="2KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    layer = load_output_layer(ModelConfig(path=str(tmp_path / "sharded"), dtype="bfloat16"))
    assert torch.equal(layer.weight, model.get_output_embeddings().weight.bfloat16())


def test_a_model_without_safetensors_is_refused(qwen2: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((qwen2 / "config.json").read_text())
    with pytest.raises(ModelError, match=r"no lm_head.weight or model.embed_tokens.weight in its \*.safetensors"):
        load_output_layer(ModelConfig(path=str(tmp_path)))
