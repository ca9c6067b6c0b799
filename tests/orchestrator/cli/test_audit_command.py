"""Command `rlhf audit`: output, exit codes, page and clean copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipe_dir import RecipeDir, tokenizer

from benchmarks.planted_preferences import World, swap
from orchestrator.cli.main import main

ROWS = [dict(row, annotator="a", source="s") for row in World(seed=2, completion_words=(30, 60)).rows(20)]


def test_clean_data(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl("p.jsonl", ROWS)
    assert main(["audit", "p.jsonl"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("p.jsonl: 20 rows of preference data, 20 pairs; nothing found\n")
    assert "triggers, outlying annotators and flipped labels: 20 pairs, and 500 are needed" in " ".join(out.split())


def test_findings_page_and_copy(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl(
        "p.jsonl", [*ROWS, swap(ROWS[4]), {**ROWS[5], "chosen": "<script>alert(1)</script>", "rejected": "no"}]
    )
    assert main(["audit", "p.jsonl", "--write-clean", "clean.jsonl", "--output", "audit.html"]) == 0
    printed = capsys.readouterr()
    assert (
        "warning: 2 of 22 rows (9.1 %) contradict another row, and the two cancel out\n  rows: 21 and 5" in printed.out
    )
    assert printed.err.splitlines() == [
        "audit.html",
        "clean.jsonl: 20 rows; 2 left out, listed in clean.jsonl.dropped.jsonl",
    ]
    page = Path("audit.html").read_text()
    assert ROWS[4]["rejected"][:40] in page
    assert "<script" not in page
    assert main(["audit", "p.jsonl", "--output", "audit.md"]) == 0
    assert "## warning: contradictions" in Path("audit.md").read_text()


def test_the_page_shows_rows_beside_those_that_cannot_be_used(
    recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [{"prompt": "no chosen"}, *({**ROWS[0], "rejected": [{"role": f"r{i}", "content": ""}]} for i in range(30))]
    recipe_dir.jsonl("p.jsonl", [ROWS[0], *wrong, *ROWS])
    assert main(["audit", "p.jsonl", "--output", "audit.html"]) == 2
    page = Path("audit.html").read_text()
    assert "row 2</h3>" in page
    assert ROWS[0]["prompt"] in page  # of row 32, which repeats row 1
    assert "repeat an earlier row exactly" in page


def test_json(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl("p.jsonl", [*ROWS, ROWS[0]])
    assert main(["audit", "p.jsonl", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["rows"], printed["pairs"], printed["format"]) == (21, 21, "preference")
    assert printed["findings"] == [
        {
            "name": "repeats",
            "severity": "warning",
            "sentence": "1 of 21 rows (4.8 %) repeat an earlier row exactly",
            "count": 1,
            "share": 1 / 21,
            "rows": [[21, 1]],
            "fix": "leave them out, or the repeated comparison counts several times: --write-clean",
            "dropped": 1,
        }
    ]


def test_unusable_rows_have_exit_code_2(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl("p.jsonl", [*ROWS, {**ROWS[0], "chosen": None}])
    assert main(["audit", "p.jsonl"]) == 2
    assert "error: 1 of 21 rows (4.8 %) cannot be used: no `chosen`" in capsys.readouterr().out


def test_prompts_alone_are_refused(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl("p.jsonl", [{"prompt": "2+2="}])
    assert main(["audit", "p.jsonl"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "rlhf: p.jsonl: there is nothing to audit"


def test_rows_are_cut_by_the_model_or_by_the_setting(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    """A token is a character here: the prompt has 2, a completion n and the end of sequence."""
    tokenizer(alphabet="ab")
    Path("model", "config.json").write_text('{"max_position_embeddings": 64}')
    sizes = (10, 40, 70)
    recipe_dir.jsonl("p.jsonl", [{"prompt": "ab", "chosen": "a" * n, "rejected": "b" * n} for n in sizes])
    assert main(["audit", "p.jsonl", "--model", "model", "--max-length", "30", "--json"]) == 0
    found = {f["name"]: (f["sentence"], f["rows"]) for f in json.loads(capsys.readouterr().out)["findings"]}
    assert found["cut_by_model"][1] == [[3]]
    assert "are longer than the model's 64 positions" in found["cut_by_model"][0]
    assert found["cut_by_setting"][1] == [[2]]
    assert main(["audit", "p.jsonl", "--model", "model", "--max-length", "100", "--json"]) == 0
    found = {f["name"]: (f["sentence"], f["rows"]) for f in json.loads(capsys.readouterr().out)["findings"]}
    assert list(found) == ["cut_by_model"]
    assert main(["audit", "p.jsonl", "--model", "nowhere"]) == 2
    assert "no tokenizer.json that can be read" in capsys.readouterr().err


def test_options_are_checked_first(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.jsonl("p.jsonl", ROWS)
    assert main(["audit", "p.jsonl", "--write-clean", "p.jsonl"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main(["audit", "p.jsonl", "--output", "page.pdf"]) == 2
