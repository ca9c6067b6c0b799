"""T17 and T19 on a real run: its secrets do not leak, and its ports are open to this machine alone."""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from attempts import RECIPES, Run
from processes import Command

from orchestrator.cli.main import main
from orchestrator.cluster.preload import fork_command

pytestmark = pytest.mark.stack

SCORER = """
import os
calls = []
def reward(completions, **_):
    calls.append(1)
    if len(calls) == 3:
        raise RuntimeError("asked with " + os.environ["WANDB_API_KEY"] + " and " + os.environ["HF_TOKEN"])
    return [float(len(set(c))) for c in completions]
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedRun:
    """Run that failed in its third step, with secrets in its environment and in a token file."""

    run: Run
    secrets: dict[str, str]
    output: str
    command_lines: list[str]
    session: Path  # Ray's session directory
    listening: set[tuple[str, int]] = field(default_factory=set)
    answers: dict[int, tuple[int, str]] = field(default_factory=dict)  # to an anonymous GET, by port


@pytest.fixture(scope="module")
def observed(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> ObservedRun:
    directory = tmp_path_factory.mktemp("secrets")
    (directory / "scorer.py").write_text(SCORER)
    canaries = {"WANDB_API_KEY": secrets.token_hex(20), "HF_TOKEN": f"hf_{secrets.token_hex(16)}"}
    token = directory / "token"
    token.touch(0o600)
    token.write_text(canary := secrets.token_hex(32))
    reward = f'reward=[{{type: function, function: "{directory}/scorer.py:reward"}}]'
    overrides = ("name=secretive", reward, "report_to=[wandb]", "wandb={mode: offline}")
    variables = {**canaries, "RAY_AUTH_TOKEN_PATH": str(token)}
    with Command("run", str(RECIPES / "grpo.yaml"), *overrides, cwd=qwen2, variables=variables) as command:
        command.read_until("step 1/3")
        os.kill(command.pid, signal.SIGSTOP)  # else the run may end before it is inspected
        command_lines = [" ".join(p.cmdline()) for p in family(command)]
        listening, answers = open_ports(command)
        os.kill(command.pid, signal.SIGCONT)
        assert command.exit_code() == 4
        assert command.leaves_nothing_behind()
    session = next(a.split("=", 1)[1] for line in command_lines for a in line.split() if a.startswith("--session_dir="))
    return ObservedRun(
        run=Run(qwen2 / "runs" / "secretive"),
        secrets={**canaries, "the token of Ray": canary},
        output=command.output,
        command_lines=command_lines,
        session=Path(session),
        listening=listening,
        answers=answers,
    )


def family(command: Command) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in command.left_behind()]


def open_ports(command: Command) -> tuple[set[tuple[str, int]], dict[int, tuple[int, str]]]:
    """Return the addresses on which a command listens, and the answers to an anonymous GET, by port.

    Ray's agent opens its port late, on a busy machine after the first steps, so it is polled for up to a minute.
    """
    for _ in range(12):
        connections = [c for p in family(command) for c in p.net_connections()]
        listening = {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
        with ThreadPoolExecutor(len(listening)) as threads:  # a port without HTTP may run into the timeout
            by_address = zip(listening, threads.map(lambda address: anonymous_get(address[1]), listening), strict=True)
            answers = {port: answer for (_, port), answer in by_address if answer is not None}
        if any(status >= 400 for status, _ in answers.values()):
            break
        time.sleep(5)
    return listening, answers


def anonymous_get(port: int) -> tuple[int, str] | None:
    """Return the status and the first characters of the answer, or None if the port does not speak HTTP.

    Proxies are bypassed.
    """
    with requests.Session() as session:
        session.trust_env = False
        try:
            answer = session.get(f"http://127.0.0.1:{port}/", timeout=5)
            return answer.status_code, answer.text[:7]
        except requests.RequestException:
            return None


def secrets_found(observed: ObservedRun, *files: Path) -> list[str]:
    """Return which secret is in which file, as UTF-8 or UTF-16."""
    return [
        f"{name} in {path}"
        for path in files
        for name, value in observed.secrets.items()
        if value.encode() in (data := path.read_bytes()) or value.encode("utf-16-le") in data
    ]


def files_in(directory: Path, pattern: str = "**/*") -> list[Path]:
    found = [p for p in directory.glob(pattern) if p.is_file() and not p.is_symlink()]
    assert found, f"{directory}/{pattern} holds no file, so nothing would be searched"
    return found


@pytest.mark.parametrize(
    "place",
    [
        "recipe.yaml",
        "resolved.json",
        "ledger.jsonl",
        "metrics.jsonl",
        "exit.json",
        "logs/*/*",
        "checkpoints/**/*",
        "samples/*",
        "wandb/**/*",
    ],
)
def test_t17_no_secret_in_the_run_directory(observed: ObservedRun, place: str) -> None:
    assert secrets_found(observed, *files_in(observed.run.path, place)) == []


def test_t17_no_secret_in_the_whole_run_directory(observed: ObservedRun) -> None:
    assert secrets_found(observed, *files_in(observed.run.path)) == []


def test_t17_the_failure_is_reported_without_secrets(observed: ObservedRun) -> None:
    assert "raised RuntimeError: asked with [redacted] and [redacted]" in observed.run.exit["message"]
    assert "raised RuntimeError: asked with [redacted] and [redacted]" in observed.output
    assert not [name for name, value in observed.secrets.items() if value in observed.output]


def test_t17_no_secret_in_a_command_line(observed: ObservedRun) -> None:
    assert len(observed.command_lines) > 6
    assert not [name for name, value in observed.secrets.items() for line in observed.command_lines if value in line]


def test_t17_no_secret_in_rays_logs_and_runtime_environments(observed: ObservedRun) -> None:
    logs = files_in(observed.session, "logs/**/*")
    assert any("runtime_env" in path.name for path in logs)
    assert secrets_found(observed, *files_in(observed.session)) == []


def test_t19_every_port_is_bound_to_this_machine(observed: ObservedRun) -> None:
    assert len(observed.listening) >= 5
    assert {ip for ip, _ in observed.listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_t19_no_port_answers_without_a_token(observed: ObservedRun) -> None:
    """Check that no port answers except Ray's Prometheus exporters, which take no commands and cannot be disabled."""
    print("ports", len(observed.listening), "speaking HTTP", observed.answers)
    answered = [text for status, text in observed.answers.values() if status < 400]
    assert set(answered) <= {"# HELP "}
    assert len(answered) < len(observed.answers), "the agent of Ray refuses"


def test_t19_only_its_owner_may_read_a_token_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cluster.ray_start import _new_token

    old = os.umask(0)
    try:
        token = Path(_new_token())
    finally:
        os.umask(old)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert len(token.read_text()) == 64


class Payload:
    """Object that creates a file when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.flag,)


def test_s9_a_pickle_in_the_place_of_any_file_of_a_checkpoint_is_never_loaded(
    observed: ObservedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(observed.run.path.parents[1])  # paths in the recipe are relative to this directory
    flag = tmp_path / "flag"
    payload = pickle.dumps(Payload(flag))
    pickle.loads(payload)
    assert flag.exists(), "a payload that would not run proves nothing"
    flag.unlink()
    run = tmp_path / "secretive"
    shutil.copytree(observed.run.path, run, symlinks=True)
    *older, newest = sorted((run / "checkpoints").iterdir())
    for checkpoint in older:
        shutil.rmtree(checkpoint)
    slots = files_in(newest)
    assert any(path.name.endswith("model_states.pt") for path in slots)
    for slot in slots:
        kept = slot.read_bytes()
        slot.write_bytes(payload)
        assert main(["resume", str(run)]) == 2
        assert "there is no checkpoint to resume from" in capsys.readouterr().err
        assert not flag.exists()
        slot.write_bytes(kept)
    print(f"{len(slots)} files of a checkpoint, none of them loaded")


INSECURE = ("VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE")
START_AN_ENGINE = f"""
import os
from workers.config import RolloutConfig
from workers.engines.vllm_engine import VllmEngine

for variable in {INSECURE}:
    os.environ[variable] = "1"
    try:
        VllmEngine("/nowhere", "float32", 64, RolloutConfig(), seed=0, cuda=False)
    except Exception as error:
        print(type(error).__name__, error)
    del os.environ[variable]
"""


def test_s6_an_engine_does_not_start_with_insecure_vllm_variables(head: None, tmp_path: Path) -> None:
    command = fork_command("vllm")
    assert command is not None
    (tmp_path / "start.py").write_text(START_AN_ENGINE)
    done = subprocess.run([*command.split(), str(tmp_path / "start.py")], stdout=subprocess.PIPE, text=True)
    assert [line.partition(" is set")[0] for line in done.stdout.splitlines()] == [f"EngineError {n}" for n in INSECURE]
