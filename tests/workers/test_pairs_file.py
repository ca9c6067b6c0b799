from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from fakes import experience

from workers.algorithms.dpo import prepare
from workers.config import DpoConfig, ModelConfig
from workers.engines.hf_text import TextCodec
from workers.files.pairs_file import write_pairs
from workers.types import Prompt, ScoredBatch


def test_a_pair_is_a_line_with_texts_scores_and_versions(qwen2: Path, tmp_path: Path) -> None:
    prompts = (Prompt(id="a.jsonl:1", text="ab>"), Prompt(id="a.jsonl:2", text=[{"role": "user", "content": "hi"}]))
    sampled = experience(
        [([3, 4, 11], [[3, 1], [4, 4, 1], [5, 1]]), ([5], [[6, 1], [7, 7, 7]])],
        prompts=prompts,
        logprobs=[-1.0] * 12,
        versions=np.array([4, 4, 5, 5, 5], np.int32),
    )
    scored = ScoredBatch(
        experience=sampled,
        rewards=np.float32([0.5, 2.0, 1.0, 0.25, 1.0]),
        reference_logprobs=np.zeros(12, np.float32),
        values=None,
    )
    batch, _ = prepare(scored, DpoConfig(type="dpo"))
    path = tmp_path / "rounds" / "1" / "pairs.parquet"
    write_pairs(path, batch, scored, TextCodec(ModelConfig(path=str(qwen2))))
    assert pq.read_table(path).to_pylist() == [
        {
            "prompt_id": "a.jsonl:1",
            "prompt": "ab>",
            "chosen": "bb",
            "chosen_score": 2.0,
            "chosen_version": 4,
            "chosen_tokens": 3,
            "rejected": "a",
            "rejected_score": 0.5,
            "rejected_version": 4,
            "rejected_tokens": 2,
            "margin": 1.5,
        },
        {
            "prompt_id": "a.jsonl:2",
            "prompt": "user: hi",
            "chosen": "eee",
            "chosen_score": 1.0,
            "chosen_version": 5,
            "chosen_tokens": 3,
            "rejected": "d",
            "rejected_score": 0.25,
            "rejected_version": 5,
            "rejected_tokens": 2,
            "margin": 0.75,
        },
    ]
