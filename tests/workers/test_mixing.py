"""Pairs of earlier rounds and of a dataset: their tokens come back exactly, and the draw depends on the seed alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import experience

from workers.algorithms.dpo import prepare
from workers.config import DpoConfig, ModelConfig, PairsConfig
from workers.encoder import Encoder
from workers.engines.base import ModelError
from workers.engines.hf_text import TextCodec
from workers.files.round_files import MIXED, write_round
from workers.given import GIVEN
from workers.gold import with_gold
from workers.mixing import Mix, draw
from workers.types import Example, Experience, Finish, Prompt, ScoredBatch, Text, merge

PAIRS = PairsConfig(per_prompt=2, truncated_chosen=True)
UNK, PAD = 2, 0  # their texts are encoded as other tokens


def sampled(first: int = 3) -> Experience:
    """Return two groups of four completions. Some hold tokens that no text is encoded to."""
    groups = [
        ([3, 4, 11], [[first, UNK, 1], [4, PAD], [5, 1], [6, 1]]),
        ([first, 11], [[7, 1], [8, 8, 1], [9, 1], [10, UNK]]),
    ]
    prompts = tuple(Prompt(id=f"p.jsonl:{i}", text="x", columns={"solution": i}) for i in (1, 2))
    finish = np.array([Finish.stop, Finish.length, *[Finish.stop] * 5, Finish.length], np.int32)
    return experience(groups, prompts=prompts, logprobs=[-1.0] * 18, finish=finish, temperature=0.7)


def scored(batch: Experience) -> ScoredBatch:
    rewards = np.linspace(0, 1, len(batch.completions), dtype=np.float32)
    none = np.zeros(len(batch.completions.values), np.float32)
    return ScoredBatch(experience=batch, rewards=rewards, reference_logprobs=none, values=None, seed=5)


def written(directory: Path, model: Path, batch: Experience, pairs: PairsConfig = PAIRS) -> dict[int, str]:
    """Write a round, and return its directory by its number."""
    of_round = scored(batch)
    rows, _ = prepare(of_round, DpoConfig(type="dpo", pairs=pairs))
    write_round(directory / "pairs.parquet", rows, of_round, TextCodec(ModelConfig(path=str(model))), keep_groups=True)
    return {int(directory.name): str(directory)}


def mix(**changes: Any) -> Mix:
    return Mix(**{"rounds": {}, "num_earlier": 100, "examples": (), "pairs": PAIRS, "seed": 7, "chunk": 3} | changes)


def mixed(model: Path, **changes: Any) -> Experience:
    return Encoder(ModelConfig(path=str(model)), max_length=10).mix(mix(**changes))


def tokens(batch: Experience) -> list[tuple[list[int], list[int], list[int]]]:
    """Return (prompt, chosen, rejected) of each group of two."""
    both = [completion.tolist() for completion in batch.completions]
    return list(zip((p.tolist() for p in batch.prompt_tokens), both[::2], both[1::2], strict=True))


def trained(batch: Experience, pairs: PairsConfig = PAIRS) -> list[tuple[list[int], list[int], list[int]]]:
    rows, _ = prepare(scored(batch), DpoConfig(type="dpo", pairs=pairs))
    both = [completion.tolist() for completion in rows.completions]
    return list(zip((p.tolist() for p in rows.prompts), both[::2], both[1::2], strict=True))


def example(prompt: Text, chosen: Text, rejected: Text) -> Example:
    return Example(prompt=Prompt(id=f"d:{prompt}", text=prompt), completions=(chosen, rejected), scores=(1.0, 0.0))


@pytest.mark.parametrize("gold", ["never", "add", "chosen"])
def test_pairs_of_a_round_come_back_with_the_tokens_that_it_trained_on(qwen2: Path, tmp_path: Path, gold: Any) -> None:
    settings = PAIRS.model_copy(update={"gold": gold, "length_penalty": 0.01})
    batch = sampled() if gold == "never" else with_gold(sampled(), [[3, 3, 1], []])
    back = mixed(qwen2, rounds=written(tmp_path / "1", qwen2, batch, settings), pairs=settings)
    assert tokens(back) == trained(batch, settings)
    assert any({UNK, PAD} & {*chosen, *rejected} for _, chosen, rejected in tokens(back))
    assert (back.versions == GIVEN).all()
    assert back.logprobs is not None
    assert np.isnan(back.logprobs).all(), "no log-probability is invented"
    assert {prompt.id for prompt in back.prompts} <= {"rounds/1/p.jsonl:1", "rounds/1/p.jsonl:2"}
    assert back.chunk == 3


def test_pairs_are_drawn_from_all_rounds_by_the_seed(qwen2: Path, tmp_path: Path) -> None:
    rounds = written(tmp_path / "1", qwen2, sampled()) | written(tmp_path / "2", qwen2, sampled(first=4))
    every = tokens(mixed(qwen2, rounds=rounds))
    assert len(every) == 8
    some = [tokens(mixed(qwen2, rounds=rounds, num_earlier=3, seed=seed)) for seed in (1, 1, 2)]
    assert some[0] == some[1] != some[2]
    assert all(len(part) == 3 and all(pair in every for pair in part) for part in some)


def test_rows_of_the_dataset_follow_with_their_margins_and_truncated(qwen2: Path, tmp_path: Path) -> None:
    rows = [example("ab>", "c", "dd"), example("aaaaaaaaaaaa>", "a", "b"), example(">", "a", "abcdefghabcdefgh")]
    back = mixed(qwen2, rounds=written(tmp_path / "1", qwen2, sampled()), num_earlier=1, examples=rows)
    assert tokens(back)[1:] == [([3, 4, 11], [5, 1], [6, 6, 1]), ([11], [3, 1], [3, 4, 5, 6, 7, 8, 9, 10, 3])]
    assert back.rewards is not None
    assert back.rewards[2:].tolist() == [1, 0, 1, 0]
    assert back.finish[-2:].tolist() == [Finish.stop, Finish.length]
    assert (back.num_dropped, back.num_truncated) == (1, 1)
    alone = mixed(qwen2, examples=rows[:1])
    assert tokens(alone) == [([3, 4, 11], [5, 1], [6, 6, 1])]


def test_a_round_without_pairs_gives_none(qwen2: Path, tmp_path: Path) -> None:
    settings = PAIRS.model_copy(update={"min_margin": 5.0})
    back = mixed(qwen2, rounds=written(tmp_path / "1", qwen2, sampled(), settings), pairs=settings)
    assert (len(back.prompts), len(back.completions), back.chunk) == (0, 0, 3)
    merged = merge([sampled(), back])
    assert merged.logprobs is not None
    assert tokens(back) == []


def test_missing_groups_are_named_with_what_to_do(qwen2: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"rounds.mix.earlier_rounds") as error:
        mixed(qwen2, rounds={2: str(tmp_path / "2")})
    assert str(tmp_path / "2" / "groups.parquet") in str(error.value)


def test_a_draw_takes_each_number_at_most_once() -> None:
    assert draw(4, 9, seed=0).tolist() == [0, 1, 2, 3]
    assert draw(0, 9, seed=0).tolist() == draw(5, 0, seed=0).tolist() == []
    several = [draw(100, 10, seed=seed).tolist() for seed in range(200)]
    assert all(sorted(set(one)) == one and len(one) == 10 for one in several)
    counts = np.bincount(np.concatenate(several), minlength=100)
    assert counts.min() >= 5, "every number comes up, 20 times on average"


def test_a_round_keeps_what_is_mixed_in_apart_from_its_own_pairs(qwen2: Path, tmp_path: Path) -> None:
    earlier = mixed(qwen2, rounds=written(tmp_path / "1", qwen2, sampled()), examples=[example("ab>", "c", "dd")])
    own = scored(sampled(first=4))
    alone = tmp_path / "alone" / "2"
    written(alone, qwen2, sampled(first=4))
    batch = merge([own.experience, earlier])
    assert own.rewards is not None
    assert earlier.rewards is not None
    whole = replace(
        own,
        experience=batch,
        rewards=np.concatenate([own.rewards, earlier.rewards]),
        reference_logprobs=np.zeros(len(batch.completions.values), np.float32),
    )
    rows, _ = prepare(whole, DpoConfig(type="dpo", pairs=PAIRS))
    path = tmp_path / "2" / "pairs.parquet"
    write_round(path, rows, whole, TextCodec(ModelConfig(path=str(qwen2))), keep_groups=True)
    for name in ("pairs.parquet", "groups.parquet"):
        assert (path.with_name(name)).read_bytes() == (alone / name).read_bytes()
    beside = pq.read_table(path.with_name(MIXED)).to_pylist()
    # Of the first prompt one pair is the same in both rounds: it is trained on once.
    assert [row["prompt_id"] for row in beside] == ["rounds/1/p.jsonl:1", *["rounds/1/p.jsonl:2"] * 2, "d:ab>"]
    assert {row["chosen_version"] for row in beside} == {None}
    assert not (alone / MIXED).exists()
