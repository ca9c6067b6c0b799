"""Faults planted in a few rows, a test for each finding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import audited, columns_of, finding, pair, warnings
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planted_preferences import World, reworded, swap
from orchestrator.audit import near
from orchestrator.audit.agreement import agreement_of
from orchestrator.audit.finding import Severity
from orchestrator.audit.overlap import overlapping, read_held_out
from orchestrator.errors import BadInput

ROOT = Path(__file__).parents[3]
CLEAN = [dict(row, annotator="a", source="s") for row in World(seed=1, completion_words=(30, 60)).rows(40)]


def test_clean_rows_have_no_finding(tmp_path: Path) -> None:
    found = audited(tmp_path / "p.jsonl", CLEAN)
    assert warnings(found) == []
    assert (found.num_rows, found.num_pairs, found.is_usable) == (40, 40, True)


def test_rows_that_cannot_be_used_are_errors_by_kind(tmp_path: Path) -> None:
    wrong = [{**CLEAN[0], "chosen": 3}, "{broken", {**CLEAN[1], "rejected": 4}, {**CLEAN[2], "chosen": 5}]
    found = audited(tmp_path / "p.jsonl", [*CLEAN, *wrong])
    assert not found.is_usable
    assert [(f.rows, f.dropped.tolist()) for f in found.findings] == [
        (((41,), (44,)), [41, 44]),
        (((42,),), [42]),
        (((43,),), [43]),
    ]
    assert found.num_rows == 44


def test_more_kinds_of_unusable_rows_than_a_run_reports_are_counted(tmp_path: Path) -> None:
    wrong = [{**CLEAN[0], "chosen": [{"role": f"role-{i}", "content": ""}]} for i in range(150)]
    found = audited(tmp_path / "p.jsonl", [*CLEAN, *wrong])
    assert sum(f.count for f in found.findings if f.name == "unusable") == 150
    assert finding(found, "unusable").severity == Severity.error


def test_equal_pairs(tmp_path: Path) -> None:
    found = audited(tmp_path / "p.jsonl", [*CLEAN, {**CLEAN[3], "rejected": CLEAN[3]["chosen"] + " "}])
    assert (warnings(found), finding(found, "equal_pairs").rows) == (["equal_pairs"], ((41,),))


def test_exact_repeats_name_the_first(tmp_path: Path) -> None:
    found = audited(tmp_path / "p.jsonl", [*CLEAN, CLEAN[4], CLEAN[4]])
    repeats = finding(found, "repeats")
    assert (warnings(found), repeats.rows, repeats.count) == (["repeats"], ((41, 5), (42, 5)), 2)
    assert [*repeats.reasons()] == [(41, "repeats", 5), (42, "repeats", 5)]


def test_rows_of_two_annotators_repeat_nothing(tmp_path: Path) -> None:
    assert warnings(audited(tmp_path / "p.jsonl", [*CLEAN, {**CLEAN[4], "annotator": "b"}])) == []


def test_near_repeats(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    copies = [reworded(CLEAN[i], generator) for i in range(3)]
    found = audited(tmp_path / "p.jsonl", [*CLEAN, *copies])
    assert (warnings(found), finding(found, "near_repeats").rows) == (["near_repeats"], ((41, 1), (42, 2), (43, 3)))


def test_contradictions_leave_out_both_sides(tmp_path: Path) -> None:
    found = audited(tmp_path / "p.jsonl", [*CLEAN, swap(CLEAN[6])])
    contradictions = finding(found, "contradictions")
    assert (warnings(found), contradictions.rows) == (["contradictions"], ((41, 7),))
    assert [*contradictions.reasons()] == [(7, "contradictions", 41), (41, "contradictions", 7)]


def test_near_repeats_of_one_annotator_among_rows_of_others(tmp_path: Path) -> None:
    row, copy = CLEAN[0], {**CLEAN[0], "prompt": CLEAN[0]["prompt"].upper()}
    rows = [*({**row, "annotator": name} for name in "abcdefghij"), {**copy, "annotator": "c"}]
    found = audited(tmp_path / "p.jsonl", rows)
    assert (warnings(found), finding(found, "near_repeats").rows) == (["near_repeats"], ((11, 3),))


def test_near_contradictions(tmp_path: Path) -> None:
    copy = swap(reworded(CLEAN[8], np.random.default_rng(1)))
    found = audited(tmp_path / "p.jsonl", [*CLEAN, copy])
    assert (warnings(found), finding(found, "near_contradictions").rows) == (["near_contradictions"], ((41, 9),))
    assert finding(found, "near_contradictions").dropped.tolist() == [9, 41]


def test_labels_of_nearly_equal_completions(tmp_path: Path) -> None:
    labelled = [{"prompt": r["prompt"], "completion": r["chosen"], "label": i % 2 == 0} for i, r in enumerate(CLEAN)]
    copies = [{**labelled[i], "completion": labelled[i]["completion"].upper()} for i in (0, 1)]
    found = audited(tmp_path / "p.jsonl", [*labelled, copies[0], {**copies[1], "label": True}])
    assert finding(found, "near_repeats").rows == ((41, 1),)
    assert finding(found, "near_contradictions").rows == ((42, 2),)
    assert warnings(found) == ["near_repeats", "near_contradictions"]


@pytest.mark.parametrize("kind", ["one pair", "no usable row", "demonstrations", "messages", "ranks"])
def test_other_data_than_many_pairs_are_audited(kind: str, tmp_path: Path) -> None:
    """Files of one row, of none that can be used, and of other formats."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows: dict[str, list[dict[str, Any]]] = {
        "one pair": CLEAN[:1],
        "no usable row": [{**CLEAN[0], "rejected": CLEAN[0]["chosen"]}],
        "demonstrations": [{"prompt": r["prompt"], "completion": r["chosen"]} for r in CLEAN],
        "messages": [{"messages": turns}, {"messages": [*turns, *turns]}],
        "ranks": [{"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 3]}] * 2,
    }
    expected = {"no usable row": ["equal_pairs"], "ranks": ["repeats"]}
    found = audited(tmp_path / "p.jsonl", rows[kind])
    assert (warnings(found), found.is_usable) == (expected.get(kind, []), True)


def test_what_a_missing_library_would_find_is_said(tmp_path: Path) -> None:
    """Audit in a process whose import system finds none of the extra's libraries."""
    source = audited(tmp_path / "p.jsonl", [*CLEAN, CLEAN[0]]).source
    script = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in ("rensa", "krippendorff", "sklearn", "scipy")
        return None if absent else super().find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from orchestrator.cli.main import main
sys.exit(main(["audit", sys.argv[1]]))
"""
    done = subprocess.run([sys.executable, "-c", script, source], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    printed = " ".join(done.stdout.split())
    assert "1 of 41 rows (2.4 %) repeat an earlier row exactly" in printed
    assert (
        "near repeats, length and poison, Krippendorff's α: a library is missing (pip install "
        "'rlhf-orchestrator[data]')" in printed
    )


def test_conflicts_between_objectives(tmp_path: Path) -> None:
    helpful = [{**row, "objective": "helpful"} for row in CLEAN]
    harmless = [{**(swap(row) if i < 10 else row), "objective": "harmless"} for i, row in enumerate(CLEAN)]
    found = audited(tmp_path / "p.jsonl", [*helpful, *harmless])
    conflict = finding(found, "conflicting_objectives")
    assert warnings(found) == ["conflicting_objectives"]
    assert (conflict.count, conflict.rows[0]) == (10, (41, 1))
    assert "`helpful` and `harmless` decide 10 of 40 shared comparisons (25%)" in conflict.sentence
    one = audited(tmp_path / "p.jsonl", [*helpful, *({**row, "objective": "helpful"} for row in CLEAN[:0])])
    assert warnings(one) == []


def test_length_that_decides_is_reported(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for i in range(400):
        sizes = sorted(generator.integers(5, 60, 2).tolist())
        sizes = sizes if generator.random() < 0.9 else sizes[::-1]
        short, long = (" ".join(f"w{generator.integers(0, 999)}" for _ in range(size)) for size in sizes)
        rows.append(pair(f"prompt {i}", long, short))
    found = audited(tmp_path / "p.jsonl", rows)
    assert warnings(found) == ["length"]
    assert found.lengths is not None
    assert found.lengths.model is not None
    assert 0.85 < found.lengths.model.accuracy < 0.95
    assert found.lengths.longer.value > 0.85


def test_own_scores_that_contradict_the_label(tmp_path: Path) -> None:
    scored = [{**row, "score_chosen": 5.0, "score_rejected": 3.0 + i % 2} for i, row in enumerate(CLEAN)]
    scored[7]["score_chosen"] = 1.0
    found = audited(tmp_path / "p.jsonl", scored)
    assert (warnings(found), finding(found, "reversed_scores").rows) == (["reversed_scores"], ((8,),))
    assert found.contrast is not None
    assert (found.contrast.count, found.contrast.quartiles) == (40, (1.0, 1.5, 2.0))  # −3, 19 × 1, 20 × 2


def test_pairs_of_hardly_any_contrast(tmp_path: Path) -> None:
    rated = [
        {"prompt": r["prompt"], "completions": [r["chosen"], r["rejected"]], "ratings": [5, 4.99 if i < 10 else 1]}
        for i, r in enumerate(CLEAN)
    ]
    found = audited(tmp_path / "p.jsonl", rated)
    assert (warnings(found), finding(found, "weak_contrast").count) == (["weak_contrast"], 10)


# ------------------------------------------------------------------------------------------------ agreement


def judged(votes: list[str]) -> list[dict[str, Any]]:
    """Return rows of a comparison for each of `votes`: "ab" are annotators 0 and 1, who prefer a and b."""
    rows = []
    for i, vote in enumerate(votes):
        for annotator, winner in enumerate(vote):
            row = pair(f"question {i}", f"answer a of {i}", f"answer b of {i}", annotator=annotator)
            rows.append(row if winner == "a" else swap(row))
    return rows


def test_agreement_is_counted_and_alpha_is_krippendorffs(tmp_path: Path) -> None:
    columns = columns_of(tmp_path / "p.jsonl", judged(["aa", "aa", "aa", "ab", "a"]))
    agreement = agreement_of(columns)
    assert agreement is not None
    assert (agreement.comparisons, agreement.judgements, agreement.percent.value) == (4, 8, 0.75)
    # α for two coders without gaps: 1 − (n − 1) Σ o_ab / Σ n_a n_b. Which answer is "high" follows from a hash: the
    # three comparisons that agree have k times the value 1, so n_1 = 2k + 1, n_0 = 8 − n_1, and 2 of 8 values differ.
    possible = [1 - 7 * 2 / (2 * (2 * k + 1) * (7 - 2 * k)) for k in range(4)]
    assert agreement.alpha is not None
    assert min(abs(agreement.alpha.value - alpha) for alpha in possible) < 1e-9
    assert agreement.alpha.low <= agreement.alpha.value <= agreement.alpha.high


@pytest.mark.parametrize(
    ("votes", "severity", "said"),
    [
        (["aa"] * 13 + ["ab"] * 7, Severity.warning, "reconsider the task"),
        (["aa"] * 16 + ["ab"] * 4, Severity.note, "between 70% and 85%"),
        (["aa"] * 18 + ["ab"] * 2, None, ""),
    ],
)
def test_the_lines_of_agreement(votes: list[str], severity: Severity | None, said: str, tmp_path: Path) -> None:
    found = audited(tmp_path / "p.jsonl", judged(votes))
    reported = [f for f in found.findings if f.name == "agreement"]
    assert [f.severity for f in reported] == ([severity] if severity else [])
    assert all(said in f.sentence for f in reported)
    assert [f.name for f in found.findings if f.name != "agreement"] == []


def test_an_annotator_who_decides_both_ways_has_no_judgement(tmp_path: Path) -> None:
    rows = judged(["aa", "ab"])
    agreement = agreement_of(columns_of(tmp_path / "p.jsonl", [*rows, swap(rows[0])]))
    assert agreement is not None
    assert (agreement.comparisons, agreement.percent.value) == (1, 0.0)


def test_votes_of_a_row_are_judgements(tmp_path: Path) -> None:
    agreement = agreement_of(columns_of(tmp_path / "p.jsonl", [pair("p", "a", "b", votes=[True, True, False])]))
    assert agreement is not None
    assert agreement.percent.value == pytest.approx(1 / 3)


def test_the_column_of_annotators_can_be_named(tmp_path: Path) -> None:
    rows = [{**row, "who": row.pop("annotator")} for row in judged(["ab"] * 3)]
    assert audited(tmp_path / "p.jsonl", rows, annotator="who").agreement is not None
    with pytest.raises(BadInput, match="no row has this column"):
        audited(tmp_path / "p.jsonl", rows, annotator="whom")


# ------------------------------------------------------------------------------------------------ overlap


def test_overlap_finds_equal_prompts_and_those_within_others(tmp_path: Path) -> None:
    long = " ".join(f"word{i}" for i in range(24))
    evaluation = [{"prompt": "Short question?"}, {"prompt": long}, {"prompt": "never trained on"}]
    rows = [*CLEAN, pair("Short question?", "x", "y"), pair(f"Read this. {long} Now answer.", "x", "z")]
    half = " ".join(long.split()[:15])  # 8 of the 17 8-grams: less than half
    source = str(tmp_path / "e.jsonl")
    audited(tmp_path / "e.jsonl", [pair("unused", "a", "b")])
    (tmp_path / "e.jsonl").write_text("".join(f'{{"prompt": "{row["prompt"]}"}}\n' for row in evaluation))
    found = audited(tmp_path / "p.jsonl", [*rows, pair(half, "x", "y")], against=source)
    assert finding(found, "overlap").rows == ((41, 1), (42, 2))
    assert "contain 2 of 3 prompts" in finding(found, "overlap").sentence


def test_a_template_of_all_evaluation_prompts_is_no_overlap(tmp_path: Path) -> None:
    template = " ".join(f"word{i}" for i in range(24))
    evaluation = tmp_path / "e.jsonl"
    evaluation.write_text("".join(f'{{"prompt": "{template} number {i}"}}\n' for i in range(20)))
    columns = columns_of(tmp_path / "p.jsonl", [pair(f"{template} number 99", "x", "y")])
    assert overlapping(columns, read_held_out(str(evaluation))).tolist() == []


# ------------------------------------------------------------------------------------------------ near rows


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12).map(" ".join)


@given(st.lists(WORDS, min_size=2, max_size=6))
def test_similar_is_the_jaccard_similarity_of_sets(texts: list[str]) -> None:
    sets = [frozenset(text.split()) for text in texts]
    for one in sets:
        for other in sets:
            arrays = (np.array(sorted(map(ord, s)), np.uint64) for s in (one, other))
            assert near.similar(*arrays) == (len(one & other) >= near.THRESHOLD * len(one | other))


def test_pairs_of_rows_that_are_too_many_to_compare_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "MAX_EXACT", 3)
    copies = [{**row, "prompt": row["prompt"].upper()} for row in CLEAN[:5]]
    found = audited(tmp_path / "p.jsonl", [*CLEAN, *copies])
    assert finding(found, "near_repeats").count == 3
    assert found.left_out[0] == "near repeats: 2 pairs of rows that look alike were not compared"


def test_a_long_common_prompt_proposes_no_candidates(tmp_path: Path) -> None:
    """Rows with one long system prompt are as different as their ends and completions."""
    system = " ".join(f"rule{i}" for i in range(500))
    rows = [{**row, "prompt": f"{system} {row['prompt']}"} for row in CLEAN]
    columns = columns_of(tmp_path / "p.jsonl", rows)
    signatures = near.sign(columns.words, len(columns))
    assert len(near.propose(signatures, columns.groups, np.arange(len(columns)))) < 100  # of 780 pairs
    assert len(near.near_rows(columns).repeats) == 0
