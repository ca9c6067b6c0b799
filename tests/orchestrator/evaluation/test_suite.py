"""Suites: loading, overrides, and the errors of wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_dir import RecipeDir

from orchestrator.cli.main import main
from orchestrator.errors import BadInput, Problems
from orchestrator.evaluation.suite import JudgeConfig, judge_key, load_suite
from orchestrator.evaluation.suite_files import check_models

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs" / "eval" / "quickstart.yaml"

BAD = {
    "keys": "promts: a.jsonl\nnum_generations: -1\nrollout: {temprature: 0.7}\nreward: [{type: maths}]\n",
    "nothing-to-evaluate-on": "seed: 1\n",
    "no-completions": "prompts: a.jsonl\ngreedy: false\nnum_generations: 0\nkl: false\n",
    "kl-of-what": "prompts: a.jsonl\nrollout: {top_p: 0.9, top_k: 40}\n",
    "kl-without-samples": "prompts: a.jsonl\nnum_generations: 0\n",
    "judge-of-nothing": "harmful: a.jsonl\njudge: {url: 'http://localhost:8000/v1', model: gold}\n",
    "labels-without-a-judge": "prompts: a.jsonl\npreferences: pairs.jsonl\n",
    "judge-whose-cost-is-unknown": "prompts: a.jsonl\njudge: {url: 'http://localhost/v1', model: gold, max_cost: 3}\n",
    "judge-whose-key-everyone-reads": "prompts: a.jsonl\n"
    "judge: {url: 'http://judge.example/v1', model: gold, api_key_env: A, api_key_file: b}\n",
    "judge-with-a-key-in-the-suite": "prompts: a.jsonl\n"
    "judge: {url: 'https://judge.example/v1', model: gold, api_key: abc}\n",
    "b27-a-judge-whose-url-holds-credentials": "prompts: a.jsonl\n"
    "judge: {url: 'https://user:word@judge.example/v1', model: gold}\n",
    "b27-a-judge-whose-url-is-none": "prompts: a.jsonl\njudge: {url: judge.example, model: gold}\n",
    "stages": "prompts: a.jsonl\nreward: [{type: model, from_stage: rm}]\n",
    "pairwise-alone": "prompts: a.jsonl\nreward: [{type: pairwise, path: ./judge}]\n",
    "a-list": "- prompts: a.jsonl\n",
}


@pytest.mark.parametrize("name", BAD)
def test_an_error_names_its_line(
    name: str, recipe_dir: RecipeDir, golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe_dir.path / "suite.yaml").write_text(BAD[name])
    code = main(["evaluate", "./model", "--suite", "suite.yaml"])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    golden(f"suite-{name}", printed.err)


def test_all_missing_files_are_named(
    recipe_dir: RecipeDir, golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe_dir.path / "suite.yaml").write_text("prompts: none.jsonl\nharmful: prompts.jsonl\nreward: [{type: math}]\n")
    code = main(["evaluate", "./nowhere", "--against", "./model", "--base", "./gone", "--suite", "suite.yaml"])
    assert code == 2
    golden("suite-files", capsys.readouterr().err)


def test_a_scorer_needs_its_column(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl("plain.jsonl", [{"prompt": "1+1="}])
    (recipe_dir.path / "suite.yaml").write_text("prompts: plain.jsonl\nreward: [{type: math}]\n")
    assert main(["evaluate", "./model", "--suite", "suite.yaml"]) == 2
    assert "plain.jsonl has no column `solution`" in capsys.readouterr().err


def test_overrides_change_a_suite() -> None:
    changed = load_suite(QUICKSTART, ["num_generations=2", "rollout.temperature=0.7", "judge.url=http://[::1]/v1",
                                      "judge.model=gold"])  # fmt: skip
    assert (changed.config.num_generations, changed.config.rollout.temperature) == (2, 0.7)
    assert changed.config.judge == JudgeConfig(url="http://[::1]/v1", model="gold")
    with pytest.raises(BadInput, match="did you mean `num_generations`"):
        load_suite(QUICKSTART, ["num_generation=2"])


def test_a_key_comes_from_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**given: str) -> tuple[str | None, list[str]]:
        problems = Problems()
        found = judge_key(JudgeConfig(url="https://judge.example/v1", model="gold", **given), problems)
        return found, [str(problem) for problem in problems]

    monkeypatch.setenv("JUDGE_ACCESS", " word \n")
    (tmp_path / "key").write_text("other\n")
    (tmp_path / "two").write_text("two\nlines")
    assert key() == (None, [])
    assert key(api_key_env="JUDGE_ACCESS") == ("word", [])
    assert key(api_key_file=str(tmp_path / "key")) == ("other", [])
    for given in ({"api_key_env": "NOT_SET_ANYWHERE"}, {"api_key_file": str(tmp_path / "none")}):
        found, problems = key(**given)
        assert (found, len(problems)) == (None, 1)
    found, problems = key(api_key_file=str(tmp_path / "two"))
    assert found is None
    assert "two" not in problems[0].partition("why:")[2], "the content of the file is not shown"


@pytest.mark.parametrize(
    ("model_type", "message"), [("gpt_neox", "vLLM cannot be used"), ("bert", "are not supported")]
)
def test_models_that_cannot_be_evaluated(model_type: str, message: str, recipe_dir: RecipeDir) -> None:
    (recipe_dir.path / "model" / "config.json").write_text(json.dumps({"model_type": model_type}))
    problems = Problems()
    check_models({"MODEL": "model"}, {}, 1, problems)
    assert [(message in problem.what, problem.where) for problem in problems] == [(True, "MODEL = model")]


def test_a_rank_by_implicit_reward_without_a_reference_is_refused(
    recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", "./model", "--prompts", "prompts.jsonl", "--by", "implicit"]) == 2
    assert "give --reference REF" in capsys.readouterr().err
    assert main(["rank", "./model", "--reference", "./model", "--prompts", "none.jsonl", "seeds=1"]) == 2
    assert "did you mean `seed`" in capsys.readouterr().err
