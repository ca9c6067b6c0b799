"""Requests of a constitution: what a model is asked, by which principle, and what comes with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import RunConfig
from orchestrator.config.constitution import PrincipleConfig
from orchestrator.errors import BadInput
from orchestrator.preflight.critique import drawn, with_requests
from workers.types import Prompt

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Am I great?"}]
PRINCIPLE = "principles:\n  - {name: honest, critique: Name what is untrue., revision: Remove it.}\n"
TEMPLATES = """templates:
  critique: "{prompt}{answer}!{critique_request}"
  revision: "{prompt}{answer}!{critique}~{revision_request}"
"""


def config(constitution: Path, rows: str, text: str = PRINCIPLE + TEMPLATES, **changes: Any) -> RunConfig:
    constitution.write_text(text)
    return RunConfig.model_validate(
        {
            "name": "run",
            "model": {"path": "m"},
            "data": {"prompts": "rows.parquet"},
            "algorithm": {"type": "generate", "num_generations": 1, "rows": rows, "constitution": str(constitution)},
            **changes,
        }
    )


def answer(completion: Any, text: Any = "2+2=", **columns: Any) -> Prompt:
    return Prompt(id="rows.parquet:3", text=text, columns={"completion": completion, **columns})


def test_a_text_is_put_into_the_template(tmp_path: Path) -> None:
    row = answer("5", solution="4", prompt_id="p.jsonl:7", model="./base")
    (asked,) = with_requests(config(tmp_path / "c.yaml", "critique"), "rows.parquet", [row])
    assert (asked.id, asked.text) == ("rows.parquet:3", "2+2=5!Name what is untrue.")
    assert asked.columns == {
        **row.columns,
        "prompt": "2+2=",
        "criticised": "5",
        "initial": "5",
        "principle": "honest",
        "round": 1,
        "answer_model": "./base",
    }
    columns = {"criticised": "5", "initial": "5", "principle": "honest", "critique": "It is {4}.", "model": "./judge"}
    critique = Prompt(id="rows.parquet:1", text="2+2=", columns=columns)
    (asked,) = with_requests(config(tmp_path / "c.yaml", "revision"), "rows.parquet", [critique])
    assert asked.text == "2+2=5!It is {4}.~Remove it."
    assert asked.columns["critique_model"] == "./judge"


def test_a_conversation_gets_further_messages(tmp_path: Path) -> None:
    row = answer([{"role": "assistant", "content": "The greatest."}], CHAT)
    (asked,) = with_requests(config(tmp_path / "c.yaml", "critique"), "rows.parquet", [row])
    turns = [
        {"role": "assistant", "content": "The greatest."},
        {"role": "user", "content": "Name what is untrue."},
        {"role": "assistant", "content": "I flatter."},
        {"role": "user", "content": "Remove it."},
    ]
    assert asked.text == [*CHAT, *turns[:2]]
    assert asked.columns["prompt"] == CHAT
    critique = Prompt(id="rows.parquet:1", text=CHAT, columns={**asked.columns, "critique": "I flatter."})
    (asked,) = with_requests(config(tmp_path / "c.yaml", "revision"), "rows.parquet", [critique])
    assert asked.text == [*CHAT, *turns]


def test_the_templates_of_the_paper_are_the_default(tmp_path: Path) -> None:
    (asked,) = with_requests(config(tmp_path / "c.yaml", "critique", PRINCIPLE), "rows.parquet", [answer("5")])
    assert asked.text == "2+2=\n\n5\n\nCritique request: Name what is untrue.\n\nCritique:"


def test_a_principle_is_drawn_anew_for_each_answer_seed_and_round() -> None:
    principles = [PrincipleConfig(name=name, critique="a", revision="b") for name in "abcd"]
    ids = [f"rows.parquet:{i}" for i in range(400)]
    draws = {
        (seed, round): [drawn(principles, seed=seed, id=id, round=round).name for id in ids]
        for seed in (0, 1)
        for round in (1, 2)
    }
    for names in draws.values():
        assert min(Counter(names).values()) > 60, "400 draws of 4: 100 ± 9 each"
        assert len(Counter(names)) == 4
    assert len({tuple(names) for names in draws.values()}) == 4
    assert drawn(principles, seed=0, id=ids[0], round=1).name == draws[0, 1][0]


def test_a_column_of_the_prompts_is_not_taken_for_a_round(tmp_path: Path) -> None:
    row = answer("5", round="final", initial="J. S.")
    (asked,) = with_requests(config(tmp_path / "c.yaml", "critique"), "rows.parquet", [row])
    assert (asked.columns["round"], asked.columns["initial"]) == (1, "5")


@pytest.mark.parametrize(
    ("rows", "row", "message"),
    [
        ("critique", Prompt(id="p.jsonl:1", text="2+2="), "no `completion`"),
        ("critique", answer([{"role": "assistant", "content": "a"}] * 2, CHAT), "`completion` is not one answer"),
        ("revision", answer("5"), "no `criticised`, `principle`, `critique`"),
        (
            "revision",
            Prompt(id="p.jsonl:1", text="a", columns={"criticised": "b", "principle": "kind", "critique": "c"}),
            "`principle` kind is not in",
        ),
    ],
)
def test_rows_without_what_a_request_is_made_of(tmp_path: Path, rows: str, row: Prompt, message: str) -> None:
    with pytest.raises(BadInput) as raised:
        with_requests(config(tmp_path / "c.yaml", rows), "rows.parquet", [row])
    assert message in str(raised.value)


def test_other_runs_sample_from_their_prompts(tmp_path: Path) -> None:
    rows = [answer("5")]
    own = {"algorithm": {"type": "generate"}}
    assert with_requests(config(tmp_path / "c.yaml", "", **own), "rows.parquet", rows) is rows
