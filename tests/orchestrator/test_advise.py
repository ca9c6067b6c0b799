"""`rlhf advise`: facts counted by hand, rules that flip answers, room by the planner, and nothing claimed beyond."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from workshop import Workshop, tokenizer

from orchestrator.advise import advice as module
from orchestrator.advise.advice import Advice, advise, decide
from orchestrator.advise.facts import Check, Facts, measure
from orchestrator.advise.methods import RECIPES, REWARD_MODEL, Method, recipe_of
from orchestrator.advise.reading import read
from orchestrator.advise.room import Cluster, Room
from orchestrator.advise.rules import ENOUGH_PAIRS, MANY_PAIRS, METHODS, SETTINGS, biased_to_length
from orchestrator.advise.show import as_json, assumed, measured
from orchestrator.cli import main
from orchestrator.config import load
from orchestrator.errors import BadInput
from orchestrator.evaluation.statistics import wilson
from orchestrator.plan.gpus import parse_gpus

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "datasets", "wandb", "peft")
Golden = Callable[[str, str], None]
PAIR = {"prompt": "1+1=", "chosen": "22", "rejected": "3"}
LABEL = {"prompt": "1+1=", "completion": "2", "label": True}


def facts_of(workshop: Workshop, *files: list[dict[str, Any]], model: str | None = None, **told: bool) -> Facts:
    names = [f"data-{i}.jsonl" for i in range(len(files))]
    for name, rows in zip(names, files, strict=True):
        workshop.jsonl(name, list(rows))
    return measure(read(names), model, verifiable=told.get("verifiable", False))


# ------------------------------------------------------------------------------------------------ facts


def test_comparisons_are_counted_once_and_both_ways(workshop: Workshop) -> None:
    rated = {"prompt": "2+2=", "completions": ["4", "5", "6"], "ratings": [3, 1, 1]}  # 4 over 5, 4 over 6
    opposite = {"prompt": "1+1=", "chosen": "3", "rejected": "22"}
    facts = facts_of(workshop, [PAIR, PAIR, opposite], [rated])
    assert (facts.pairs, facts.repeated, facts.contradictory, facts.prompts) == (3, 1, 1, 2)


def test_labels_demonstrations_and_prompts(workshop: Workshop) -> None:
    bad = {**LABEL, "completion": "3", "label": False}
    demos = [{"prompt": f"{i}", "completion": "a"} for i in range(3)]
    facts = facts_of(workshop, [LABEL, bad, {**bad, "completion": "4"}], demos, [{"prompt": "0"}, {"prompt": "x"}])
    assert (facts.good, facts.bad, facts.labels, facts.demonstrations) == (1, 2, 3, 3)
    assert facts.prompts == 5  # 1+1=, 0, 1, 2, x
    assert facts.pairs == 0


def test_pairs_without_a_prompt_column_have_none_to_sample_for(workshop: Workshop) -> None:
    facts = facts_of(workshop, [{"chosen": "1+1= 2", "rejected": "1+1= 3"}])
    assert (facts.pairs, facts.prompts) == (1, 0)


def test_agreement_of_annotators(workshop: Workshop) -> None:
    other_way = {**PAIR, "chosen": "3", "rejected": "22"}
    rows = [{**PAIR, "annotator": "a"}, {**PAIR, "annotator": "b"}, {**other_way, "annotator": "c"}]
    facts = facts_of(workshop, [*rows, rows[0]])  # the copy is the same annotator's
    # a and b agree; a and c, b and c do not
    assert facts.agreement == wilson(1, 3)
    votes = facts_of(workshop, [{**PAIR, "votes": [True, True, False, True]}])  # three of six couples agree
    assert votes.agreement == wilson(3, 6)


def test_copies_are_no_votes(workshop: Workshop) -> None:
    assert facts_of(workshop, [PAIR, PAIR, PAIR]).agreement is None


@pytest.mark.parametrize(("agreement", "flipped"), [(1.0, 0.0), (0.68, 0.2), (0.82, 0.1), (0.5, 0.5), (0.3, 0.5)])
def test_how_many_labels_are_wrong(agreement: float, flipped: float) -> None:
    # 0.2² + 0.8² = 0.68, 0.1² + 0.9² = 0.82; less than a half is no better than a coin
    facts = Facts(agreement=wilson(agreement * 1000, 1000))
    assert facts.flipped == pytest.approx(flipped, abs=1e-9)


def test_length_of_what_is_chosen(workshop: Workshop) -> None:
    rows = [{"prompt": f"{i}", "chosen": "ab" * (1 + (i < 3)), "rejected": "ab" * (2 - (i < 3))} for i in range(4)]
    same = {"prompt": "z", "chosen": "ab", "rejected": "cd"}
    facts = facts_of(workshop, [*rows, same])
    assert facts.longer_chosen == wilson(3.5, 5)  # equal lengths: half a pair
    assert facts.length_ratio == 2.0  # of 2, 2, 2, ½ and 1


def test_who_wrote_the_completions(workshop: Workshop) -> None:
    rows = [
        {**PAIR, "chosen_model": "meta-llama/Llama-3.1-8B-Instruct", "rejected_model": "gpt-x"},
        {"prompt": "b", "completions": ["a", "c"], "ratings": [1, 2], "models": ["Llama-3.1-8B-Instruct", "gpt-x"]},
        {**LABEL, "model": "meta-llama/Llama-3.1-8B"},  # the base is another model
    ]
    files = [[row] for row in rows]
    files[-1].append({**LABEL, "completion": "3", "label": False})
    facts = facts_of(workshop, *files, model="meta-llama/Llama-3.1-8B-Instruct")
    assert facts.models.total() == 5
    assert facts.own == pytest.approx(2 / 5)
    assert facts_of(workshop, *files).own is None  # which model is meant was not told
    assert facts_of(workshop, [PAIR], model="x").own is None


@pytest.mark.parametrize(
    ("column", "value", "reward"),
    [
        ("solution", "2", "[{type: math}]"),
        ("tests", ["assert f()"], "[{type: code}]"),
        ("test_list", ["assert f()"], "[{type: code, tests_column: test_list}]"),
        ("schema", {"type": "object"}, "[{type: json_schema}]"),
    ],
)
def test_what_answers_can_be_checked_by(workshop: Workshop, column: str, value: Any, reward: str) -> None:
    rows = [{"prompt": f"{i}", column: value if i else None} for i in range(10)]
    facts = facts_of(workshop, rows)
    assert facts.check is not None
    assert facts.check.setting == reward
    load(ROOT / "configs/8b/grpo.yaml", [f"reward={reward}"])
    assert facts_of(workshop, [*rows, {"prompt": "x"}]).check is None  # 9 of 11
    assert facts_of(workshop, [PAIR] * 20, rows).check == facts.check  # pairs beside them are another file
    assert facts_of(workshop, [{"prompt": "x"}], verifiable=True).check == Check(reward="function")


def test_tokens_are_counted_where_there_is_a_tokenizer(workshop: Workshop) -> None:
    tokenizer()
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "10+10=", "completion": "200"}]
    exact = facts_of(workshop, rows, model="model")
    assert (exact.by_tokenizer, exact.prompt_tokens, exact.response_tokens) == (True, 5.0, 2.0)
    assert exact.longest == 9  # of 5 and 9
    guessed = facts_of(workshop, rows)
    assert (guessed.by_tokenizer, guessed.prompt_tokens) == (False, 5 / 4)


# ------------------------------------------------------------------------------------------------ rules


class Roomy:
    """A room for every method; `without` has none, and of `unfed` the files hold nothing."""

    def __init__(self, without: tuple[Method, ...] = (), unfed: tuple[Method, ...] = ()) -> None:
        self.without, self.unfed = without, unfed

    def __call__(self, method: Method) -> Any:
        return None if method in self.unfed else Cell(method=method, fits=method not in self.without)


class Cell:
    def __init__(self, *, method: Method, fits: bool) -> None:
        self.method, self.fits = method, fits


def answers(facts: Facts, room: Roomy | None = None) -> list[Method]:
    found, _ = decide(facts, room or Roomy())
    return [rule.method for rule, _ in found]


CHECKED = Facts(prompts=500, check=Check(reward="math", column="solution"))
PAIRS = Facts(pairs=ENOUGH_PAIRS, prompts=ENOUGH_PAIRS)
M = Method
FLIPS: dict[str, tuple[Facts, list[Method], Facts, list[Method]]] = {
    # rule: facts in which it decides, the answer; the nearest facts in which it does not, the answer
    "answers can be checked": (
        CHECKED,
        [M.grpo, M.iterative_dpo],
        replace(CHECKED, check=None),
        [M.iterative_dpo_given, M.distill],
    ),
    "checked answers in rounds": (
        replace(PAIRS, check=CHECKED.check),
        [M.grpo, M.iterative_dpo],
        PAIRS,
        [M.iterative_dpo_rm, M.dpo],
    ),
    "pairs are the model's own": (
        replace(PAIRS, own=0.5),
        [M.dpo, M.iterative_dpo_rm],
        replace(PAIRS, own=0.49),
        [M.iterative_dpo_rm, M.dpo],
    ),
    "pairs of others, enough for a reward model": (
        PAIRS,
        [M.iterative_dpo_rm, M.dpo],
        replace(PAIRS, pairs=ENOUGH_PAIRS - 1),
        [M.dpo, M.iterative_dpo_given],
    ),
    "pairs for a good reward model": (
        replace(PAIRS, pairs=MANY_PAIRS),
        [M.iterative_dpo_rm, M.ppo_rm],
        replace(PAIRS, pairs=MANY_PAIRS - 1),
        [M.iterative_dpo_rm, M.dpo],
    ),
    "more labels than pairs": (
        Facts(pairs=100, good=101, bad=100),
        [M.kto, M.dpo],
        Facts(pairs=100, good=100, bad=100),
        [M.dpo, M.kto],
    ),
    "pairs": (
        Facts(pairs=1, prompts=1),
        [M.dpo, M.iterative_dpo_given],
        Facts(pairs=0, prompts=1),
        [M.iterative_dpo_given, M.distill],
    ),
    "labels": (
        Facts(pairs=100, good=1, prompts=100),
        [M.dpo, M.kto],
        Facts(pairs=100, prompts=100),
        [M.dpo, M.iterative_dpo_given],
    ),
    "demonstrations": (
        Facts(demonstrations=1, prompts=1),
        [M.sft, M.iterative_dpo_given],
        Facts(prompts=1),
        [M.iterative_dpo_given, M.distill],
    ),
    "prompts alone": (
        Facts(demonstrations=1, prompts=1),
        [M.sft, M.iterative_dpo_given],
        Facts(demonstrations=1),
        [M.sft],
    ),
    "prompts and a larger model": (Facts(prompts=1), [M.iterative_dpo_given, M.distill], Facts(), []),
}


def test_every_rule_has_its_flip() -> None:
    assert set(FLIPS) == {rule.name for rule in METHODS}
    assert set(SETTING_FLIPS) == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("name", FLIPS)
def test_a_rule_flips_the_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, answer, others, other = FLIPS[name]
    rule = next(rule for rule in METHODS if rule.name == name)
    assert rule.when(facts)
    assert not rule.when(others)
    assert answers(facts) == answer
    assert answers(others) == other
    assert answer != other
    # and no other rule would have said so: without it these facts have another answer
    monkeypatch.setattr(module, "METHODS", tuple(r for r in METHODS if r.name != name))
    assert answers(facts) != answer


def test_what_has_no_room_is_passed_over_and_told() -> None:
    found, no_room = decide(CHECKED, Roomy(without=(M.grpo,)))
    assert [rule.method for rule, _ in found] == [M.iterative_dpo, M.iterative_dpo_given]
    assert [room.method for room in no_room] == [M.grpo]
    assert decide(CHECKED, Roomy(without=tuple(M)))[0] == []
    assert answers(PAIRS, Roomy(unfed=(M.iterative_dpo_rm,))) == [M.dpo, M.iterative_dpo_given]


SETTING_FLIPS: dict[str, tuple[Method, Facts, tuple[str, ...], Facts]] = {
    # setting: facts in which it is made, what it writes, the nearest facts in which it is not
    "chosen is longer": (
        M.dpo,
        Facts(longer_chosen=wilson(700, 1000), length_ratio=1.2),
        ("algorithm.loss_type=sigmoid_norm", "algorithm.beta=5.0"),
        Facts(longer_chosen=wilson(7, 10), length_ratio=1.2),  # as large a share, not sure
    ),
    "annotators disagree": (
        M.dpo,
        Facts(agreement=wilson(680, 1000)),
        ("algorithm.loss_type=robust", "algorithm.label_smoothing=0.20"),
        Facts(agreement=wilson(68, 100)),
    ),
    "annotators disagree, and chosen is longer": (
        M.dpo,
        Facts(agreement=wilson(680, 1000), longer_chosen=wilson(700, 1000), length_ratio=1.2),
        ("algorithm.label_smoothing=0.20",),
        Facts(agreement=wilson(680, 1000), longer_chosen=wilson(600, 1000), length_ratio=1.2),
    ),
    "pairs of others": (M.dpo, Facts(own=0.4), ("algorithm.sft_weight=1.0",), Facts(own=0.6)),
    "labels out of balance": (
        M.kto,
        Facts(good=100, bad=150),
        ("algorithm.desirable_weight=1.5",),
        Facts(good=100, bad=100),
    ),
    # and never more than 8192, see below
    "long rows": (M.sft, Facts(longest=2049), ("data.max_length=3072",), Facts(longest=2048)),
}


@pytest.mark.parametrize("name", SETTING_FLIPS)
def test_a_setting_is_made_or_not(name: str) -> None:
    method, facts, written, others = SETTING_FLIPS[name]
    setting = next(setting for setting in SETTINGS if setting.name == name)
    assert method in setting.methods
    assert setting.when(facts)
    assert not setting.when(others)
    assert setting.overrides(facts) == written


@pytest.mark.parametrize(
    "facts",
    [
        Facts(longer_chosen=wilson(700, 1000), length_ratio=2.0, agreement=wilson(600, 1000), longest=20_000),
        Facts(agreement=wilson(500, 1000), own=1.0),
        Facts(good=10, bad=100, longest=5000),
        Facts(good=100, bad=10),
    ],
)
@pytest.mark.parametrize("method", list(Method))
def test_settings_together_are_a_legal_recipe(method: Method, facts: Facts) -> None:
    for large in (False, True):
        load(recipe_of(method, large=large), module._overrides(method, facts))


def test_what_is_very_long_is_cut_all_the_same() -> None:
    setting = next(s for s in SETTINGS if s.name == "long rows")
    assert setting.overrides(Facts(longest=100_000)) == ("data.max_length=8192",)


def test_longer_by_a_letter_is_no_bias() -> None:
    assert biased_to_length(Facts(longer_chosen=wilson(700, 1000), length_ratio=1.11))
    assert not biased_to_length(Facts(longer_chosen=wilson(700, 1000), length_ratio=1.09))


def test_weights_of_labels_bring_them_into_balance() -> None:
    setting = next(s for s in SETTINGS if s.name == "labels out of balance")
    for good, bad in ((100, 400), (400, 100)):
        weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
        for override in setting.overrides(Facts(good=good, bad=bad)):
            key, _, value = override.removeprefix("algorithm.").partition("=")
            weights[key] = float(value)
        assert weights["desirable_weight"] * good == pytest.approx(weights["undesirable_weight"] * bad)


def test_the_page_has_every_rule_with_its_sources() -> None:
    rows = [line for line in (ROOT / "docs/advise.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    for rule in METHODS:
        row = next(row for row in rows if row.startswith(f"| {rule.name} |"))
        assert f"| {rule.method} |" in row
        assert all(source.removeprefix("arXiv ") in row for source in rule.sources)
    for setting in SETTINGS:
        row = next(row for row in rows if row.startswith(f"| {setting.name} |"))
        assert all(source.removeprefix("arXiv ") in row for source in setting.sources)
    named = [line.split(" | ")[0].removeprefix("| ") for line in rows]
    assert [n for n in named if n in FLIPS] == [rule.name for rule in METHODS]  # in the order in which they are asked


# ------------------------------------------------------------------------------------------------ room


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": f"Not {i}.", **more} for i in range(count)]


def asked(workshop: Workshop, rows: list[dict[str, Any]], gpus: str, model: str | None = None, **more: Any) -> Advice:
    workshop.jsonl("data.jsonl", list(rows))
    return advise(["data.jsonl"], *parse_gpus(gpus), model=model, verifiable=more.get("verifiable", False))


@pytest.mark.parametrize("model", [None, "llama-3-70b"])
@pytest.mark.parametrize("kind", ["pairs", "prompts", "labels", "demonstrations", "solutions"])
def test_what_is_advised_is_a_recipe_that_fits(workshop: Workshop, kind: str, model: str | None) -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": pairs(ENOUGH_PAIRS),
        "prompts": [{"prompt": f"{i}"} for i in range(50)],
        "labels": [{"prompt": f"{i}", "completion": "a", "label": i % 3 == 0} for i in range(50)],
        "demonstrations": [{"prompt": f"{i}", "completion": "a"} for i in range(50)],
        "solutions": [{"prompt": f"{i}", "solution": f"{i}"} for i in range(50)],
    }
    found = asked(workshop, rows[kind], "64xH100", model)
    for choice in filter(None, (found.first, found.runner_up)):
        command = shlex.split(choice.room.command)
        assert command[:2] == ["rlhf", "run"]
        recipe = load(command[2], [o.replace(REWARD_MODEL, "llama-3-8b") for o in command[3:]])
        for config, plan in zip(recipe.stages, choice.room.plans, strict=True):
            again = module.Cluster._plan(found.cluster, recipe, config)
            assert again.fits, (choice.method, config.name)
            assert again.time.step_s == pytest.approx(plan.best.time.step_s)
        named = {name for config in recipe.stages for name in (config.data.prompts, config.data.dataset)}
        assert named - {None} == {"data.jsonl"}


def test_costs_add_up_over_stages(workshop: Workshop) -> None:
    room = asked(workshop, pairs(ENOUGH_PAIRS), "16xH100").first.room
    assert room.method == Method.iterative_dpo_rm
    hours = [p.best.time.step_s * p.best.num_gpus * (p.work.steps or 0) / 3600 for p in room.plans]
    assert room.plans[0].work.steps == -(-ENOUGH_PAIRS // 128)  # one pass, 128 pairs a step
    assert room.gpu_hours == pytest.approx(sum(hours))
    assert room.dollars == pytest.approx(2.5 * sum(hours))


def test_a_cluster_too_small_for_samples(workshop: Workshop) -> None:
    """70B on 8 H100: an engine, a reference and a learner do not go side by side; DPO by adapters does."""
    found = asked(workshop, pairs(ENOUGH_PAIRS), "8xH100", "llama-3-70b")
    assert found.first.method == Method.dpo
    assert found.first.room.adapted == {"dpo-70b"}
    learning_rate = load(found.first.room.recipe, found.first.room.overrides).stages[-1].algorithm.learning_rate
    assert learning_rate == pytest.approx(10 * load(found.first.room.recipe).stages[-1].algorithm.learning_rate)
    assert Method.iterative_dpo_rm in {room.method for room in found.no_room}
    needed = next(room for room in found.no_room if room.method == Method.iterative_dpo_rm).fewest
    assert needed is not None
    assert needed > 8
    assert any(c.what == f"there were {needed} H100" and c.then == Method.iterative_dpo_rm for c in found.changes)
    roomier = asked(workshop, pairs(ENOUGH_PAIRS), f"{needed}xH100", "llama-3-70b")
    assert roomier.first.method == Method.iterative_dpo_rm


def test_prompts_that_can_be_checked_are_the_ones_that_are_sampled_for(workshop: Workshop) -> None:
    workshop.jsonl("checked.jsonl", [{"prompt": f"{i}", "tests": ["assert f()"] if i else None} for i in range(20)])
    workshop.jsonl("data.jsonl", list(pairs(100)))
    found = advise(["data.jsonl", "checked.jsonl"], *parse_gpus("16xH100"), model=None, verifiable=False)
    config = load(found.first.room.recipe, found.first.room.overrides).stages[-1]
    assert (config.data.prompts, config.reward[0].type) == ("checked.jsonl", "code")


def test_a_70b_model_has_no_larger_teacher(workshop: Workshop) -> None:
    prompts = [{"prompt": f"{i}"} for i in range(10)]
    small, large = (asked(workshop, prompts, "64xH100", model).runner_up for model in (None, "llama-3-70b"))
    assert small is not None
    assert (small.method, large) == (Method.distill, None)


def test_a_model_of_ones_own_takes_the_place_of_the_recipes(workshop: Workshop) -> None:
    config = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    body = {**config, "intermediate_size": 14336, "vocab_size": 128256}
    (workshop.path / "model" / "config.json").write_text(json.dumps(body))
    for found in (asked(workshop, pairs(ENOUGH_PAIRS), "16xH100", "./model"),):
        stages = load(found.first.room.recipe, found.first.room.overrides).stages
        assert {stage.model.path for stage in stages} == {"./model"}
    named = asked(workshop, pairs(10), "16xH100", "llama-3-8b")  # a name of the planner's table cannot be loaded
    assert not any(o.startswith("model.path") for o in named.first.room.overrides)


# ------------------------------------------------------------------------------------------------ what if


def test_what_would_change_it_does(workshop: Workshop) -> None:
    """Each change that is told, made in the data."""
    made: dict[str, Callable[[], Advice]] = {
        "the answers could be checked": lambda: asked(workshop, pairs(ENOUGH_PAIRS, solution="1"), "16xH100"),
        "most completions were this model's own": lambda: asked(
            workshop, pairs(ENOUGH_PAIRS, model="Llama-3.1-8B-Instruct"), "16xH100", "llama-3-8b"
        ),
        f"there were fewer than {ENOUGH_PAIRS}": lambda: asked(workshop, pairs(ENOUGH_PAIRS - 1), "16xH100"),
    }
    told = asked(workshop, pairs(ENOUGH_PAIRS), "16xH100").changes
    assert len(told) == len(made)
    for beginning, changed in made.items():
        change = next(change for change in told if change.what.startswith(beginning))
        assert changed().first.method == change.then


def test_it_says_what_it_assumed_and_what_it_measured(workshop: Workshop) -> None:
    blind = asked(workshop, pairs(10), "16xH100")
    assert any("annotators agree as usual" in line for line in assumed(blind))
    assert any("other models'" in line for line in assumed(blind))
    assert any("4 bytes a token" in line for line in assumed(blind))
    assert any("the model is meta-llama" in line for line in assumed(blind))
    seen = asked(workshop, pairs(10, votes=[True, False], model="Llama-3.1-8B-Instruct"), "16xH100", "llama-3-8b")
    assert not any("agree" in line or "other models'" in line or "the model is" in line for line in assumed(seen))
    assert any("two annotators agree in 0%" in line for line in measured(seen))
    assert any("100% are this model's own" in line for line in measured(seen))
    told = asked(workshop, [{"prompt": "x"}], "16xH100", verifiable=True)
    assert any("rewards.py" in line for line in assumed(told))
    assert told.first.method == Method.grpo
    assert "--verifiable" in " ".join(as_json(told)["told"])


def test_demonstrations_beside_pairs_come_first(workshop: Workshop) -> None:
    workshop.jsonl("more.jsonl", [{"prompt": "a", "completion": "b"}])
    workshop.jsonl("data.jsonl", list(pairs(10)))
    found = advise(["data.jsonl", "more.jsonl"], *parse_gpus("16xH100"), model=None, verifiable=False)
    assert found.first.method == Method.dpo
    assert found.before is not None
    assert "data.dataset=more.jsonl" in found.before.command
    assert asked(workshop, pairs(10), "16xH100").before is None


# ------------------------------------------------------------------------------------------------ the command


def test_for_people_and_for_programs(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.jsonl("data.jsonl", list(pairs(ENOUGH_PAIRS)))
    assert main(["advise", "data.jsonl", "--gpus", "16xH100"]) == 0
    page = capsys.readouterr().out
    for head in (
        "Try first: reward model, then iterative DPO",
        "Runner-up: offline DPO",
        "Measured",
        "Assumed",
        "why:",
    ):
        assert head in page
    assert max(map(len, page.splitlines())) <= 100
    assert main(["advise", "data.jsonl", "--gpus", "16xH100", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["first"]["method"], told["runner_up"]["method"]) == ("iterative_dpo_rm", "dpo")
    assert told["first"]["recipe"].endswith("configs/8b/iterative_dpo_reward_model.yaml")
    assert told["first"]["command"].replace(" \\\n", "") in " ".join(page.replace("\\\n", " ").split())
    assert told["facts"]["pairs"] == ENOUGH_PAIRS


def test_it_imports_nothing_heavy_and_is_quick(workshop: Workshop) -> None:
    workshop.jsonl("data.jsonl", list(pairs(ENOUGH_PAIRS)))
    script = (
        "import sys, resource; from orchestrator.cli import main\n"
        "assert main(['advise', 'data.jsonl', '--gpus', '64xH100', '--model', 'llama-3-70b']) == 0\n"
        f"assert not [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_utime < 5\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=workshop.path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


BAD: dict[str, tuple[list[dict[str, Any]] | None, list[str]]] = {
    "advise-not-there": (None, ["--gpus", "8xH100"]),
    "advise-unknown-columns": ([{"question": "1+1=", "response": "2"}], ["--gpus", "8xH100"]),
    "advise-stepwise": ([{"prompt": "a", "completions": ["b"], "labels": [True]}], ["--gpus", "8xH100"]),
    "advise-no-rows": ([], ["--gpus", "8xH100"]),
    "advise-how-many": ([PAIR], ["--gpus", "H100"]),
    "advise-unknown-gpu": ([PAIR], ["--gpus", "8xV100"]),
    "advise-unknown-model": ([PAIR], ["--gpus", "8xH100", "--model", "nobodys-model"]),
    "advise-nothing-to-check": (
        [{"chosen": "1+1= 2", "rejected": "1+1= 3"}],
        ["--gpus", "8xH100", "--verifiable"],
    ),
    "advise-no-room": ([PAIR], ["--gpus", "1xH100", "--model", "llama-3-70b"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told(name: str, workshop: Workshop, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    rows, options = BAD[name]
    if rows is not None:
        workshop.jsonl("data.jsonl", list(rows))
    assert main(["advise", "data.jsonl", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "fix:" in printed.err
    golden(name, printed.err)


def test_all_that_is_wrong_comes_at_once(workshop: Workshop) -> None:
    workshop.jsonl("bad.jsonl", [{"prompt": 3, "chosen": "a", "rejected": "b"}])
    with pytest.raises(BadInput) as refused:
        advise(["bad.jsonl", "missing.jsonl", "missing.jsonl"], *parse_gpus("8xH100"), model=None, verifiable=False)
    assert len(refused.value.problems) == 3
    assert "given twice" in str(refused.value)


def test_every_recipe_is_there() -> None:
    assert set(RECIPES) == set(Method)
    for method in Method:
        for large in (False, True):
            assert load(recipe_of(method, large=large)).stages
    assert Counter(rule.method for rule in METHODS).keys() == set(Method)


def test_without_the_projects_recipes(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, Method.dpo, ("8b/gone.yaml", "70b/gone.yaml"))  # type: ignore[misc]
    with pytest.raises(BadInput, match="checkout"):
        asked(workshop, pairs(10), "8xH100")


def test_types_of_rooms(workshop: Workshop) -> None:
    """What cannot be fed has no room: a file of labels holds no pairs."""
    workshop.jsonl("labels.jsonl", [LABEL, {**LABEL, "completion": "3", "label": False}])
    sources = tuple(read(["labels.jsonl"]))
    count, gpu = parse_gpus("8xH100")
    assert count is not None
    cluster = Cluster(gpu=gpu, num_gpus=count, model=None, large=False, sources=sources, facts=Facts(good=1, bad=1))
    assert cluster.room(Method.dpo) is None
    assert cluster.room(Method.ppo_rm) is None
    assert isinstance(cluster.room(Method.kto), Room)
