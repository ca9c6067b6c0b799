"""A group longer than a micro-batch is cut. Updates and metrics do not depend on where."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods import COMMON, GROUPS, figures, name_of, scored
from torch import Tensor
from torch_engine import TorchEngine, learner_of

from workers.engines.attention import layout_of
from workers.engines.heads import _hidden
from workers.packing import Packed
from workers.stats import StepStats
from workers.types import Experience, TokenShard

SIZES = [len(completions) for _, completions in GROUPS]
MODE = "sequence_truncate"
METHODS: list[dict[str, Any]] = [
    {"type": "grpo", "beta": 0.1, "loss_type": "grpo", **COMMON},
    {"type": "grpo", "beta": 0.1, "use_bias_correction_kl": True, "delta": 1.3, **COMMON},
    {"type": "grpo", "loss_type": "dr_grpo", "fixed_length": 8, "scale_rewards": "none", **COMMON},
    {"type": "grpo", "dynamic_sampling": True, "mask_truncated_completions": True, "epsilon_high": 0.28, **COMMON},
    {"type": "grpo", "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, **COMMON},
    {"type": "grpo", "loss_type": "cispo", "epsilon_high": 1.05, **COMMON},
    {"type": "grpo", "num_mini_batches": 2, "num_iterations": 2, **COMMON},
    {"type": "grpo", "vllm_importance_sampling_correction": True, "vllm_importance_sampling_mode": MODE, **COMMON},
    {"type": "rloo", "num_mini_batches": 2, **COMMON},
    {"type": "reinforce++", "beta": 0.1, "baseline": "group", **COMMON},
    {"type": "distill", "objective": "policy_gradient", **COMMON},
]


class DoubleEngine(TorchEngine):
    """Engine in float64, including the norms and log-probabilities that the product computes in float32.

    Different orders of summation then differ by rounding of 1e-16 only.
    """

    @classmethod
    def of(cls, engine: TorchEngine) -> DoubleEngine:
        engine.module.double()
        for module in engine.module.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = partial(rms_norm, weight=module.weight, eps=module.variance_epsilon)
        engine.__class__ = cls
        assert isinstance(engine, DoubleEngine)
        return engine

    def _run(self, packed: Packed, temperature: float, *target: Any) -> tuple[Tensor, Tensor]:
        assert not target
        tokens, positions, predictors, targets = (
            torch.from_numpy(a.astype(np.int64))
            for a in (packed.tokens, packed.positions, packed.predictors, packed.targets)
        )
        model = self.module.model
        hidden = _hidden(model.get_decoder(), tokens, positions, layout_of(packed, self.device))[predictors]
        logits = hidden @ model.get_output_embeddings().weight.T / temperature
        assert logits.dtype == torch.float64
        logs = logits.log_softmax(-1)
        return logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1).detach()


def step(model: Path, method: dict[str, Any], *, budget: int) -> tuple[StepStats, DoubleEngine]:
    learner, engine = learner_of(model, method, budget=budget)
    double = DoubleEngine.of(engine)
    sampled, scores, reference, values = scored(method)
    old = reference if method.get("vllm_importance_sampling_correction") else None
    return learner.step(0, sampled, scores, reference, values, old=old), double


def rms_norm(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
@pytest.mark.parametrize("budget", [7, 1])
def test_cut_and_whole_are_the_same_step(qwen2: Path, method: dict[str, Any], budget: int) -> None:
    whole, one = step(qwen2, method, budget=10_000)
    parts, many = step(qwen2, method, budget=budget)
    assert all(len(micro.completion_lengths) > 1 for micro in one.forwards)
    assert max(int(micro.row_lengths.max()) for micro in many.forwards) <= max(7, budget)
    assert max(int(micro.row_lengths.max()) for micro in one.forwards) == 10
    if budget == 1:  # no room for two completions
        assert {len(micro.completion_lengths) for micro in many.forwards} == {1}
    assert len(many.forwards) > len(one.forwards)
    assert len(many.gradients) == len(one.gradients) >= 1
    for cut, uncut in zip(many.gradients, one.gradients, strict=True):
        assert uncut.abs().max() > 1e-3
        torch.testing.assert_close(cut, uncut, rtol=1e-6, atol=1e-10)
    actual, expected = figures(parts), figures(whole)
    assert actual.keys() == expected.keys()
    assert expected["loss"] != 0 or "clip_ratio/low_mean" in expected
    assert actual == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_ranks_share_the_parts_of_one_group(qwen2: Path) -> None:
    """Train on a single group: both ranks get a part of it."""
    method = METHODS[0]
    sampled, scores, reference, _ = scored(method)
    first = _only_the_first(sampled[0])
    tokens = len(first.completions.values)
    scores = [type(scores[0])(rewards=scores[0].rewards[: SIZES[0]], by_scorer={})]
    reference = [TokenShard(completions=np.arange(SIZES[0]), values=reference[0].values[:tokens])]

    def train_step(rank: int, world_size: int, budget: int) -> tuple[StepStats, DoubleEngine]:
        learner, engine = learner_of(qwen2, method, rank=rank, world_size=world_size, budget=budget)
        double = DoubleEngine.of(engine)
        return learner.step(0, [first], scores, reference, None), double

    alone, engine = train_step(0, 1, 10_000)
    ranks = [train_step(rank, 2, 7) for rank in range(2)]
    assert [[m.completion_lengths.tolist() for m in e.forwards] for _, e in ranks] == [[[5]], [[3, 2]]]
    added = sum(e.gradients[0] for _, e in ranks)
    torch.testing.assert_close(added, engine.gradients[0], rtol=1e-6, atol=1e-10)
    actual, expected = figures(*(stats for stats, _ in ranks)), figures(alone)
    assert actual.pop("grad_norm") != expected.pop("grad_norm")  # each of these engines has only its own share
    assert actual == pytest.approx(expected, rel=1e-6, abs=1e-7)


def _only_the_first(sampled: Experience) -> Experience:
    size = SIZES[0]
    completions = sampled.completions.take(np.arange(size))
    assert sampled.logprobs is not None
    return Experience(
        prompts=sampled.prompts[:1],
        prompt_tokens=sampled.prompt_tokens.take(np.array([0])),
        completions=completions,
        group_offsets=np.array([0, size]),
        logprobs=sampled.logprobs[: len(completions.values)],
        versions=sampled.versions[:size],
        finish=sampled.finish[:size],
    )


def test_log_probabilities_do_not_depend_on_the_budget(qwen2: Path) -> None:
    sampled, *_ = scored(METHODS[0])
    answers = []
    for budget in (10_000, 7):
        learner, engine = learner_of(qwen2, METHODS[0], budget=budget)
        DoubleEngine.of(engine)
        share = learner.infer(sampled)
        order = np.argsort(share.completions)
        lengths = sampled[0].completions.lengths[share.completions]
        pieces = np.split(share.values, np.cumsum(lengths)[:-1])
        answers.append((np.concatenate([pieces[i] for i in order]), engine))
    np.testing.assert_allclose(answers[1][0], answers[0][0], rtol=1e-6)
    assert len(answers[1][1].inferred) > len(answers[0][1].inferred)
    assert max(int(packed.row_lengths.max()) for packed in answers[1][1].inferred) <= 7


def test_a_preference_pair_is_never_cut(qwen2: Path) -> None:
    method = {"type": "dpo", **COMMON}
    learner, engine = learner_of(qwen2, method, budget=1)
    learner.step(0, *scored(method))
    assert {len(micro.completion_lengths) for micro in engine.forwards} == {2}
