"""Submission: what a job is, which files it gets, when it is the same job, and what is refused at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from recipe_dir import RecipeDir

from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.launch import launchers
from orchestrator.launch.base import Job, JobRequest, JobState, Submitted
from orchestrator.launch.request import kind_of
from orchestrator.launch.targets import RayTarget, Target

Golden = Callable[[str, str], None]
SHARED = "output_dir=/shared/runs"
REWARD = {"reward": "[{type: function, function: 'mine.py:reward'}]"}
STAGES = """\
stages:
  - {name: base, model: {path: ./model}, data: {dataset: ./demos.jsonl}, algorithm: {type: sft, batch_size: 4}}
  - {recipe: second.yaml}
"""
SECOND = """\
name: final
model: {from_stage: base}
data: {dataset: ./pairs.jsonl}
algorithm: {type: dpo, batch_size: 4}
"""


class FakeLauncher:
    """Launcher that records requests, and knows the jobs that were submitted."""

    note = ""

    def __init__(self) -> None:
        self.requests: list[JobRequest] = []
        self.targets: list[Target] = []

    def submit(self, request: JobRequest) -> Submitted:
        if request.package is not None:
            copied = {str(p.relative_to(request.package.root)) for p in request.package.root.rglob("*") if p.is_file()}
            assert copied == set(request.package.files)
        is_new = request.id not in [other.id for other in self.requests]
        self.requests.append(request)
        return Submitted(job=Job(id=request.id, state=JobState.queued, run=request.run), is_new=is_new)


@pytest.fixture
def launcher(recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch) -> FakeLauncher:
    fake = FakeLauncher()

    def launcher_for(target: Target, *, token_file: Path | None = None) -> FakeLauncher:
        fake.targets.append(target)
        return fake

    monkeypatch.setattr(launchers, "launcher_for", launcher_for)
    for variable in ("RLHF_TARGET", "RLHF_TARGETS"):
        monkeypatch.delenv(variable, raising=False)
    return fake


def targets(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    Path("targets.yaml").write_text(text)
    monkeypatch.setenv("RLHF_TARGETS", "targets.yaml")


def submit(launcher: FakeLauncher, *arguments: str) -> JobRequest:
    assert main(["submit", *arguments]) == 0
    return launcher.requests[-1]


def files_of(request: JobRequest) -> list[str]:
    assert request.package is not None
    return list(request.package.files)


# ------------------------------------------------------------------------------------------------ the command


def test_submit_prints_the_id_and_what_to_do_next(
    launcher: FakeLauncher, recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [recipe_dir.recipe(), "--cluster", "head", "algorithm.beta=0.1", "output_dir=/shared/it's"]
    request = submit(launcher, *command)
    first = capsys.readouterr()
    assert first.out == f"{request.id}\n"
    assert first.err.splitlines() == [
        "shipped 5 files, 0.0 MiB",
        f"  rlhf status --cluster head {request.id}",
        f"  rlhf logs --cluster head {request.id} --follow",
        f"  rlhf stop --cluster head {request.id}",
    ]
    assert request.id.startswith("rlhf-arith-")
    assert request.command == ("rlhf", "run", "recipe.yaml", "algorithm.beta=0.1", "output_dir=/shared/it's")
    assert (request.run, request.directories) == ("arith", ("/shared/it's/arith",))
    assert launcher.targets == [RayTarget(engine="ray", address="head")]
    submit(launcher, *command)
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err.startswith("submitted before; its state is QUEUED\n")


def test_json_is_one_document(
    launcher: FakeLauncher, recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    request = submit(launcher, recipe_dir.recipe(), "--cluster", "head", SHARED, "--json")
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "id": request.id,
        "is_new": True,
        "state": "QUEUED",
        "run": "arith",
        "directories": ["/shared/runs/arith"],
        "command": ["rlhf", "run", "recipe.yaml", SHARED],
        "files": 5,
        "bytes": request.package.bytes if request.package else 0,
        "not_shipped": [],
    }


def test_attempts_priority_and_permission(launcher: FakeLauncher, recipe_dir: RecipeDir) -> None:
    options = ["--cluster", "head", SHARED, "--attempts", "3", "--priority", "7", "--allow-open-cluster"]
    request = submit(launcher, recipe_dir.recipe(), *options)
    assert request.command == (*("rlhf", "run", "--attempts", "3", "recipe.yaml", SHARED, "cluster.allow_open=true"),)
    assert request.priority == 7
    plain = submit(launcher, "recipe.yaml", "--cluster", "head", SHARED)
    assert plain.id == request.id, "they do not change what is computed"
    assert submit(launcher, "recipe.yaml", "--cluster", "head", SHARED, "--fresh").id != plain.id


def test_a_comparison_is_one_job(launcher: FakeLauncher, recipe_dir: RecipeDir) -> None:
    recipe_dir.recipe({"data": "{prompts: ./prompts.jsonl, eval_prompts: ./prompts.jsonl}"}, name="grpo.yaml")
    Path("known.json").write_text("{}")
    Path("recipe.yaml").write_text(
        "{name: both, seeds: [0, 1], known: known.json, tasks: "
        "[{name: adding, methods: [{name: GRPO, recipe: grpo.yaml}]}]}"
    )
    command = ["recipe.yaml", "--cluster", "head", SHARED, "--fresh"]
    request = submit(launcher, *command, "--attempts", "3", "--allow-open-cluster")
    assert request.command == (
        *("rlhf", "compare", "--fresh", "recipe.yaml", SHARED, "attempts=3", "stages.*.cluster.allow_open=true"),
    )
    assert request.directories == tuple(f"/shared/runs/both/adding--GRPO--seed-{seed}" for seed in (0, 1))
    assert {"grpo.yaml", "recipe.yaml", "known.json", "prompts.jsonl"} <= set(files_of(request))
    assert submit(launcher, *command).id == request.id, "attempts and permission do not change what is computed"
    assert submit(launcher, *command, "algorithm.learning_rate=1e-7").id != request.id
    assert submit(launcher, *command, "tasks.0.gold=math").id != request.id, "what is reported is a result as well"


def test_an_evaluation_is_a_job(launcher: FakeLauncher, recipe_dir: RecipeDir) -> None:
    Path("recipe.yaml").write_text("{prompts: prompts.jsonl, reward: [{type: math}]}")
    command = ["recipe.yaml", "--cluster", "head", "seed=3", SHARED]
    request = submit(launcher, *command, "--model", "/shared/runs/a/model", "--against", "org/base")
    assert request.command == (
        *("rlhf", "evaluate", "/shared/runs/a/model", "--against", "org/base"),
        *("--output", "/shared/runs/evaluations/a--recipe", "--suite", "recipe.yaml", "seed=3"),
    )
    assert (request.run, request.directories) == ("a--recipe", ())
    assert files_of(request) == ["prompts.jsonl", "recipe.yaml"]
    assert submit(launcher, *command, "--model", "/shared/runs/b/model").id != request.id
    assert "model/config.json" in files_of(submit(launcher, *command, "--model", "model"))


def test_what_a_file_is(recipe_dir: RecipeDir) -> None:
    configs = Path(__file__).parents[3] / "configs"
    assert kind_of(configs / "eval" / "quickstart.yaml") == "suite"
    assert kind_of(configs / "quickstart" / "compare.yaml") == "comparison"
    assert kind_of(configs / "quickstart" / "grpo.yaml") == kind_of(Path("nowhere.yaml")) == "recipe"


# -------------------------------------------------------------------------------------------- files and identity


def test_a2_data_code_and_overrides_change_the_id_and_comments_do_not(
    launcher: FakeLauncher, recipe_dir: RecipeDir
) -> None:
    Path("mine.py").write_text("import other\ndef reward(completions): return [0.0] * len(completions)\n")
    Path("other.py").write_text("A = 1\n")
    recipe_dir.recipe(REWARD)

    def id(*more: str) -> str:
        return submit(launcher, "recipe.yaml", "--cluster", "head", SHARED, *more).id

    first = id()
    Path("prompts.jsonl").touch()
    Path("recipe.yaml").write_text("# a comment\n" + Path("recipe.yaml").read_text())
    assert id() == first
    seen = {first, id("seed=1")}
    Path("prompts.jsonl").write_text('{"prompt": "7-1=", "solution": "6"}\n' * 4)
    seen.add(id())
    Path("mine.py").write_text(Path("mine.py").read_text() + "# careful\n")
    seen.add(id())
    Path("other.py").write_text("A = 2\n")
    seen.add(id())
    Path("model/model.safetensors").write_bytes(b"\1" * 16)
    seen.add(id())
    assert len(seen) == 6


def test_a_file_that_stays_on_the_target_changes_the_id_where_this_machine_sees_it(
    launcher: FakeLauncher, recipe_dir: RecipeDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "prompts.jsonl"
    command = [recipe_dir.recipe({"data": f"{{prompts: {data}}}"}), "--cluster", "head", SHARED]
    first = submit(launcher, *command)
    assert "prompts.jsonl" not in files_of(first)
    assert f"not shipped, because absolute paths are the target's own: {data}\n" in capsys.readouterr().err
    data.write_text('{"prompt": "7-1=", "solution": "6"}\n' * 4)
    assert submit(launcher, *command).id != first.id


def test_what_a_recipe_names_is_shipped_though_git_ignores_it(launcher: FakeLauncher, recipe_dir: RecipeDir) -> None:
    Path(".gitignore").write_text("*.jsonl\n/model/\n")
    Path("lib/tools").mkdir(parents=True)
    for name in ("lib/__init__.py", "lib/tools/__init__.py", "lib/unused.py"):
        Path(name).write_text("")
    Path("lib/tools/words.py").write_text("from .. import more\n")
    Path("lib/more.py").write_text("import json, orchestrator.errors\n")
    Path("mine.py").write_text("from lib.tools import words\ndef reward(completions): return [0.0]\n")
    Path("words.txt").write_text("a\n")
    request = submit(launcher, recipe_dir.recipe(REWARD), "--cluster", "head", SHARED, "--include", "words.txt")
    assert files_of(request) == [
        *("lib/__init__.py", "lib/more.py", "lib/tools/__init__.py", "lib/tools/words.py", "mine.py"),
        *("model/config.json", "model/model.safetensors", "model/tokenizer.json"),
        *("prompts.jsonl", "recipe.yaml", "words.txt"),
    ]


def test_included_recipes_are_shipped_and_models_of_earlier_stages_are_not(
    launcher: FakeLauncher, recipe_dir: RecipeDir
) -> None:
    Path("recipe.yaml").write_text(STAGES)
    Path("second.yaml").write_text(SECOND)
    Path("runs/base/model").mkdir(parents=True)
    Path("runs/base/model/config.json").write_text("of a run on this machine")
    request = submit(launcher, "recipe.yaml", "--cluster", "head", SHARED)
    assert {"recipe.yaml", "second.yaml", "demos.jsonl", "pairs.jsonl"} <= set(files_of(request))
    assert not [name for name in files_of(request) if name.startswith("runs/")]


def test_paths_start_at_the_working_directory(
    launcher: FakeLauncher, recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_dir.recipe()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    request = submit(launcher, "../recipe.yaml", "--working-dir", "..", "--cluster", "head", SHARED)
    assert request.command[2] == "recipe.yaml"
    assert "prompts.jsonl" in files_of(request)


def test_names_on_the_hub_are_not_files(launcher: FakeLauncher, recipe_dir: RecipeDir) -> None:
    changes = {"model": "{path: org/model}", "data": "{prompts: org/prompts}"}
    assert files_of(submit(launcher, recipe_dir.recipe(changes), "--cluster", "head", SHARED)) == ["recipe.yaml"]


def test_the_own_packages_are_installed_on_the_target_and_not_shipped(
    launcher: FakeLauncher, recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Path(__file__).parents[3]
    monkeypatch.chdir(repository)
    file = "configs/quickstart/words/grpo.yaml"
    code = "reward=[{type: function, function: 'workers.rewards.function_child:load'}]"
    data = (f"data.{key}={repository}/x.jsonl" for key in ("prompts", "eval_prompts"))
    of_base = (f"stages.{load(file).stages[0].name}.{key}={repository}/x" for key in ("data.dataset", "model.path"))
    request = submit(launcher, file, "--cluster", "head", SHARED, code, *data, *of_base)
    assert files_of(request) == ["configs/quickstart/words/base.yaml", file]


# ---------------------------------------------------------------------------------------------- output_dir


def test_a10_every_stage_writes_to_the_output_dir_of_the_command_line(
    launcher: FakeLauncher, recipe_dir: RecipeDir
) -> None:
    Path("recipe.yaml").write_text(STAGES)
    Path("second.yaml").write_text(SECOND)
    base, final = load("recipe.yaml", [SHARED]).stages
    assert (base.output_dir, final.output_dir) == ("/shared/runs", "/shared/runs")
    assert final.model.path == "/shared/runs/base/model"
    base, final = load("recipe.yaml", ["stages.base.output_dir=/other", SHARED]).stages
    assert (base.output_dir, final.output_dir, final.model.path) == ("/other", "/shared/runs", "/other/base/model")
    request = submit(launcher, "recipe.yaml", "--cluster", "head", SHARED)
    assert request.directories == ("/shared/runs/base", "/shared/runs/final")


def test_a_target_has_an_output_dir_and_secrets(
    launcher: FakeLauncher, recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "{engine: ray, address: head, output_dir: /shared/its runs, secrets: {WANDB_API_KEY: /run/secrets/wandb}}"
    targets(monkeypatch, f"h100: {text}\n")
    Path("recipe.yaml").write_text(STAGES)
    Path("second.yaml").write_text(SECOND)
    request = submit(launcher, "recipe.yaml", "--on", "h100")
    assert request.command == ("rlhf", "run", "recipe.yaml", 'output_dir="/shared/its runs"')
    assert request.directories == ("/shared/its runs/base", "/shared/its runs/final")
    assert request.secrets == {"WANDB_API_KEY": "/run/secrets/wandb"}
    assert f"  rlhf status --on h100 {request.id}\n" in capsys.readouterr().err
    own = submit(launcher, "recipe.yaml", "--on", "h100", "output_dir=/mine")
    assert own.directories == ("/mine/base", "/mine/final"), "the command line goes before the target"


def test_a_job_of_this_machine_runs_in_a_copy_and_writes_where_the_recipe_says(
    launcher: FakeLauncher, recipe_dir: RecipeDir
) -> None:
    here = recipe_dir.path
    request = submit(launcher, recipe_dir.recipe(), "--on", "local")
    assert request.command == ("rlhf", "run", "recipe.yaml", f"output_dir={here}/runs")
    assert "prompts.jsonl" in files_of(request)
    Path("recipe.yaml").write_text(STAGES)
    Path("second.yaml").write_text(SECOND)
    request = submit(launcher, "recipe.yaml", "--on", "local", "stages.base.output_dir=bases", "seed=1")
    overrides = ("seed=1", f"output_dir={here}/runs", f"stages.base.output_dir={here}/bases")
    assert request.command == ("rlhf", "run", "recipe.yaml", *overrides)
    assert request.directories == (f"{here}/bases/base", f"{here}/runs/final")
    Path("suite.yaml").write_text("{prompts: prompts.jsonl, reward: [{type: math}]}")
    request = submit(launcher, "suite.yaml", "--on", "local", "--model", "org/qwen")
    assert request.command[3:5] == ("--output", f"{here}/evaluations/qwen--suite")


def test_a_comparison_on_this_machine_leaves_earlier_stages_where_they_are(
    launcher: FakeLauncher, recipe_dir: RecipeDir
) -> None:
    here = recipe_dir.path
    stages = STAGES.replace("{name: base,", "{name: base, output_dir: bases,")
    Path("dpo.yaml").write_text(stages)
    data = "{dataset: ./pairs.jsonl, eval_prompts: ./prompts.jsonl}\nreward: [{type: math}]"
    Path("second.yaml").write_text(SECOND.replace("{dataset: ./pairs.jsonl}", data))
    Path("recipe.yaml").write_text(
        "{name: one, seeds: [0], tasks: [{name: t, methods: [{name: DPO, recipe: dpo.yaml}]}]}"
    )
    request = submit(launcher, "recipe.yaml", "--on", "local")
    assert request.directories == (f"{here}/bases/base", f"{here}/runs/one/t--DPO--seed-0")
    assert launcher.requests[-1].command[3:] == (f"output_dir={here}/runs", f"stages.base.output_dir={here}/bases")


# ------------------------------------------------------------------------------------------------ refusals


def refusals(capsys: pytest.CaptureFixture[str], *commands: Sequence[str]) -> str:
    for command in commands:
        assert main(["submit", *command]) == 2
    return capsys.readouterr().err


def test_submit_refuses_what_would_fail_on_the_target(
    launcher: FakeLauncher,
    recipe_dir: RecipeDir,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    targets(monkeypatch, "h100: {engine: ray, address: head}\nprod: {engine: slurm}\n")
    recipe_dir.recipe({"lr": "1"}, name="wrong.yaml")
    recipe_dir.recipe({"data": "{prompts: data/missing.jsonl}", "model": "{path: ./nowhere}"}, name="missing.yaml")
    recipe_dir.recipe({"reward": "[{type: function, function: 'nowhere.py:reward'}]"}, name="no_code.yaml")
    Path("suite.yaml").write_text("{prompts: prompts.jsonl, reward: [{type: math}]}")
    recipe_dir.recipe()
    Path("sub").mkdir()
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/resolved.json").write_text("{}")
    on = ("--on", "h100")
    text = refusals(
        capsys,
        ["wrong.yaml", *on, SHARED],
        ["missing.yaml", *on, SHARED],
        ["no_code.yaml", *on, SHARED],
        ["recipe.yaml", *on],
        ["recipe.yaml", *on, SHARED, "--working-dir", "sub"],
        ["recipe.yaml", *on, SHARED, "--include", "../secrets"],
        ["recipe.yaml", *on, SHARED, "--model", "a"],
        ["suite.yaml", *on, SHARED],
        ["suite.yaml", *on, "--model", "/shared/a"],
        ["suite.yaml", *on, SHARED, "--model", "runs/a"],
        ["suite.yaml", *on, SHARED, "--model", "/shared/a", "--attempts", "2"],
        ["recipe.yaml", "--on", "prod", SHARED, "--allow-open-cluster"],
        ["recipe.yaml", "--on", "h10"],
        ["recipe.yaml"],
        ["recipe.yaml", *on, "--cluster", "head"],
    )
    golden("submit-refused", text)
    assert launcher.requests == []


def test_no_secret_travels_with_a_job(
    launcher: FakeLauncher, recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("RAY_AUTH_TOKEN", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(variable, "c4nary")
    request = submit(launcher, recipe_dir.recipe(), "--cluster", "head", SHARED)
    assert "c4nary" not in repr(replace(request, package=None))
