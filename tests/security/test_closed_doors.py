"""Refusals before any harm is done: open clusters, old libraries, code in model directories, path traversal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.quickstart.tiny import character_tokenizer, create_model
from orchestrator.cluster.ray_start import FLOORS, check_versions, refuse_open
from orchestrator.errors import BadInput, ClusterError, redact
from orchestrator.rundir.directory import RunDirectory
from workers.config import ModelConfig
from workers.engines import hf_files, hf_models, hf_text
from workers.engines.base import ModelError

# ------------------------------------------------------------------------------------------------ S1: open clusters


@pytest.fixture
def dashboard() -> Iterator[Callable[[int], str]]:
    """Yield a function that starts a server answering every request with one status, and returns its address."""
    servers = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


FAR = "10.0.0.1:6379"


def test_s1_a_cluster_that_answers_anyone_is_refused(dashboard: Callable[[int], str]) -> None:
    with pytest.raises(ClusterError, match="the cluster asks for no token") as refused:
        refuse_open(FAR, dashboard(200), has_token=True)
    assert "cluster.allow_open=true" in str(refused.value)
    refuse_open(FAR, dashboard(401), has_token=False)


def test_s1_without_a_dashboard_what_counts_is_whether_tokens_are_used() -> None:
    refuse_open(FAR, None, has_token=True)
    refuse_open(FAR, "127.0.0.2:1", has_token=True)
    for nothing in (None, "", "127.0.0.2:1"):
        with pytest.raises(ClusterError, match="the cluster asks for no token"):
            refuse_open(FAR, nothing, has_token=False)


def test_s1_a_cluster_of_this_machine_alone_may_be_open() -> None:
    refuse_open("127.0.0.1:6379", None, has_token=False)


# ------------------------------------------------------------------------------------------------ version floors


def test_what_is_installed_here_is_above_the_floors() -> None:
    check_versions()


@pytest.mark.parametrize("library", FLOORS)
def test_a_library_with_known_holes_is_refused(library: str) -> None:
    def installed(name: str) -> str:
        floor = FLOORS[name]
        return ".".join(map(str, (*floor[:-1], floor[-1] - (name == library)))) + ".9+cpu"

    with pytest.raises(ClusterError, match=rf"^{library} [\d.]+\+cpu is too old\n.*\n  fix: use {library} >= [\d.]+$"):
        check_versions(installed)


def test_what_is_not_installed_has_no_holes() -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    check_versions(nothing)


def test_an_interpreter_without_assertions_is_refused() -> None:
    script = "from orchestrator.cluster.ray_start import check_versions; check_versions()"
    stderr = subprocess.run([sys.executable, "-O", "-c", script], capture_output=True, text=True).stderr
    assert "python -O is set" in stderr


# ------------------------------------------------------------------------------------------------ S10: models' code

EVIL = "open({flag!r}, 'a').write('ran')\nraise SystemExit('the payload ran')\n"
AUTO_MAP = {
    name: f"evil.{name}"
    for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
}
USES: dict[str, Callable[[str], object]] = {
    "policy": lambda path: hf_models.load_policy(path, "float32", chunk=64),
    "critic": lambda path: hf_models.load_critic(path, "float32"),
    "reference": lambda path: hf_models.load_policy(path, "bfloat16", chunk=64),
    "reward model": lambda path: hf_models.load_scorer(path, "float32"),
    "kind": hf_models.is_scorer,
    "tokenizer": lambda path: hf_text.TextCodec(ModelConfig(path=path)),
    "output layer": lambda path: hf_files.load_output_layer(ModelConfig(path=path)),
}


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two model directories whose config and tokenizer refer to custom code, and return their parent.

    `known` has a model type of transformers. `unknown` could be loaded only by the custom code.
    """
    root = tmp_path_factory.mktemp("evil")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "qwen2", **sizes, "num_key_value_heads": 2}
    create_model(root / "known", config, character_tokenizer("ab"), seed=0)
    for name in ("config.json", "tokenizer_config.json"):
        about = json.loads((root / "known" / name).read_text())
        auto_map = AUTO_MAP if name == "config.json" else {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}
        (root / "known" / name).write_text(json.dumps({**about, "auto_map": auto_map}))
    (root / "known" / "evil.py").write_text(EVIL.format(flag=str(root / "flag")))
    shutil.copytree(root / "known", root / "unknown")
    about = json.loads((root / "unknown" / "config.json").read_text())
    (root / "unknown" / "config.json").write_text(
        json.dumps({**about, "model_type": "evil", "architectures": ["Evil"]})
    )
    about = json.loads((root / "unknown" / "tokenizer_config.json").read_text())
    (root / "unknown" / "tokenizer_config.json").write_text(json.dumps({**about, "tokenizer_class": "EvilTokenizer"}))
    return root


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ["known", "unknown"])
def test_s10_code_in_a_model_directory_never_runs(
    evil: Path, kind: str, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that custom code does not run, even if a user would agree when asked."""
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    try:
        USES[use](str(evil / kind))
    except (ValueError, OSError, KeyError, ModelError):
        assert kind == "unknown"
    assert not (evil / "flag").exists()
    assert "evil" not in sys.modules


def test_s10_the_payload_runs_where_it_is_trusted(evil: Path) -> None:
    """Check that the payload runs when custom code is trusted: one that never runs would prove nothing."""
    load = f"AutoConfig.from_pretrained({str(evil / 'unknown')!r}, trust_remote_code=True)"
    script = f"from transformers import AutoConfig; {load}"
    try:
        stderr = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr
        assert "the payload ran" in stderr
        assert (evil / "flag").exists()
    finally:
        (evil / "flag").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ S12: names


@given(st.text(max_size=80) | st.from_regex(r"\A[./~\\A-Za-z0-9_-]{0,70}\Z"))
def test_s12_no_name_leads_out_of_the_output_directory(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    from pydantic import ValidationError

    from orchestrator.config import RunConfig

    root = tmp_path_factory.mktemp("names")
    given_ = {
        "name": name,
        "output_dir": str(root / "runs"),
        "model": {"path": "m"},
        "data": {"dataset": "d"},
        "algorithm": {"type": "dpo"},
    }
    try:
        config = RunConfig.model_validate(given_)
    except ValidationError:
        return
    created = RunDirectory.create(config, "text")
    assert created.path.resolve().parent == (root / "runs").resolve()
    assert [p.name for p in root.iterdir()] == ["runs"]


def test_s12_a_link_in_the_place_of_a_run_is_refused(tmp_path: Path) -> None:
    from orchestrator.config import RunConfig

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "elsewhere")
    config = RunConfig.model_validate(
        {
            "name": "a",
            "output_dir": str(tmp_path / "runs"),
            "model": {"path": "m"},
            "data": {"dataset": "d"},
            "algorithm": {"type": "dpo"},
        }
    )
    with pytest.raises(BadInput, match="is a symbolic link"):
        RunDirectory.create(config, "text")
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ------------------------------------------------------------------------------------------------ redaction


@pytest.mark.parametrize(
    "variable", ["WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "MY_PASSWORD", "AWS_SECRET_ACCESS_KEY"]
)
def test_s5_the_value_of_a_secret_variable_is_redacted(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "b" * 20 + "7")
    monkeypatch.setenv("RLHF_RUN", "a word that is none")
    assert redact(f"asked with {'b' * 20}7, a word that is none") == "asked with [redacted], a word that is none"


def test_s5_a_short_value_is_not_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "true")
    assert redact("it is true") == "it is true"
