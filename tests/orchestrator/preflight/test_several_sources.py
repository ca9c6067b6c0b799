"""Several sources of rows in one run: what is read, what is refused, and what stays as it was with one source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Events, FakeEncoder
from recipe_dir import OFFLINE_DPO, RecipeDir, refused

from orchestrator.cli.main import main
from orchestrator.cluster.base import wait
from orchestrator.cluster.local import LocalGang
from orchestrator.config import RunConfig, load
from orchestrator.config.recipe import resolved
from orchestrator.driver.assembly import Material, build_source, first_rows
from orchestrator.errors import BadInput
from orchestrator.pipeline.rounds import draws
from orchestrator.plan.work import rows_of_data
from orchestrator.rundir.inputs import changes, inputs_of, named
from orchestrator.rundir.provenance import describe

Golden = Callable[[str, str], None]
HELP, SAFE = "{path: ./help.jsonl, weight: 3.0, objective: help}", "{path: ./safe.jsonl, weight: 1.0, objective: safe}"


@pytest.fixture(autouse=True)
def files(recipe_dir: RecipeDir) -> None:
    for name, count in (("help", 12), ("safe", 6)):
        rows = [{"prompt": f"{i} {name}?", "chosen": "yes", "rejected": "no"} for i in range(count)]
        recipe_dir.jsonl(f"{name}.jsonl", list(rows))


def config(recipe_dir: RecipeDir, *sources: str, **changed: str) -> RunConfig:
    changed = {**OFFLINE_DPO, "data": f"{{dataset: [{', '.join(sources)}]}}", **changed}
    return load(recipe_dir.recipe(changed)).stages[0]


def source_of(run: RunConfig, material: Material, encoder: Any) -> Any:
    return build_source(run, None, material, {"dataset": encoder}, lambda step, chunk: None, None)  # type: ignore[arg-type]


def test_weighted_sources_share_every_step(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, HELP, SAFE)
    material = Material.read(run)
    assert material.sizes("dataset") == (12, 6)
    assert material.max_steps == 5, "an epoch has as many rows as the sources together: 18 rows in batches of 4"
    assert [example.prompt.objective for example in material.examples] == ["help"] * 12 + ["safe"] * 6
    events: Events = []
    source = source_of(run, material, LocalGang("dataset", [FakeEncoder(events)]))
    for step in range(material.max_steps):
        (chunk,) = source.stream(step)
        (prompts,) = [part.prompts for part in wait(chunk.experience)]
        assert sorted(prompt.objective for prompt in prompts) == ["help"] * 3 + ["safe"]


def test_sources_without_weights_are_one_stream(recipe_dir: RecipeDir) -> None:
    recipe_dir.jsonl("both.jsonl", [*map(_row, range(12)), *map(_row, range(12, 18))])
    several = config(recipe_dir, "./help.jsonl", "./safe.jsonl")
    alone = load(recipe_dir.recipe({**OFFLINE_DPO, "data": "{dataset: ./both.jsonl}"})).stages[0]
    encoder = LocalGang("dataset", [FakeEncoder([])])
    rows = [source_of(run, Material.read(run), encoder) for run in (several, alone)]
    assert [rows[0].rows(step).tolist() for step in range(9)] == [rows[1].rows(step).tolist() for step in range(9)]


def _row(i: int) -> dict[str, str]:
    return {"prompt": f"{i}?", "chosen": "yes", "rejected": "no"}


def test_one_path_is_what_it_was(recipe_dir: RecipeDir) -> None:
    (run,) = load(recipe_dir.recipe(OFFLINE_DPO)).stages
    assert resolved(run)["data"]["dataset"] == "./pairs.jsonl"
    assert named(run)["data.dataset"] == "./pairs.jsonl"
    assert describe(run, Material.read(run).sources)["data"]["data.dataset"]["source"] == "./pairs.jsonl"
    (several,) = load(recipe_dir.recipe({"data": "{prompts: [./prompts.jsonl]}"})).stages
    assert resolved(several)["data"]["prompts"] == ["./prompts.jsonl"]
    assert named(several)["data.prompts.0"] == "./prompts.jsonl"


def test_a_limit_takes_the_first_rows(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, "{path: ./help.jsonl, max_rows: 5}", "./safe.jsonl")
    material = Material.read(run)
    assert material.sizes("dataset") == (5, 6)
    assert [example.prompt.id for example in material.examples[4:6]] == ["help.jsonl:5", "safe.jsonl:1"]
    assert rows_of_data(run, "dataset") == 11
    assert rows_of_data(run, "dataset", most=4) == 8


def test_every_source_is_an_input_of_its_own(recipe_dir: RecipeDir) -> None:
    run = config(recipe_dir, HELP, SAFE)
    before = inputs_of(run)
    assert {"data.dataset.0", "data.dataset.1"} <= set(before)
    Path("safe.jsonl").write_text(Path("help.jsonl").read_text())
    assert changes(before, inputs_of(run), run) == {
        "data.dataset.1": "data.dataset.1 (./safe.jsonl) has changed",
    }


def test_each_source_is_evaluated(recipe_dir: RecipeDir) -> None:
    data = "{dataset: ./pairs.jsonl, eval_dataset: [./help.jsonl, {path: ./safe.jsonl, objective: safe}]}"
    run = config(recipe_dir, data=data, evaluation="{max_prompts: 4}")
    (_, held_out) = Material.read(run).sources.values()
    rows = first_rows(held_out, run.evaluation.max_prompts)
    assert [row.prompt.id for row in rows] == [f"{name}.jsonl:{i}" for name in ("help", "safe") for i in range(1, 5)]
    assert {row.prompt.objective for row in rows[4:]} == {"safe"}


def test_weighted_prompts_share_every_step(recipe_dir: RecipeDir) -> None:
    for name, count in (("easy", 9), ("hard", 6)):
        rows = [{"prompt": f"{i}+{len(name)}=", "solution": str(i)} for i in range(count)]
        recipe_dir.jsonl(f"{name}.jsonl", list(rows))
    data = "{prompts: [{path: ./easy.jsonl, weight: 1}, {path: ./hard.jsonl, weight: 1, objective: hard}]}"
    run = load(recipe_dir.recipe({"data": data})).stages[0]
    material = Material.read(run)
    assert [prompt.objective for prompt in material.prompts] == [None] * 9 + ["hard"] * 6
    drawn = draws(run, material.sizes("prompts"), rollbacks=0)
    for step in range(6):
        rows = drawn(step).rows
        assert [sum(row < 9 for row in rows), sum(row >= 9 for row in rows)] == [2, 2]
    assert drawn(3).rows == draws(run, material.sizes("prompts"), rollbacks=0)(3).rows
    assert drawn(0).rows != draws(run, material.sizes("prompts"), rollbacks=1)(0).rows


def test_a_label_may_come_from_another_source(recipe_dir: RecipeDir) -> None:
    for name, label in (("good", True), ("bad", False)):
        recipe_dir.jsonl(f"{name}.jsonl", [{"prompt": f"{i}?", "completion": name, "label": label} for i in range(4)])
    kto = {"algorithm": "{type: kto, batch_size: 4}"}
    assert len(Material.read(config(recipe_dir, "./good.jsonl", "./bad.jsonl", **kto)).examples) == 8
    recipe_dir.jsonl("bad.jsonl", [{"prompt": f"{i}?", "completion": "x", "label": True} for i in range(4)])
    with pytest.raises(BadInput, match="8 rows with `label` true, 0 with `label` false"):
        Material.read(config(recipe_dir, "./good.jsonl", "./bad.jsonl", **kto))


def test_shares_are_noted_and_a_source_that_is_too_small_is_refused(
    recipe_dir: RecipeDir, golden: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    config(recipe_dir, HELP, SAFE)
    assert main(["validate", "recipe.yaml"]) == 0
    printed = capsys.readouterr().out
    # 18 rows an epoch: 13.5 of 12 rows, and 4.5 of 6.
    assert (
        "note: data.dataset: shares of the rows: ./help.jsonl 75.0% (its rows 1.1 times per epoch), "
        "./safe.jsonl 25.0% (its rows 0.75 times per epoch)"
    ) in printed
    config(recipe_dir, HELP, SAFE.replace("1.0", "30.0"), algorithm="{type: dpo, batch_size: 8}")
    refused("recipe.yaml", "source-smaller-than-its-share", golden, capsys)
