"""Report pages of `rlhf report`: their content, hostile and secret text, and damaged run directories."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_on_disk import exit_alarm, run_on_disk

from orchestrator.cli.main import main
from orchestrator.driver.summary import write_report
from orchestrator.monitor.metrics import UpdatesFile
from orchestrator.report.charts import smooth
from orchestrator.report.findings import config_differences, not_measured
from orchestrator.report.page import markdown_code, report
from orchestrator.report.run_record import RunRecord, read_all
from orchestrator.rundir.directory import RunDirectory

HOSTILE = "</bdi><script>alert(1)</script><img src=http://evil.example/x.png onerror=alert(2)>|`${7*7}{{7*7}}"
VOID = {"meta", "br", "img", "link", "input", "hr", "base"}


class Page(HTMLParser):
    """Parsed page: tags with their attributes, and text. Checks that elements are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def page(*directories: RunDirectory) -> Page:
    found = Page(report(directories).html)
    assert found.open == []
    return found


def test_the_page_shows_the_results(tmp_path: Path) -> None:
    found = page(run_on_disk(tmp_path))
    assert "GRPO: 40 steps in" in found.text
    assert "The held-out reward went from 0.4000 to 0.9000." in found.text
    assert "all steps done" in found.text
    titles = [attrs["aria-label"] or "" for tag, attrs in found.tags if tag == "svg"]
    assert any(t.startswith("Held-out reward. greedy answers") and "0.4000 at step 0" in t for t in titles)
    assert any(t.startswith("Time by phase") for t in titles)
    assert any("policy: " in t and "worker-seconds on 2 workers" in t for t in titles)
    assert "One seed: the variation between seeds is unknown." in found.text
    samples = [found.text.count(f"4 at {step}") for step in (0, 20, 40)]
    assert samples == [4, 4, 4]
    assert "4 at 10" not in found.text  # step 10 is neither start, middle nor end


def test_the_page_loads_and_runs_nothing(tmp_path: Path) -> None:
    """Check that the page has no script and no external resource, and that its security policy forbids them."""
    html = report([run_on_disk(tmp_path)]).html
    found = Page(html)
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    for tag, attrs in found.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), f"{tag} {name}"
            assert name != "src"
            assert name != "href" or (value or "").startswith("#"), f"{tag} href={value}"
    assert not re.search(r"url\((?!['\"]?#)|@import|https?:|//[a-z]", html)
    policy = [a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_every_reference_within_a_chart_resolves(tmp_path: Path) -> None:
    found = page(run_on_disk(tmp_path), run_on_disk(tmp_path, "grpo-b"))
    ids = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    used = {attrs["href"] or "" for tag, attrs in found.tags if tag == "use"}
    clipped = {attrs["clip-path"] or "" for _, attrs in found.tags if "clip-path" in attrs}
    assert used
    assert {u.removeprefix("#") for u in used} | {c.removeprefix("url(#").removesuffix(")") for c in clipped} <= ids


def test_charts_take_their_colours_from_the_page(tmp_path: Path) -> None:
    html = report([run_on_disk(tmp_path)]).html
    pictures = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--s0)" in pictures
    assert "prefers-color-scheme: dark" in html
    assert re.findall(r"#[0-9a-f]{6}\b", pictures) == []


@pytest.mark.parametrize("where", ["prompt", "answer"])
def test_hostile_text_is_escaped(tmp_path: Path, where: str) -> None:
    directory = run_on_disk(tmp_path, **{where: HOSTILE})  # type: ignore[arg-type]
    written = report([directory])
    found = Page(written.html)
    assert HOSTILE in found.text
    assert not {tag for tag, _ in found.tags} & {"script", "img"}
    outside = re.sub(
        r"(`+)(?!`).*?(?<!`)\1(?!`)", "", written.markdown
    )  # without code spans, by the rule of CommonMark
    assert "<" not in outside
    assert "alert" not in outside
    assert "49" not in found.text.split("${")[1][:8]  # it was not evaluated as a template


def test_hostile_messages_and_alarms_are_escaped(tmp_path: Path) -> None:
    alarm = exit_alarm(saw=HOSTILE)
    ending = {"cause": "worker_failed", "message": HOSTILE, "exit_code": 4, "alarms": [alarm]}
    written = report([run_on_disk(tmp_path, exit=ending)])
    found = Page(written.html)
    assert found.text.count(HOSTILE) == 2
    assert "a worker failed" in found.text
    assert not {tag for tag, _ in found.tags} & {"script", "img"}


def test_secrets_are_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct horse & battery")
    token = "hf_" + "a" * 30
    ending = {"cause": "error", "message": f"{token}: correct horse & battery", "exit_code": 1}
    written = report([run_on_disk(tmp_path, exit=ending, answer=f"{token} or correct horse & battery")])
    for text in (written.html, written.markdown):
        assert token not in text
        assert "correct horse" not in text
        assert "[redacted]" in text


def test_alarms_are_listed_and_marked(tmp_path: Path) -> None:
    ending = {"alarms": [exit_alarm()]}
    found = page(run_on_disk(tmp_path, exit=ending))
    assert "Since step 31: KL 31 nats, over 25." in found.text
    assert "Try: raise the coefficient" in found.text
    labels = [a["aria-label"] or "" for tag, a in found.tags if tag == "svg"]
    assert any("alarm kl_budget at step 31" in label for label in labels)


def test_several_runs_are_compared(tmp_path: Path) -> None:
    a, b = run_on_disk(tmp_path, "grpo-a"), run_on_disk(tmp_path, "ppo-b", kind="ppo", steps=20)
    found = page(a, b)
    assert "2 runs" in found.text
    values = {d.key: d.values for d in config_differences(read_all([a, b]))}
    assert values["algorithm.type"] == ("grpo", "ppo")
    assert "name" not in values
    assert "data.prompts" not in values  # shared


def test_runs_of_equal_name_get_unique_names(tmp_path: Path) -> None:
    for seed in ("seed-0", "seed-1"):
        (tmp_path / seed).mkdir()
    directories = [run_on_disk(tmp_path / seed) for seed in ("seed-0", "seed-1")]
    assert [record.name for record in read_all(directories)] == ["seed-0", "seed-1"]


def test_a_single_run_is_compared_with_the_defaults(tmp_path: Path) -> None:
    values = {d.key: d.values for d in config_differences([RunRecord.read(run_on_disk(tmp_path))])}
    assert values["algorithm.max_steps"] == ("40",)
    assert "seed" not in values
    assert "checkpoint.every" not in values


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", b'{"step": 0}\n{"step": 1, "reward": nothing}\n', "metrics.jsonl: 1 line cannot be read"),
        ("resolved.json", b"{", "resolved.json: missing or damaged"),
        ("samples/eval-step-0.parquet", b"PAR1", "samples/eval-step-0.parquet: ArrowInvalid"),
        ("exit.json", b"\xff", ""),
        ("incidents.jsonl", b"[]\n{}\n", ""),
        ("recipe.yaml", b"\xff\xfe", ""),
    ],
)
def test_damaged_files_are_reported_and_the_rest_is_shown(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    directory = run_on_disk(tmp_path)
    (directory.path / name).write_bytes(content)
    found = page(directory)
    assert message in found.text
    assert "Not measured" in found.text


def test_an_edited_ledger_is_reported(tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path)
    lines = directory.ledger.read_text().splitlines(keepends=True)
    directory.ledger.write_text("".join([lines[0], *lines[2:]]))
    assert "a record is damaged, but later ones are intact" in page(directory).text


def test_a_run_that_never_began_has_a_report(tmp_path: Path) -> None:
    directory = run_on_disk(tmp_path, steps=0, rows=[{}])
    for name in ("metrics.jsonl", "ledger.jsonl", "exit.json"):
        (directory.path / name).unlink()
    assert "ended without writing exit.json" in page(directory).text


def test_the_command_writes_the_output_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    directory = run_on_disk(tmp_path)
    assert main(["report", str(directory.path)]) == 0
    assert directory.report.read_text().startswith("<!doctype html>")
    assert main(["report", str(directory.path), "--output", "report.md"]) == 0
    assert Path("report.md").read_text().startswith("# grpo-a\n")
    capsys.readouterr()
    assert main(["report", str(directory.path), "--output", "report.pdf"]) == 2
    assert "give a file that ends in .html or .md" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2
    assert "not a run directory" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_never_fails_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run_on_disk(tmp_path)
    directory.report.mkdir()
    write_report(directory)
    assert "no report: IsADirectoryError" in capsys.readouterr().out
    assert [p.name for p in directory.path.glob(".report*")] == []


def test_a_smoothed_curve_keeps_its_ends_and_its_mean() -> None:
    values = np.asarray([0.0, 3.0, 0.0, 3.0, 0.0, 3.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 1.0, 2.0, 1.0, 2.0, 1.5])


@pytest.mark.parametrize(
    ("text", "code"),
    [("a", "`a`"), ("a`b", "`` a`b ``"), ("a``b`c", "``` a``b`c ```"), ("a|b\nc", "`a¦b⏎c`"), ("", "` `")],
)
def test_no_text_leaves_its_code_span(text: str, code: str) -> None:
    assert markdown_code(text) == code


# ------------------------------------------------------------------------------------------------ distance notes


DPO = (
    "data.prompts=null",
    "data.dataset=./pairs.jsonl",
    "data.eval_prompts=null",
    "reward=[]",
    "algorithm.max_steps=40",
)


def distance_notes(directory: RunDirectory) -> str:
    """Return the notes about an unmeasured distance from the initial model."""
    return " ".join(line for line in not_measured(RunRecord.read(directory)) if "KL" in line or "reference" in line)


def test_offline_dpo_has_a_reference(tmp_path: Path) -> None:
    rows = [{"loss": 0.7, "rewards/chosen": 0.1, "timing/step": 1.0}] * 41
    offline = run_on_disk(tmp_path, "offline", kind="dpo", rows=rows, overrides=DPO)
    assert "there is a reference, but no KL to it was measured: a dataset's" in distance_notes(offline)
    without = run_on_disk(tmp_path, "simpo", kind="dpo", rows=rows, overrides=(*DPO, "algorithm.loss_type=simpo"))
    assert "there is no reference, and no KL was measured" in distance_notes(without)


def test_the_noise_of_a_reference_that_follows_the_policy_is_not_drawn(tmp_path: Path) -> None:
    rows = [{"loss": 0.7, "objective/kl": 1e-8 * step, "timing/step": 1.0} for step in range(41)]
    follows = run_on_disk(tmp_path, "follows", kind="dpo", rows=rows, overrides=("reference.refresh=every_round",))
    assert "KL to the reference" not in page(follows).text
    assert "the policy of the previous round" in distance_notes(follows)
    frozen = run_on_disk(tmp_path, "stays", kind="dpo", rows=rows)
    assert "KL to the reference" in page(frozen).text
    assert distance_notes(frozen) == ""


def test_refusal_prompts_count_as_held_out_data(tmp_path: Path) -> None:
    rows = [{"loss": 0.7, "eval/refusal": 1.0, "timing/step": 1.0}] * 41
    harmful = ("data.eval_prompts=null", "data.eval_harmful=./harmful.jsonl")
    notes = " ".join(not_measured(RunRecord.read(run_on_disk(tmp_path, "safe", rows=rows, overrides=harmful))))
    assert "held out" not in notes
    assert "no evaluation was recorded" not in notes


# ------------------------------------------------------------------------------------------------ rounds and updates


def iterative(tmp_path: Path, name: str = "rounds", steps: int = 3) -> RunDirectory:
    """Return a run of rounds with 20 updates each, and a decision before each round."""
    rows = [
        {"loss": 0.7, "reward": 0.25 * step, "pairs/count": 100.0, "drift/kl": 1.5, "drift/kl_error": 0.1}
        | {"timing/step": 1.0, "num_updates": 20.0}
        for step in range(steps + 1)
    ]
    directory = run_on_disk(tmp_path, name, kind="dpo", steps=steps, rows=rows)
    updates = UpdatesFile(directory.updates)
    for update in range(1, 20 * steps + 1):
        step = (update - 1) // 20 + 1
        metrics = {"loss": 1 / update, "grad_norm": 2.0, "rewards/accuracies": 0.5}
        updates.append(step, update, metrics, is_round=True)
    for step in range(1, steps + 1):
        directory.round(step).mkdir(parents=True)
        decision = {"action": "refresh", "reason": f"KL 1.5 > max_kl 1 <{step}>", "version": step, "drift": None}
        body = {"round": step, "reference": decision if step > 1 else None}
        (directory.round(step) / "round.json").write_text(json.dumps(body))
    return directory


def test_a_run_of_few_rounds_is_drawn_over_its_updates(tmp_path: Path) -> None:
    labels = [a["aria-label"] or "" for tag, a in page(iterative(tmp_path)).tags if tag == "svg"]
    (loss,) = [label for label in labels if label.startswith("Loss by update.")]
    assert "1 at update 1, 0.0167 at update 60" in loss
    assert sum("by update" in label.partition(".")[0] for label in labels) == 3


def test_a_run_of_many_steps_is_not(tmp_path: Path) -> None:
    labels = [a["aria-label"] or "" for tag, a in page(iterative(tmp_path, steps=12)).tags if tag == "svg"]
    assert any(label.startswith("Loss.") for label in labels)
    assert not any("by update" in label for label in labels)


def test_a_table_lists_the_rounds(tmp_path: Path) -> None:
    written = report([iterative(tmp_path)])
    lines = written.markdown[written.markdown.index("## Rounds") :].splitlines()
    assert [line for line in lines if line.startswith("|")][:5] == [
        "| round | reference, before the round | KL to it, nats | pairs | updates | training reward |",
        "|---|---|---|---|---|---|",
        "| 1 |  | 1.50 ± 0.1960 | 100 | 20 | 0.2500 |",
        "| 2 | refresh: KL 1.5 > max_kl 1 &lt;2> | 1.50 ± 0.1960 | 100 | 20 | 0.5000 |",
        "| 3 | refresh: KL 1.5 > max_kl 1 &lt;3> | 1.50 ± 0.1960 | 100 | 20 | 0.7500 |",
    ]
    assert "refresh: KL 1.5 > max_kl 1 <2>" in Page(written.html).text
    assert "Rounds" not in page(run_on_disk(tmp_path)).text


def test_a_damaged_round_is_reported(tmp_path: Path) -> None:
    directory = iterative(tmp_path)
    (directory.round(2) / "round.json").write_text("{")
    (directory.path / "rounds" / "notes").mkdir()
    assert "round.json: missing or damaged" in page(directory).text
