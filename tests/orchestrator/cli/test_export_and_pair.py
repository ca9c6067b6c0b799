"""Commands `rlhf export` and `rlhf pair` on run directories: what they write, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import experience

from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.data import read_examples
from orchestrator.rundir.directory import RunDirectory
from workers.files.groups_file import GROUPS, StoredTexts, write_groups
from workers.types import Prompt, ScoredBatch

RECIPE = """\
name: {name}
model: {{path: ./model}}
data: {{prompts: ./prompts.jsonl}}
algorithm: {algorithm}
reward: [{{type: math}}]
"""
DPO = "{type: dpo, max_steps: 3, pairs: {per_prompt: 2}}"

NewRun = Callable[..., RunDirectory]


@pytest.fixture
def new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewRun:
    monkeypatch.chdir(tmp_path)

    def create(name: str = "a", algorithm: str = DPO) -> RunDirectory:
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(RECIPE.format(name=name, algorithm=algorithm))
        return RunDirectory.create(load(recipe).stages[-1], recipe.read_text())

    return create


def write_round(run: RunDirectory, number: int, rewards: list[float]) -> None:
    """Write the groups of a round: one prompt with the answers a, b, c and d."""
    prompt = Prompt(id="p:1", text=[{"role": "user", "content": "hi"}])
    batch = experience([([3], [[4], [5], [6], [7]])], prompts=(prompt,), logprobs=[-1.0] * 4)
    scored = ScoredBatch(
        experience=batch, rewards=np.float32(rewards), reference_logprobs=None, values=None, by_scorer=None
    )
    write_groups(run.round(number) / GROUPS, scored, StoredTexts({(4,): "a", (5,): "b", (6,): "c", (7,): "d"}))


def pairs_of(path: str) -> list[tuple[str, str]]:
    rows = pq.read_table(path).to_pylist()
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_pairs_are_made_with_the_settings_of_the_run_or_others(
    new_run: NewRun, capsys: pytest.CaptureFixture[str]
) -> None:
    write_round(new_run(), 2, [0.1, 0.9, 0.5, 0.4])
    assert main(["pair", "runs/a", "--round", "2", "--output", "x.parquet"]) == 0
    assert pairs_of("x.parquet") == [("b", "a"), ("c", "d")]
    assert capsys.readouterr().out.splitlines() == [
        "pairs: 2, mean margin 0.45; left out: 0 duplicates, 0 above max_pairs; groups without a pair: 0.0%",
        "written to x.parquet  (a preference dataset: data.dataset)",
    ]
    others = ["algorithm.pairs.per_prompt=1", "algorithm.pairs={selection: max_max}"]
    assert main(["pair", "runs/a", "--round", "2", "--output", "y.parquet", *others]) == 0
    assert pairs_of("y.parquet") == [("b", "c")]
    capsys.readouterr()
    (example,) = read_examples("y.parquet", algorithm="dpo")
    assert example.prompt.text == [{"role": "user", "content": "hi"}]
    assert "would be overwritten" in refused(capsys, "pair", "runs/a", "--round", "2", "--output", "y.parquet")


def test_only_settings_of_pairs_may_change(new_run: NewRun, capsys: pytest.CaptureFixture[str]) -> None:
    write_round(new_run(), 1, [0.1, 0.9, 0.5, 0.4])
    pair = ("pair", "runs/a", "--round", "1", "--output", "x.parquet")
    assert "the samples and their scores are given" in refused(capsys, *pair, "algorithm.beta=0.2")
    assert "the run did not use gold answers" in refused(capsys, *pair, "algorithm.pairs.gold=add")
    assert "did you mean" in refused(capsys, *pair, "algorithm.pairs.selecton=all")
    assert "there is no pair" in refused(capsys, *pair, "algorithm.pairs.min_margin=0.9")
    assert not Path("x.parquet").exists()


def test_a_round_without_samples_is_refused(new_run: NewRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run()
    pair = ("pair", "runs/a", "--output", "x.parquet", "--round")
    assert "the run has none" in refused(capsys, *pair, "1")
    for number in (2, 10):
        write_round(run, number, [0.1, 0.9, 0.5, 0.4])
    assert "the run has those of round 2, 10" in refused(capsys, *pair, "1")
    (run.round(2) / GROUPS).write_bytes(b"PAR1")
    assert "cannot be read" in refused(capsys, *pair, "2")
    new_run("g", "{type: grpo, max_steps: 3}")
    assert "only iterative DPO" in refused(capsys, "pair", "runs/g", "--output", "x.parquet", "--round", "1")


def test_the_model_of_a_round_is_copied(new_run: NewRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run()
    for number, model in ((1, run.round_model(1)), (3, run.model)):
        model.mkdir(parents=True)
        (model / "model.safetensors").write_text(str(number))
    assert "export one of these: 1; " in refused(capsys, "export", "runs/a", "--round", "3"), "the run is not complete"
    exported = {"round": 3, "rounds": 3}
    run.write_exit(cause="completed", message="", exit_code=0, attempt=1, step=3, exported=exported)
    assert "export one of these: 1, 3; " in refused(capsys, "export", "runs/a", "--round", "2")
    for number, output in ((1, "there/model"), (3, "runs/a/exports/round-3")):
        assert main(["export", "runs/a", "--round", str(number), *(["--output", output] if number == 1 else [])]) == 0
        assert (Path(output) / "model.safetensors").read_text() == str(number)
        assert capsys.readouterr().out.splitlines()[-1] == f"model: {Path(output).absolute()}"
    assert "already exists" in refused(capsys, "export", "runs/a", "--round", "3")
    assert [p.name for p in Path("there").iterdir()] == ["model"], "no partial directory is left"
