"""A data set that real engines sample, and a later stage that trains on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from attempts import Run

from orchestrator.generation.data_set import read_summary

pytestmark = [pytest.mark.stack, pytest.mark.long]


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_data_set_is_sampled_and_learned_from(
    finished: Callable[..., Run], family: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(family)
    learned = finished("generate", directory)
    assert learned.exit["cause"] == "completed"
    assert learned.figures("loss")[-1] < learned.figures("loss")[0]
    run = Run(directory / "runs" / "generate")
    assert run.exit["cause"] == "completed"
    assert not (run.path / "model").exists()
    rows = pq.read_table(run.path / "data" / "rows.parquet").to_pylist()
    summary = read_summary(run.path / "data")
    assert summary is not None
    assert (summary["completions"], summary["prompts"], summary["rows"]) == (1024, 256, len(rows))
    assert [row["prompt_id"] for row in rows] == sorted(
        (row["prompt_id"] for row in rows), key=lambda id: int(id.rpartition(":")[2])
    )
    assert isinstance(rows[0]["completion"], str if family == "qwen2" else list)
    roles = {path.name.partition("-")[0] for path in (run.path / "logs" / "attempt-1").glob("*.log")}
    assert roles == {"rollout", "reward", "writer"}
    assert set(run.figures("sampling/logp_difference")) == set(), "there is no learner to compare with"
