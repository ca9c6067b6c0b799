"""Learner functions other than training: comparison with the engine, metrics, inference, publication and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fakes import experience
from torch_engine import TorchEngine, learner_of
from transformers import AutoModelForCausalLM

from workers.engines.base import ModelError
from workers.packing import pack
from workers.segment import Segment
from workers.stats import merge_stats
from workers.types import Experience, Floats, Scores, TokenShard, assemble
from workers.updates import COMPARED_TOKENS
from workers.weights import Rendezvous

GROUPS = [([3, 4, 11], [[4, 3, 1], [3, 1]]), ([5], [[6, 1], [7, 8, 9, 1]]), ([6, 7], [[1], [8, 1]])]
REWARDS = np.float32([1, 0, 0.5, 2, 1, 0])
NUM_TOKENS = 14
GRPO = {"type": "grpo"}
DPO = {"type": "dpo"}
PPO = {"type": "ppo"}
SCORES = [Scores(rewards=REWARDS, by_scorer={})]


def own_logprobs(engine: TorchEngine, temperature: float = 1.0) -> Floats:
    """Return the engine's own log-probabilities of all completions."""
    plain = experience(GROUPS)
    packed = pack(plain.prompt_tokens, plain.completions, plain.group_offsets, np.arange(len(GROUPS)))
    found: Floats = engine.infer(packed, temperature).numpy()
    return found


def sampled(engine: TorchEngine, off: Any = 0.0, **changes: Any) -> Experience:
    """Return experience whose log-probabilities differ by `off` from the learner's."""
    temperature = changes.get("temperature", 1.0)
    return experience(GROUPS, logprobs=list(own_logprobs(engine, temperature) + off), **changes)


# ------------------------------------------------------------------------------------------------ probe


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_engine_and_learner_are_compared_token_by_token(qwen2: Path, world_size: int) -> None:
    off = np.zeros(NUM_TOKENS, np.float32)
    off[3] = 0.5  # the first group's second completion
    off[13] = -0.25  # the very last token
    stats = []
    for rank in range(world_size):
        learner, engine = learner_of(qwen2, GRPO, rank=rank, world_size=world_size)
        given = [sampled(engine, off)]
        engine.inferred.clear()
        stats.append(learner.step(0, given, SCORES, None, None))
        assert len(engine.inferred) == 1
    found = merge_stats(stats)
    assert found["sampling/logp_difference"] == pytest.approx(0.75 / 14, rel=1e-3)
    assert found["sampling/logp_difference_max"] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("algorithm", [GRPO, DPO])
def test_engines_that_agree_differ_by_rounding_at_any_temperature(qwen2: Path, algorithm: dict[str, Any]) -> None:
    learner, engine = learner_of(qwen2, algorithm)
    given = sampled(engine, temperature=0.5)
    reference = [TokenShard(completions=np.arange(6), values=np.zeros(NUM_TOKENS, np.float32))]
    stats = learner.step(0, [given], SCORES, reference if algorithm is DPO else None, None)
    assert stats.maxima["sampling/logp_difference_max"] < 1e-5


def test_only_the_first_few_completions_are_compared(qwen2: Path) -> None:
    group = ([3, 4], [[5] * 19 + [1]] * 2)  # 2 + 2 × 19 = 40 input positions
    enough = COMPARED_TOKENS // 40
    rows = enough + 3
    learner, engine = learner_of(qwen2, GRPO)
    given = experience([group] * rows, logprobs=[-1.0] * (40 * rows))
    learner.step(0, [given], [Scores(rewards=np.zeros(2 * rows, np.float32), by_scorer={})], None, None)
    assert engine.inferred[0].row_lengths.tolist() == [40] * enough


def test_a_dataset_is_not_probed(qwen2: Path) -> None:
    learner, engine = learner_of(qwen2, {"type": "sft"})
    stats = learner.step(0, [experience(GROUPS)], None, None, None)
    assert engine.inferred == []
    assert set(stats.sums) == {"loss", "entropy"}


# ------------------------------------------------------------------------------------------------ facts


def test_on_policy_losses_are_of_the_sampled_temperature(qwen2: Path) -> None:
    on_policy, engine = learner_of(qwen2, GRPO)
    stats = on_policy.step(0, [sampled(engine, temperature=0.5)], SCORES, None, None)
    assert engine.temperatures == [0.5]
    assert stats.sums["clip_ratio/region_mean"] == 0  # every ratio is 1 before the first update
    off_policy, engine = learner_of(qwen2, DPO)
    reference = [TokenShard(completions=np.arange(6), values=own_logprobs(engine))]
    stats = off_policy.step(0, [sampled(engine, temperature=0.5)], SCORES, reference, None)
    assert engine.temperatures == [1.0]
    assert stats.sums["loss"] == pytest.approx(np.log(2), rel=1e-5)  # the policy is its own reference


def test_the_policy_reports_the_metrics_of_the_experience(qwen2: Path) -> None:
    learner, engine = learner_of(qwen2, GRPO)
    versions = np.array([4, 4, 4, 4, 3, 3], np.int32)
    given = sampled(engine, versions=versions, num_dropped=2, num_truncated=1, seconds=1.5)
    facts = learner.step(5, [given], SCORES, None, None).facts
    assert facts["staleness/mean"] == pytest.approx((4 * 1 + 2 * 2) / 6)
    assert facts["staleness/max"] == 2
    assert (facts["data/dropped"], facts["data/truncated"], facts["timing/generate"]) == (2, 1, 1.5)


def test_the_critic_reports_only_its_own_metrics(qwen2: Path) -> None:
    critic, _ = learner_of(qwen2, {**PPO, "kl_coef": 0.0}, head="values")
    given = experience(GROUPS, logprobs=[-1.0] * NUM_TOKENS)
    values = [critic.infer([given])]
    stats = critic.step(0, [given], SCORES, None, values)
    assert set(stats.facts) == {"num_updates", "grad_norm", "learning_rate", "timing/learn"}
    assert set(stats.sums) == {"loss/value_avg", "val/clipfrac_avg"}


# ------------------------------------------------------------------------------------------------ values


def test_values_of_all_ranks_cover_every_token(qwen2: Path) -> None:
    given = experience(GROUPS)
    shares = []
    for rank in range(2):
        critic, engine = learner_of(qwen2, PPO, head="values", rank=rank, world_size=2, budget=5)
        torch.nn.init.constant_(engine.module.value_head.bias, 0.25)
        shares.append(critic.infer([given]))
    assert sorted(np.concatenate([s.completions for s in shares]).tolist()) == [0, 1, 2, 3, 4, 5]
    assert np.concatenate([s.values for s in shares]).tolist() == [0.25] * NUM_TOKENS


def test_the_policy_answers_with_log_probabilities(qwen2: Path) -> None:
    policy, engine = learner_of(qwen2, GRPO, budget=5)
    given = experience(GROUPS, temperature=0.5)
    found = assemble([policy.infer([given])], given.completions)
    np.testing.assert_allclose(found, own_logprobs(engine, temperature=1.0), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------ weights


def test_weights_reach_a_reader_by_way_of_the_segment(model: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "segment")
    writer, engine = learner_of(model, GRPO, world_size=2)
    other_rank, _ = learner_of(model, GRPO, rank=1, world_size=2)
    manifest = writer.open_weights(path, None)
    assert other_rank.open_weights(path, None) == manifest
    reader = Segment(path)
    for change in (0.5, 0.25):
        with torch.no_grad():
            for parameter in engine.module.parameters():
                parameter += change
        other_rank.send_weights()
        writer.send_weights()
        received = dict(reader.read(manifest.entries))
        expected = dict(engine.weights())
        assert list(received) == list(expected)
        assert all(torch.equal(received[name], expected[name]) for name in expected)
    writer.close()
    assert not Path(path).exists()


def test_nccl_uses_a_rendezvous_and_no_segment(qwen2: Path) -> None:
    rendezvous = Rendezvous(address="10.0.0.7", port=29500, world_size=3)
    manifest = learner_of(qwen2, GRPO)[0].open_weights(None, rendezvous)
    assert (manifest.segment, manifest.rendezvous) == (None, rendezvous)


def test_export_is_a_hugging_face_directory(model: Path, tmp_path: Path) -> None:
    learner, engine = learner_of(model, {"type": "sft", "learning_rate": 0.01})
    learner.step(0, [experience(GROUPS)], None, None, None)
    learner.export(str(tmp_path / "model"))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    found = dict(loaded.named_parameters(remove_duplicate=False))
    assert all(torch.equal(found[name], weight) for name, weight in engine.weights())


def test_only_the_first_rank_writes(qwen2: Path, tmp_path: Path) -> None:
    learner, _ = learner_of(qwen2, GRPO, rank=1, world_size=2)
    learner.export(str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


# ------------------------------------------------------------------------------------------------ pairs


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_writes_the_pairs(qwen2: Path, tmp_path: Path, rank: int) -> None:
    learner, engine = learner_of(qwen2, DPO, rank=rank, world_size=2)
    reference = [TokenShard(completions=np.arange(6), values=np.zeros(NUM_TOKENS, np.float32))]
    path = tmp_path / "pairs.parquet"
    learner.step(0, [sampled(engine)], SCORES, reference, None, str(path))
    assert path.exists() == (rank == 0)
    if rank == 0:
        assert pq.read_table(path, columns=["chosen", "margin"]).to_pylist() == [
            {"chosen": "ba", "margin": 1.0},
            {"chosen": "efg", "margin": 1.5},
            {"chosen": "", "margin": 1.0},
        ]


# ------------------------------------------------------------------------------------------------ steps without rows


@pytest.mark.parametrize("algorithm", [GRPO, DPO, PPO])
def test_a_step_whose_prompts_are_all_too_long_is_reported(qwen2: Path, algorithm: dict[str, Any]) -> None:
    learner, _ = learner_of(qwen2, algorithm)
    with pytest.raises(ModelError, match=r"all 7 prompts of step 3 are too long .* rollout\.max_prompt_length"):
        learner.step(
            2, [experience([], num_dropped=7)], [Scores(rewards=np.zeros(0, np.float32), by_scorer={})], None, None
        )
