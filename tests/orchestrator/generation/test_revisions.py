"""Rows of critiques and revisions: formats that training reads, provenance, two rounds one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_rows import CHAT, config, part

from orchestrator.config import RunConfig
from orchestrator.data import read_examples, read_prompts
from orchestrator.errors import BadInput
from orchestrator.generation.data_set import DataSet, read_summary
from orchestrator.preflight.critique import with_requests
from workers.types import Prompt

CONSTITUTION = "principles:\n  - {name: honest, critique: Name what is untrue., revision: Remove it.}\n"


class Rounds:
    """Stages of one test, each a data set of the texts that a model is said to have sampled."""

    def __init__(self, root: Path) -> None:
        self._root, self._stage = root, 0
        (root / "c.yaml").write_text(CONSTITUTION)

    def write(self, prompts: list[Prompt], texts: list[str], **algorithm: Any) -> Path:
        self._stage += 1
        target = self._root / f"stage-{self._stage}" / "data" / "rows.parquet"
        sampled = {prompt.id: [text] for prompt, text in zip(prompts, texts, strict=True)}
        file = part(self._root / f"{self._stage}.parquet", sampled)
        DataSet(config(num_generations=1, **algorithm), prompts).write([file], target)
        return target

    def ask(self, rows: str, source: Path, texts: list[str], **algorithm: Any) -> Path:
        own = {"rows": rows, "constitution": str(self._root / "c.yaml"), **algorithm}
        settings: RunConfig = config(num_generations=1, **own)
        return self.write(list(with_requests(settings, str(source), read_prompts(str(source)))), texts, **own)


@pytest.fixture
def rounds(tmp_path: Path) -> Rounds:
    return Rounds(tmp_path)


PROMPTS = [Prompt(id=f"p.jsonl:{i}", text=f"{i}+1=", columns={"solution": str(i + 1)}) for i in (1, 2)]


def test_a_critique_has_what_it_is_about(rounds: Rounds) -> None:
    critiques = rounds.ask("critique", rounds.write(PROMPTS, ["3", "3"]), ["It is 2.", "ok"])
    first, second = pq.read_table(critiques).to_pylist()
    assert {key: first[key] for key in ("prompt", "solution", "prompt_id", "from_row")} == {
        "prompt": "1+1=",
        "solution": "2",
        "prompt_id": "p.jsonl:1",
        "from_row": "stage-1/rows.parquet:1",
    }
    assert {key: first[key] for key in ("round", "principle", "criticised", "initial", "critique")} == {
        "round": 1,
        "principle": "honest",
        "criticised": "3",
        "initial": "3",
        "critique": "It is 2.",
    }
    assert (first["model"], first["answer_model"], first["seed"], first["tokens"]) == ("m", "m", 0, 3)
    assert "completion" not in first, "a critique is not an answer to the prompt"
    assert second["critique"] == "ok"


def test_critiques_that_resemble_each_other_all_stay(rounds: Rounds) -> None:
    same = "I have found nothing untrue in this answer, so it may stay."
    critiques = rounds.ask("critique", rounds.write(PROMPTS, ["2", "3"]), [same, same])
    assert pq.read_table(critiques).num_rows == 2


def test_revisions_are_demonstrations_and_those_that_changed_are_pairs(rounds: Rounds) -> None:
    critiques = rounds.ask("critique", rounds.write(PROMPTS, ["3", "3"]), ["It is 2.", "ok"])
    revisions = rounds.ask("revision", critiques, ["2", "3 "])
    shown = [(e.prompt.text, e.completions) for e in read_examples(str(revisions), algorithm="sft")]
    assert shown == [("1+1=", ("2",)), ("2+1=", ("3 ",))]
    (pair,) = read_examples(str(revisions.with_name("pairs.parquet")), algorithm="dpo")
    assert (pair.prompt.text, pair.completions, pair.scores) == ("1+1=", ("2", "3"), (1.0, 0.0))
    (row,) = pq.read_table(revisions.with_name("pairs.parquet")).to_pylist()
    assert (row["principle"], row["critique"], row["critique_model"], row["prompt_id"], row["solution"]) == (
        "honest",
        "It is 2.",
        "m",
        "p.jsonl:1",
        "2",
    )
    summary = read_summary(revisions.parent)
    assert summary is not None
    assert (summary["rows"], summary["pairs"], summary["unchanged"]) == (2, 1, 1)


def test_a_second_round_revises_the_revisions_and_keeps_the_first_answer(rounds: Rounds) -> None:
    critiques = rounds.ask("critique", rounds.write(PROMPTS, ["3", "9"]), ["Too high.", "Too high."])
    first = rounds.ask("revision", critiques, ["2.5", "3"])
    again = rounds.ask("critique", first, ["Still too high.", "ok"])
    rows = pq.read_table(again).to_pylist()
    assert [(r["round"], r["criticised"], r["initial"], r["critique"], r["prompt_id"]) for r in rows] == [
        (2, "2.5", "3", "Still too high.", "p.jsonl:1"),
        (2, "3", "9", "ok", "p.jsonl:2"),
    ]
    second = rounds.ask("revision", again, ["2", "3"])
    (pair,) = pq.read_table(second.with_name("pairs.parquet")).to_pylist()
    assert [pair[key] for key in ("round", "prompt", "chosen", "rejected", "initial")] == [2, "1+1=", "2", "2.5", "3"]
    assert [e.completions for e in read_examples(str(second), algorithm="sft")] == [("2",), ("3",)]


def test_conversations_stay_conversations(rounds: Rounds) -> None:
    prompts = [Prompt(id="p:1", text=CHAT)]
    critiques = rounds.ask("critique", rounds.write(prompts, ["5"]), ["It is 4."])
    assert pq.read_table(critiques).to_pylist()[0]["prompt"] == CHAT
    revisions = rounds.ask("revision", critiques, ["4"])
    (pair,) = read_examples(str(revisions.with_name("pairs.parquet")), algorithm="dpo")
    assert pair.prompt.text == CHAT
    assert [list(side) for side in pair.completions] == [
        [{"role": "assistant", "content": "4"}],
        [{"role": "assistant", "content": "5"}],
    ]


def test_columns_of_the_prompts_do_not_replace_ours(rounds: Rounds) -> None:
    columns = {"principle": "theirs", "critique": "theirs", "round": "one", "topic": "sums", "score_old": 1.0}
    prompts = [Prompt(id="p:1", text="1+1=", columns=columns)]
    critiques = rounds.ask("critique", rounds.write(prompts, ["3"]), ["It is 2."])
    (row,) = pq.read_table(rounds.ask("revision", critiques, ["2"])).to_pylist()
    assert (row["principle"], row["critique"], row["round"], row["topic"]) == ("honest", "It is 2.", 1, "sums")


def test_where_no_answer_changed_there_is_nothing_to_prefer(rounds: Rounds) -> None:
    critiques = rounds.ask("critique", rounds.write(PROMPTS, ["2", "3"]), ["ok", "ok"])
    with pytest.raises(BadInput, match="each of 2 revisions is the answer before it"):
        rounds.ask("revision", critiques, ["2", "3"])
