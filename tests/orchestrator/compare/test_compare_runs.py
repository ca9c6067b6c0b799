"""COMPARE.yaml: its runs, its errors, and the reuse of complete runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 - builds its cache before a test changes HOME
import pytest
from recipe_dir import OFFLINE_DPO, RecipeDir
from run_on_disk import write_attempt
from test_comparison import answers

from orchestrator.cli.main import main
from orchestrator.compare.known_optimum import KnownOptimum, known_card, read_known, shortfall
from orchestrator.compare.recipe import load_comparison
from orchestrator.compare.runs import run_comparison
from orchestrator.config import load
from orchestrator.rundir.directory import RunDirectory

ROOT = Path(__file__).parents[3]
COMPARE = """\
name: two
seeds: [0, 1]
max_device_seconds: 60
num_samples: 2
tasks:
  - name: adding
    overrides: {data.eval_prompts: ./heldout.jsonl}
    methods:
      - {name: GRPO, recipe: grpo.yaml, sweep: {algorithm.beta: [0.01, 0.1]}}
      - {name: offline DPO, recipe: dpo.yaml}
"""


@pytest.fixture
def comparison(recipe_dir: RecipeDir) -> Path:
    recipe_dir.jsonl("heldout.jsonl", [{"prompt": f"{i}+2=", "solution": f"{i + 2}"} for i in range(8)])
    recipe_dir.recipe(name="grpo.yaml")
    recipe_dir.recipe({**OFFLINE_DPO, "reward": "[{type: math}]"}, name="dpo.yaml")
    path = recipe_dir.path / "compare.yaml"
    path.write_text(COMPARE)
    return path


def test_every_setting_and_seed_is_a_run_of_its_own(comparison: Path) -> None:
    runs = load_comparison(comparison).runs
    assert [(r.method, r.setting, r.seed) for r in runs] == [
        ("GRPO", "beta 0.01", 0),
        ("GRPO", "beta 0.01", 1),
        ("GRPO", "beta 0.1", 0),
        ("GRPO", "beta 0.1", 1),
        ("offline DPO", "", 0),
        ("offline DPO", "", 1),
    ]
    first = runs[2].config
    assert (first.algorithm.beta, first.seed, first.max_device_seconds) == (0.1, 0, 60.0)  # type: ignore[union-attr]
    assert first.evaluation.num_samples == 2
    assert str(first.directory) == "runs/two/adding--GRPO--beta-0.1--seed-0"
    assert len({r.config.directory for r in runs}) == 6


def test_the_comparison_of_the_quickstart_is_valid() -> None:
    loaded = load_comparison(ROOT / "configs" / "quickstart" / "compare.yaml")
    assert {r.method for r in loaded.runs} == {"PPO", "GRPO", "offline DPO", "iterative DPO"}
    assert {r.task for r in loaded.runs} == {"sorting", "words"}
    optimum = read_known(ROOT / "configs" / "quickstart" / str(loaded.config.known))
    assert [m.name for m in optimum.methods] == ["PPO", "GRPO", "offline DPO", "iterative DPO"]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("compare-misspelt", "seeds: [0, 1]", "seed: [0, 1]"),
        ("compare-twice", "seeds: [0, 1]", "seeds: [0, 0]"),
        ("compare-sweep-of-one-number", "[0.01, 0.1]", "0.01"),
        ("compare-bad-recipe", "algorithm.beta", "algorithm.bta"),
        ("compare-no-methods", "  - name: adding", "  - name: adding\n    method: []"),
        ("compare-other-base", "{name: offline DPO, recipe: dpo.yaml}",
         "{name: offline DPO, recipe: dpo.yaml, overrides: {model.path: ./another}}"),
        ("compare-nothing-held-out", "{data.eval_prompts: ./heldout.jsonl}", "{}"),
    ],
)  # fmt: skip
def test_errors_are_reported(
    comparison: Path,
    name: str,
    before: str,
    after: str,
    golden: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    comparison.write_text(COMPARE.replace(before, after))
    assert main(["compare", "compare.yaml", "--dry-run"]) == 2
    golden(name, capsys.readouterr().err)


def test_complete_runs_are_reused(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that only the report of six complete runs is written: starting a run would need a cluster and a model."""
    for i, run in enumerate(load_comparison(comparison).runs):
        directory = RunDirectory.create(run.config, run.recipe.text)
        write_attempt(directory, answers=answers(8.0 if run.method == "GRPO" else 0.2, i))
    assert main(["compare", str(comparison)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("complete, reused") == 6
    assert "adding: GRPO ahead at equal compute" in printed
    written = Path("runs/two")
    body = json.loads((written / "comparison.json").read_text())
    assert body["tasks"][0]["order"] == ["GRPO", "offline DPO"]
    assert body["tasks"][0]["num_seeds"] == 2
    assert "<strong>GRPO ahead" in (written / "report.html").read_text()
    assert (written / "report.md").read_text().startswith("# two\n")


def test_a_failed_run_is_reported_as_missing(comparison: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_comparison(comparison)
    for i, run in enumerate(loaded.runs[:-1]):
        write_attempt(RunDirectory.create(run.config, run.recipe.text), answers=answers(1.0, i))
    monkeypatch.setattr("orchestrator.compare.runs.child_command", lambda *_: [sys.executable, "-c", "exit(3)"])
    printed: list[str] = []
    outcome = run_comparison(loaded, say=printed.append)
    assert [line.partition(":")[0] for line in outcome.lost] == ["adding, offline DPO, seed 1"]
    assert any("exit code 3" in line for line in printed)
    assert "offline DPO, seed 1" in (loaded.config.directory / "report.md").read_text()


# ------------------------------------------------------------------------------------------------ known optimum


KNOWN_OPTIMUM = {
    "about": "a world",
    "x": "KL",
    "y": "reward",
    "best": [[0.0, 1.0], [1.0, 2.0], [2.0, 2.5]],
    "methods": [{"name": "<PPO>", "points": [{"setting": "b", "runs": [[1.0, 1.5], [1.0, 2.0]]}]}],
}


def test_shortfall_is_a_share_of_the_possible_gain(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    path.write_text(json.dumps(KNOWN_OPTIMUM))
    optimum = read_known(path)
    assert shortfall(optimum, optimum.methods[0]) == pytest.approx(0.25)  # mean of 1/2 and 0
    card = known_card(optimum)
    assert "&lt;PPO&gt; falls short by 25.0 %" in card.picture
    path.write_text("{}")
    with pytest.raises(Exception, match="not a file of known optima"):
        read_known(path)
    assert isinstance(optimum, KnownOptimum)


def test_recipes_of_the_words_task_differ_only_in_the_method() -> None:
    recipes = [p for p in sorted((ROOT / "configs/quickstart/words").glob("*.yaml")) if p.stem != "base"]
    stages = [load(recipe).stages[-1] for recipe in recipes]
    assert len({(s.model.path, s.data.eval_prompts, s.rollout.max_completion_length) for s in stages}) == 1
