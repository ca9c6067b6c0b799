"""Command line: light imports, exit codes, and errors with a fix."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_dir import RecipeDir

from orchestrator.cli import main as cli_main
from orchestrator.cli.main import main
from orchestrator.config import load
from orchestrator.errors import Interrupted, Problems, WorkerFailed
from orchestrator.preflight.shadowing import refuse_shadows
from orchestrator.rundir.directory import RunDirectory

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "datasets", "wandb")
Golden = Callable[[str, str], None]


def rlhf(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "recipe.yaml"], ["run", "recipe.yaml", "--dry-run"]])
def test_it_imports_nothing_heavy(arguments: list[str], recipe_dir: RecipeDir) -> None:
    """Check imports, not seconds: the time to start depends on other processes."""
    recipe_dir.recipe()
    script = (
        "import sys; from orchestrator.cli.main import main\n"
        f"main({arguments!r}); print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=recipe_dir.path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"


def test_the_light_half_imports_nothing_heavy() -> None:
    """Import every module of these packages."""
    light = ["config", "data", "monitor", "preflight", "rundir", "errors", "terminal", "cli"]
    script = f"""
import importlib, pkgutil, sys
for name in {light!r}:
    module = importlib.import_module("orchestrator." + name)
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        importlib.import_module(f"orchestrator.{{name}}.{{found.name}}")
print(sorted(set(sys.modules) & {{*{HEAVY!r}, "pyarrow"}}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_validate_reports_its_findings(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["validate", recipe_dir.recipe({"data": "{prompts: ./prompts.jsonl, eval_prompts: ./prompts.jsonl}"})])
        == 0
    )
    assert capsys.readouterr().out.splitlines() == [
        "recipe.yaml is valid: 1 run",
        "  arith: grpo on ./model, 10 steps, into runs/arith",
        "    data.prompts: ./prompts.jsonl, 8 rows of text",
        "    data.eval_prompts: ./prompts.jsonl, 8 rows of text",
        "    note: data.eval_prompts: 8 of 8 held-out prompts are also trained on: rows 1, 2, 3, 4, 5, 6, 7, 8",
    ]


def test_b58_mistakes_on_the_command_line(golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = (
        ["rnu", "x.yaml"],
        ["run"],
        ["run", "x.yaml", "--dryrun"],
        ["jobs", "--on", "a", "--cluster", "b"],
        ["logs", "--cluster"],
        ["stop", "--cluster", "x"],
        ["jobs", "--cluster", "a", "--cluster=b", "--token-file", "c", "--token-file", "d"],
        ["resume", "runs/x", "--new"],
    )
    for mistake in mistakes:
        assert main(mistake) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    golden("b58-command-line", printed.err)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rlhf ")


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (WorkerFailed("reward", 0, "Traceback:\nValueError: boom"), 4, "rlhf: reward rank 0 failed: ValueError: boom"),
        (
            Interrupted("SIGTERM", resume="rlhf resume runs/x"),
            143,
            "rlhf: stopped by SIGTERM\n  fix: resume with: rlhf",
        ),
        (KeyboardInterrupt(), 130, "rlhf: stopped by Ctrl-C"),
        (ZeroDivisionError("oh"), 1, "rlhf: unexpected ZeroDivisionError: oh\nrun it again with --debug"),
    ],
)
def test_errors_become_exit_codes_without_a_traceback(
    raised: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise raised

    monkeypatch.setattr(cli_main, "app", lambda *_, **__: command())
    assert main(["run"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert "Traceback (most recent call last)" not in printed
    assert main(["run", "--debug"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_b62_output_into_a_pipe_that_closes(recipe_dir: RecipeDir) -> None:
    recipe_dir.recipe()
    command = f"{sys.executable} -m orchestrator.cli run recipe.yaml --dry-run | true; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=recipe_dir.path, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_b63_without_a_home(recipe_dir: RecipeDir) -> None:
    """Check `~` without HOME: the user database expands it, and the `~` of an unknown user stays as it is."""
    recipe_dir.recipe({"data": "{prompts: ~nobody-of-that-name/p.jsonl}", "output_dir": "~nobody-of-that-name/runs"})
    environment = {k: v for k, v in os.environ.items() if k != "HOME"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "validate", "recipe.yaml"],
        cwd=recipe_dir.path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rlhf: ~nobody-of-that-name/p.jsonl: cannot be read\n  why: no such file")
    assert "Traceback" not in done.stderr


def test_b62_an_ascii_only_terminal(recipe_dir: RecipeDir) -> None:
    recipe_dir.recipe({"algorithm": "{type: ppo, prompts_per_step: 5, num_mini_batches: 4, max_steps: 2}"})
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "validate", "recipe.yaml"],
        cwd=recipe_dir.path,
        env={**os.environ, **plain},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"5 completions" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.isascii()


def test_attempts_are_child_processes(recipe_dir: RecipeDir) -> None:
    recipe_dir.recipe({"data": "{prompts: ./nowhere.jsonl}"})
    done = rlhf("run", "--attempts", "3", "recipe.yaml", cwd=recipe_dir.path)
    assert done.returncode == 2
    assert "nowhere.jsonl" in done.stderr
    assert done.stderr.count("attempt 1 of 3 ended (bad_input); another attempt would fail in the same way") == 1
    assert "attempt 2" not in done.stderr


def test_why_explains_the_end_of_a_run(recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_dir.recipe()
    assert main(["why", "runs/arith"]) == 2
    assert "not a run directory" in capsys.readouterr().err
    (config,) = load("recipe.yaml").stages
    directory = RunDirectory.create(config, "")
    directory.write_exit(cause="worker_failed", message="reward rank 0 failed: boom", exit_code=4, attempt=1, step=0)
    assert main(["why", "runs/arith"]) == 0
    assert capsys.readouterr().out == (
        "runs/arith ended in attempt 1, 0 steps done (exit code 4)\n"
        "  worker_failed: reward rank 0 failed: boom\n"
        "nothing to resume: run the recipe again\n"
    )


@pytest.mark.parametrize("name", ["orchestrator.py", "workers.py", "workers/__init__.py", "orchestrator/__init__.py"])
def test_a_user_file_that_would_shadow_our_package_is_named(
    name: str, recipe_dir: RecipeDir, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as the installed command: the current directory is not on its path, but on that of the actors."""
    recipe = recipe_dir.recipe()
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("raise SystemExit('the wrong one')\n")
    command = [sys.executable, "-P", "-m", "orchestrator.cli", "run", recipe]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=recipe_dir.path, env=environment, capture_output=True, text=True, check=False)
    package = name.partition("/")[0].removesuffix(".py")
    assert done.returncode == 2
    assert f"would be imported instead of this program's own package `{package}`" in done.stderr
    assert str(recipe_dir.path / name.partition("/")[0]) in done.stderr
    assert not Path("runs").exists()
    # A job's upload is first on the path of its actors. No server listens at this address.
    assert main(["submit", recipe, "--cluster", "http://127.0.0.1:1"]) == 2
    assert f"own package `{package}`" in capsys.readouterr().err


def test_a_folder_of_that_name_without_a_package_shadows_nothing(recipe_dir: RecipeDir) -> None:
    Path("workers").mkdir()
    Path("workers/notes.txt").write_text("a list of colleagues")
    assert main(["validate", recipe_dir.recipe()]) == 0


def test_a_checkout_of_this_program_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    refuse_shadows(ROOT, problems := Problems())
    assert problems == []
