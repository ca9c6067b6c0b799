"""Scored groups on disk: they are read back as written, and paired again they give the pairs of the round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import experience

from workers.algorithms.dpo import prepare
from workers.config import DpoConfig, ModelConfig, PairsConfig
from workers.engines.hf_text import TextCodec
from workers.files.groups_file import GROUPS, GroupsError, StoredTexts, read_groups
from workers.files.round_files import pair_again, write_round
from workers.gold import with_gold
from workers.types import Experience, Finish, Prompt, ScoredBatch

USER = [{"role": "user", "content": "ab"}]
TEXTS = (
    Prompt(id="a.jsonl:1", text="ab>", columns={"solution": 4, "tags": ["x"], "kind": None}),
    Prompt(id="a.jsonl:2", text="c"),
)
MESSAGES = (Prompt(id="m:1", text=USER, columns={"tools": [{"name": "f"}]}), Prompt(id="m:2", text=USER))
MIXED = (TEXTS[0], MESSAGES[1])


def sampled(prompts: tuple[Prompt, ...] = TEXTS) -> Experience:
    """Return two groups, of three and of four completions, and a gold answer of the second."""
    groups = [([3, 4, 11], [[3, 1], [4, 4, 1], [5, 1]]), ([5], [[6, 1], [7, 7, 7], [6, 1], [8, 1]])]
    batch = experience(
        groups,
        prompts=prompts,
        logprobs=[-1.0] * 16,
        versions=np.array([4, 4, 5, 5, 5, 5, 5], np.int32),
        finish=np.array([*[Finish.stop] * 4, Finish.length, *[Finish.stop] * 2], np.int32),
        temperature=0.7,
    )
    return with_gold(batch, [[], [3, 3, 1]])


def scored(batch: Experience) -> ScoredBatch:
    rewards = np.float32([0.1, 0.7, 0.3, 0.2, 0.9, 0.2, 0.4, 1.0])
    return ScoredBatch(
        experience=batch,
        rewards=rewards,
        reference_logprobs=np.zeros(len(batch.completions.values), np.float32),
        values=None,
        seed=2**62 + 7,
        by_scorer={"math": rewards, "judge": np.float32([np.nan, 1, 2, 3, 4, 5, 6, 7])},
        weights={"math": 1.0, "judge": 0.5},
    )


def written(directory: Path, model: Path, batch: ScoredBatch, settings: PairsConfig) -> Path:
    """Write the files of a round as the learner does, and return the path of its pairs."""
    path = directory / "rounds" / "1" / "pairs.parquet"
    codec = TextCodec(ModelConfig(path=str(model)))
    rows, _ = prepare(batch, DpoConfig(type="dpo", pairs=settings))
    write_round(path, rows, batch, codec, keep_groups=settings.keep_groups)
    return path


@pytest.mark.parametrize("prompts", [TEXTS, MESSAGES, MIXED], ids=["text", "messages", "both"])
def test_groups_are_read_back_as_written(qwen2: Path, tmp_path: Path, prompts: tuple[Prompt, ...]) -> None:
    before = scored(sampled(prompts))
    path = written(tmp_path, qwen2, before, PairsConfig(gold="add")).with_name(GROUPS)
    after, texts = read_groups(path)
    assert after.experience.prompts == before.experience.prompts
    for name in ("prompt_tokens", "completions"):
        ours, theirs = getattr(after.experience, name), getattr(before.experience, name)
        assert [tokens.tolist() for tokens in ours] == [tokens.tolist() for tokens in theirs]
    for name in ("group_offsets", "versions", "finish"):
        assert np.array_equal(getattr(after.experience, name), getattr(before.experience, name)), name
    assert (after.seed, after.experience.temperature) == (before.seed, 0.7)
    assert np.array_equal(after.rewards, before.rewards)
    assert after.weights == before.weights
    assert after.by_scorer is not None
    assert before.by_scorer is not None
    for name, values in before.by_scorer.items():
        assert np.array_equal(after.by_scorer[name], values, equal_nan=True)
    assert np.isnan(after.experience.logprobs).all(), "no log-probability is invented"
    assert texts.decode_batch([[4, 4, 1], [7, 7, 7]], skip_special_tokens=False) == ["bb", "eee"]


def test_messages_are_a_column_of_messages(qwen2: Path, tmp_path: Path) -> None:
    path = written(tmp_path, qwen2, scored(sampled(MESSAGES)), PairsConfig()).with_name(GROUPS)
    first, _ = pq.read_table(path).to_pylist()
    assert first["prompt"] == USER
    assert first["completions"] == ["a", "bb", "c"]
    assert [score["judge"] for score in first["scores"]][1:] == [1.0, 2.0]
    assert first["reward"] == pytest.approx([0.1, 0.7, 0.3])


@pytest.mark.parametrize("prompts", [TEXTS, MESSAGES, MIXED], ids=["text", "messages", "both"])
@pytest.mark.parametrize(
    "settings",
    [
        PairsConfig(per_prompt=2, gold="add"),
        PairsConfig(selection="random", per_prompt=None, gold="chosen"),
        PairsConfig(
            selection="all", per_prompt=None, max_pairs=5, length_penalty=0.01, truncated_chosen=True, gold="add"
        ),
    ],
    ids=["max_min", "gold", "capped"],
)
def test_the_same_settings_give_the_same_file(
    qwen2: Path, tmp_path: Path, prompts: tuple[Prompt, ...], settings: PairsConfig
) -> None:
    pairs = written(tmp_path, qwen2, scored(sampled(prompts)), settings)
    again = tmp_path / "again" / "pairs.parquet"
    made = pair_again(pairs.with_name(GROUPS), again, settings)
    assert made["pairs/count"] > 0
    written_files = sorted(p.name for p in pairs.parent.glob("pairs*"))
    assert sorted(p.name for p in again.parent.iterdir()) == written_files
    for name in written_files:
        assert (again.parent / name).read_bytes() == (pairs.parent / name).read_bytes()


def test_other_settings_give_other_pairs(qwen2: Path, tmp_path: Path) -> None:
    groups = written(tmp_path, qwen2, scored(sampled()), PairsConfig(gold="add")).with_name(GROUPS)

    def chosen(**settings: object) -> list[tuple[str, str]]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pair_again(groups, path, PairsConfig(**settings))  # type: ignore[arg-type]
        return [(row["chosen"], row["rejected"]) for row in pq.read_table(path).to_pylist()]

    assert chosen(gold="add") == [("bb", "a"), ("aa", "d")]
    assert chosen() == [("bb", "a"), ("f", "d")], "without the gold answer, and with no truncated answer as chosen"
    assert chosen(truncated_chosen=True) == [("bb", "a"), ("eee", "d")]
    assert chosen(selection="max_max") == [("bb", "c"), ("f", "d")]
    assert chosen(min_margin=0.5) == [("bb", "a")]
    # The judge prefers c to bb, with a third of the weights.
    assert chosen(selection="max_max", min_agreement=0.6) == [("bb", "c"), ("f", "d")]
    assert chosen(selection="max_max", min_agreement=0.7) == [("f", "d")]


def test_groups_of_a_round_without_a_pair_are_kept_and_only_on_request(qwen2: Path, tmp_path: Path) -> None:
    none = written(tmp_path / "none", qwen2, scored(sampled()), PairsConfig(min_margin=5.0))
    assert [p.name for p in none.parent.iterdir()] == [GROUPS]
    made = pair_again(none.with_name(GROUPS), tmp_path / "no.parquet", PairsConfig(min_margin=5.0))
    assert made["pairs/count"] == 0
    assert not (tmp_path / "no.parquet").exists()
    off = written(tmp_path / "off", qwen2, scored(sampled()), PairsConfig(keep_groups=False))
    assert [p.name for p in off.parent.iterdir()] == ["pairs.parquet"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(GroupsError, match="no such file"):
        read_groups(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(GroupsError, match="not the scored groups"):
        read_groups(path)
    pq.write_table(pa.table({"prompt": ["a"]}), path)
    with pytest.raises(GroupsError, match="not the scored groups"):
        read_groups(path)


def test_stored_texts_have_their_special_tokens() -> None:
    assert StoredTexts({(1, 2): "x"}).decode_batch([[1, 2]], skip_special_tokens=False) == ["x"]
