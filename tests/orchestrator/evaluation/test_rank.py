"""Rankings in one process: real reward workers, scoring ranks and files, with a sampler in torch."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judge_endpoint import Answer, endpoint, longer, score, shown
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))
sys.path.insert(0, str(Path(__file__).parents[2] / "workers"))

import cpu_run

from configs.quickstart.tiny import character_tokenizer, create_model
from orchestrator.errors import BadInput
from orchestrator.evaluation.rank import rank
from orchestrator.evaluation.rank_result import Ranking, as_json
from orchestrator.evaluation.rank_scores import final_answer
from orchestrator.evaluation.rank_show import show
from orchestrator.evaluation.rank_spec import RankSpec, spec
from orchestrator.rundir.directory import RunDirectory

pytestmark = pytest.mark.slow

LETTERS_A = f"function={cpu_run.REWARD}:letters_a"
SMALL = ("rollout.max_prompt_length=8", "rollout.max_completion_length=6", "model.dtype=float32")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model, another model of the family, a reward model, and prompts."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("task")
    cpu_run.write_task(directory)
    create_model(directory / "other", cpu_run.SHAPE, character_tokenizer(cpu_run.ALPHABET), seed=1)
    config = AutoConfig.from_pretrained(directory / "model", num_labels=1)
    torch.manual_seed(2)
    scorer: Any = AutoModelForSequenceClassification
    scorer.from_config(config, dtype=torch.float32).save_pretrained(directory / "scorer")
    AutoTokenizer.from_pretrained(directory / "model").save_pretrained(directory / "scorer")
    return directory


@pytest.fixture
def finished_run(task: Path, tmp_path: Path) -> Path:
    """Write the directory of a run whose model is `other`, and return it."""
    directory = RunDirectory.create(cpu_run.config(task, tmp_path, "iterative-dpo"), "")
    shutil.copytree(task / "other", directory.model)
    return directory.path


def ranked(given: RankSpec, output: Path) -> tuple[Ranking, list[dict[str, Any]], dict[str, Any]]:
    """Rank, and return the result with the contents of both files."""
    found = rank(given, output, lambda _: None, start_cluster=cpu_run.local_cluster)
    lines = [json.loads(line) for line in (output / "ranked.jsonl").read_text().splitlines()]
    return found, lines, json.loads((output / "rank.json").read_text())


def best_of(line: dict[str, Any], by: str, n: int) -> float:
    """Return the mean gold score of the best by a score, over all subsets of n samples; ties share."""
    golds = []
    for subset in combinations(line["completions"], n):
        highest = max(completion["scores"][by] for completion in subset)
        golds.append(np.mean([c["gold"] for c in subset if c["scores"][by] == highest]))
    return float(np.mean(golds))


def test_scores_are_compared_on_the_same_samples(task: Path, tmp_path: Path) -> None:
    by = ["implicit", "implicit_per_token", "policy", "policy_per_token", "majority", LETTERS_A]
    model, reference = str(task / "other"), str(task / "model")
    prompts = str(task / "prompts.jsonl")
    given = spec(model, prompts, by=by, gold=LETTERS_A, reference=reference, n=4, beta=0.5, overrides=SMALL)
    found, lines, summary = ranked(given, tmp_path / "out")

    assert [line["prompt"] for line in lines] == [f"{a}{b}>" for a in "abcd" for b in "abcd"]
    completions = [completion for line in lines for completion in line["completions"]]
    for line in lines:
        rewards = [completion["scores"]["implicit"] for completion in line["completions"]]
        assert rewards == sorted(rewards, reverse=True)
        assert {completion["index"] for completion in line["completions"]} == {0, 1, 2, 3}
    for completion in completions:
        scores = completion["scores"]
        assert scores["implicit_per_token"] == pytest.approx(scores["implicit"] / completion["tokens"])
        assert scores["policy_per_token"] == pytest.approx(scores["policy"] / completion["tokens"])
        letters = completion["completion"]
        assert completion["gold"] == scores[LETTERS_A] == pytest.approx(letters.count("a") / max(1, len(letters)))

    assert list(summary["by"]) == by
    for name in ("implicit", "policy", "policy_per_token", LETTERS_A):
        curve = summary["by"][name]["gains"]["curve"]
        expected = [np.mean([best_of(line, name, n) for line in lines]) for n in (1, 2, 4)]
        assert [point["n"] for point in curve] == [1, 2, 4]
        assert [point["gold"]["value"] for point in curve] == pytest.approx(expected)
    upper = [figure["value"] for figure in summary["gold"]["best"].values()]
    assert upper == pytest.approx([point["gold"]["value"] for point in summary["by"][LETTERS_A]["gains"]["curve"]])
    assert any(note.startswith(f"{LETTERS_A} is the gold score itself") for note in summary["notes"])
    json.loads(as_json(found))

    # Each completion is sampled once and read once per model, with the prompt (3) per group.
    tokens = sum(completion["tokens"] for completion in completions)
    read = {name: selected["cost"]["scored_tokens"] / (tokens + 16 * 3) for name, selected in summary["by"].items()}
    assert read == {by[0]: 2, by[1]: 2, by[2]: 1, by[3]: 1, by[4]: 0, by[5]: 0}
    assert summary["cost"]["generated_tokens"] == tokens
    assert summary["cost"]["scored_tokens"] == 2 * (tokens + 16 * 3)
    seconds = {name: selected["cost"]["device_seconds"] for name, selected in summary["by"].items()}
    assert seconds["implicit"] > seconds["policy"] > seconds["majority"] > 0
    out = io.StringIO()
    show(found, out)
    assert "and 8 more prompts" in out.getvalue()


def test_samples_are_ranked_by_a_reward_model(task: Path, tmp_path: Path) -> None:
    by = f"reward_model={task / 'scorer'}"
    overrides = (*SMALL, "reward.0.dtype=float32")
    given = spec(str(task / "other"), str(task / "prompts.jsonl"), by=[by], gold=LETTERS_A, n=4, overrides=overrides)
    _, lines, summary = ranked(given, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(task / "scorer")
    scorer = AutoModelForSequenceClassification.from_pretrained(task / "scorer", pad_token_id=tokenizer.pad_token_id)
    for line in lines[:4]:
        scores = [completion["scores"][by] for completion in line["completions"]]
        assert scores == sorted(scores, reverse=True)
        text = line["prompt"] + line["completions"][0]["completion"] + tokenizer.eos_token
        with torch.no_grad():
            expected = scorer(**tokenizer(text, return_tensors="pt")).logits.item()
        assert scores[0] == pytest.approx(expected, abs=1e-4)
    assert (summary["reference"], summary["gold"]["name"]) == (None, LETTERS_A)
    assert summary["by"][by]["cost"]["scored_tokens"] > 0


def test_a_judge_ranks_and_another_one_is_the_gold_score(task: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _: int) -> Answer:
        """Prefer the longer answer, and grade by letters a."""
        if "answer_a" in shown(body):
            return longer(body, 0)
        return 200, score(min(10, 1 + shown(body)["answer"].count("a")))

    with endpoint(answer) as server:
        written = f"url: {server.url}\nmodel: gold\nprice: [1.0, 1.0]\n"
        (tmp_path / "longer.yaml").write_text(f"{written}compare: true\nopponents: null\n")
        (tmp_path / "letters.yaml").write_text(written)
        by, gold = f"judge={tmp_path / 'longer.yaml'}", f"judge={tmp_path / 'letters.yaml'}"
        prompts = str(task / "prompts.jsonl")
        given = spec(str(task / "other"), prompts, by=[by, "policy"], gold=gold, n=4, overrides=SMALL)
        found, lines, summary = ranked(given, tmp_path / "out")
        asked = len(server.requests)
        again, _, _ = ranked(given, tmp_path / "again")
        assert len(server.requests) == asked, "no verdict is paid twice"
    for line in lines:
        lengths = [len(completion["completion"]) for completion in line["completions"]]
        assert lengths == sorted(lengths, reverse=True)
        for completion in line["completions"]:
            assert completion["gold"] == pytest.approx(min(9, completion["completion"].count("a")) / 9)
    cost = summary["by"][by]["cost"]
    assert 0 < cost["judge_requests"] < asked
    assert cost["judge_cost"] == pytest.approx(cost["judge_requests"] * 7 / 1e6)
    assert "judge_requests" not in summary["by"]["policy"]["cost"]
    assert (
        f"the gold score took {asked - cost['judge_requests']:.0f} requests to its judge, 0.00 dollars" in found.notes
    )
    assert again.by[by].cost["judge_requests"] == 0
    out = io.StringIO()
    show(found, out)
    assert f"{cost['judge_requests']:,.0f} requests to the judge, 0.00 dollars" in out.getvalue()


def test_the_file_of_a_judge_is_checked(task: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text("url: http://judge.example/v1\nmodle: gold\nmax_cost: 5\napi_key_env: KEY\n")
    with pytest.raises(BadInput) as refused:
        spec(str(task / "model"), str(task / "prompts.jsonl"), by=[f"judge={tmp_path / 'judge.yaml'}"])
    assert f"{tmp_path / 'judge.yaml'}:2: modle = gold" in str(refused.value)
    (tmp_path / "judge.yaml").write_text("url: http://judge.example/v1\nmodel: gold\nmax_cost: 5\napi_key_env: KEY\n")
    with pytest.raises(BadInput) as refused:
        spec(str(task / "model"), str(task / "prompts.jsonl"), gold=f"judge={tmp_path / 'judge.yaml'}")
    assert "the key would be sent over the network unencrypted" in str(refused.value)
    assert "judge.yaml:3: max_cost = 5\n  why: without prices nothing costs anything" in str(refused.value)


def test_the_gold_score_of_a_run_is_its_reward(task: Path, finished_run: Path, tmp_path: Path) -> None:
    prompts = str(task / "prompts.jsonl")
    given = spec(str(finished_run), prompts, n=2, overrides=["rollout.max_prompt_length=5", "max_prompts=3"])
    assert [score.name for score in given.by] == ["policy"]
    assert given.gold is not None
    assert given.gold.name == "reward of run"
    assert (given.suite.rollout.max_prompt_length, given.suite.rollout.max_completion_length) == (5, 6)
    assert given.suite.model.dtype == "float32", "settings of the run, except for the override"
    found, lines, _ = ranked(given, tmp_path / "out")
    assert [len(line["completions"]) for line in lines] == [2, 2, 2]
    assert found.gold is not None
    gold = [completion["gold"] for line in lines for completion in line["completions"]]
    assert found.gold.mean.value == pytest.approx(np.mean(gold))
    assert spec(str(finished_run), prompts, gold="none").gold is None


def test_a_reward_of_the_run_that_cannot_score_the_prompts_is_a_note(
    task: Path, finished_run: Path, tmp_path: Path
) -> None:
    resolved = finished_run / "resolved.json"
    resolved.write_text(resolved.read_text().replace(":letters_a", ":letters_b"))
    prompts = str(task / "prompts.jsonl")
    given = spec(str(finished_run), prompts, n=2)
    assert (given.gold, given.suite.reward) == (None, ())
    assert "not used as the gold score: there is no `letters_b`" in given.notes[0]
    with pytest.raises(BadInput, match="there is no `letters_b`"):
        ranked(spec(str(finished_run), prompts, gold="run"), tmp_path / "out")


def test_a_judge_of_the_run_is_asked_only_on_request(task: Path, finished_run: Path) -> None:
    resolved = finished_run / "resolved.json"
    config = json.loads(resolved.read_text())
    config["reward"] = [{"type": "judge", "url": "http://localhost:1/v1", "model": "gold"}]
    resolved.write_text(json.dumps(config))
    given = spec(str(finished_run), str(task / "prompts.jsonl"), n=2)
    assert (given.gold, given.suite.reward) == (None, ())
    assert "not used as the gold score: it asks a judge" in given.notes[0]
    asked = spec(str(finished_run), str(task / "prompts.jsonl"), n=2, gold="run")
    assert [reward.type for reward in asked.suite.reward] == ["judge"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": ["reward"]}, "--by reward\n  why: there is no such score"),
        ({"by": ["function"]}, "write --by function=FILE.py:NAME"),
        ({"by": ["math=solution"]}, "math takes no value"),
        ({"gold": "policy"}, "a gold score comes from a scorer"),
        ({"gold": "run"}, "was not produced by a run with a reward"),
        ({"by": ["implicit"]}, "the reference of the implicit reward is unknown"),
        ({"beta": 0.0}, "--beta 0"),
        ({"overrides": ["rollout.temperature=0"]}, r"rollout\.temperature"),
        ({"gold": "math", "overrides": ["reward=[]"]}, "another number of rewards"),
        ({"overrides": ["reward.0.dtype=float32"]}, "reward"),
    ],
)
def test_wrong_arguments_are_refused(task: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        spec(str(task / "model"), str(task / "prompts.jsonl"), **changes)


def test_files_are_checked_before_anything_starts(task: Path, tmp_path: Path) -> None:
    given = spec(str(task / "model"), str(task / "prompts.jsonl"), by=[f"reward_model={task / 'other'}"], gold="math")
    never: Callable[..., Any] = pytest.fail
    with pytest.raises(BadInput) as raised:
        rank(given, tmp_path, lambda _: None, start_cluster=never)
    assert "has no column `solution`" in str(raised.value)
    assert "other" in str(raised.value), "a policy is no reward model"


def test_answers_that_mean_the_same_vote_together() -> None:
    assert final_answer("So it is \\boxed{12}.") == final_answer("The answer is 12.")
    assert final_answer("The answer is (B).") == final_answer("\\boxed{B}")
    assert final_answer(" abc ") == "abc"
    assert final_answer("abc") != final_answer("acb")
