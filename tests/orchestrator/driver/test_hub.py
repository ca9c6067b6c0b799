"""F36: a model hub that does not answer. Each case is a process: the hub's library reads its environment once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from recipe_dir import RecipeDir

from orchestrator.cli.main import main

NAME = "somebody/a-model"
COMMIT = "0" * 40
SCRIPT = """
import os, sys
from orchestrator.config import load
from orchestrator.errors import RlhfError
from orchestrator.driver.hub import require_models
try:
    require_models(load("recipe.yaml").stages[0], print, timeout_s=0.5)
except RlhfError as error:
    print(f"{error.cause}: {error}")
print("offline:", os.environ.get("HF_HUB_OFFLINE"), "ray" in sys.modules)
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """Endpoint that accepts connections and never answers, as with a network that drops packets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refuses() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def empty_hub() -> Iterator[str]:
    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    yield from _serving(NotFound)


@pytest.fixture
def has_a_bert() -> Iterator[str]:
    """Hub with one model, of a family that is refused."""
    files = {
        f"/api/models/{NAME}": {"id": NAME, "sha": COMMIT},
        f"/{NAME}/resolve/main/config.json": {"model_type": "bert", "max_position_embeddings": 512},
    }

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(files.get(self.path, {})).encode()
            self.send_response(200 if self.path in files else 404)
            headers = {"Content-Length": str(len(body)), "ETag": f'"{len(body)}"', "X-Repo-Commit": COMMIT}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    yield from _serving(Hub)


def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def environment(endpoint: str, home: Path) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RAY_"))}
    return {**others, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "no_proxy": "*"}


def output_lines(recipe_dir: RecipeDir, endpoint: str, **variables: str) -> list[str]:
    """Return what SCRIPT prints for a recipe with NAME as its model."""
    recipe_dir.recipe({"model": f"{{path: {NAME}}}"})
    variables = {**environment(endpoint, recipe_dir.path / "home"), **variables}
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.splitlines()


def download(home: Path) -> Path:
    """Create a copy in the cache of the hub's library."""
    folder = home / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a1b")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    return snapshot


@pytest.mark.parametrize("hub", ["silent", "refuses"])
def test_f36_without_a_copy_it_is_an_error_before_anything_is_started(
    recipe_dir: RecipeDir, hub: str, request: pytest.FixtureRequest
) -> None:
    lines = output_lines(recipe_dir, request.getfixturevalue(hub))
    what = f"the model hub does not answer, and there is no copy of {NAME} on this machine"
    assert lines[0] == f"hub_unreachable: model.path: {what}"
    assert lines[1].startswith("  why: ")
    assert f"hf download {NAME}" in lines[2]
    assert lines[3] == "offline: None False"


def test_f36_a_cached_copy_suffices(recipe_dir: RecipeDir, refuses: str) -> None:
    snapshot = download(recipe_dir.path / "home")
    assert output_lines(recipe_dir, refuses) == [
        f"the model hub does not answer: {NAME} is loaded from the cache ({snapshot})",
        "offline: 1 False",
    ]
    (snapshot / "model.safetensors").unlink()
    assert output_lines(recipe_dir, refuses)[0].startswith("hub_unreachable: "), "an incomplete copy does not count"


def test_f36_workers_of_another_machine_have_a_cache_of_their_own(recipe_dir: RecipeDir, refuses: str) -> None:
    lines = output_lines(recipe_dir, refuses, RAY_ADDRESS="head:6379")
    assert "workers use their own" in lines[0]
    assert lines[1] == "offline: 1 False"


def test_a_model_that_the_hub_does_not_have(recipe_dir: RecipeDir, empty_hub: str) -> None:
    lines = output_lines(recipe_dir, empty_hub)
    assert lines[0] == f"bad_input: model.path: the hub has no accessible model {NAME}"
    assert lines[-1] == "offline: None False"


def test_a_model_of_the_hub_is_checked_before_anything_is_started(recipe_dir: RecipeDir, has_a_bert: str) -> None:
    lines = output_lines(recipe_dir, has_a_bert)
    assert lines[0] == f"bad_input: model.path = {NAME}: models of type bert are not supported"
    assert lines[-1] == "offline: None False"


def test_a_cached_model_is_checked_if_the_hub_does_not_answer(recipe_dir: RecipeDir, refuses: str) -> None:
    snapshot = download(recipe_dir.path / "home")
    (snapshot / "config.json").write_text('{"model_type": "bert"}')
    lines = output_lines(recipe_dir, refuses)
    assert any(f"model.path = {NAME}: models of type bert are not supported" in line for line in lines)


def test_no_request_to_the_hub_for_a_directory(recipe_dir: RecipeDir, refuses: str) -> None:
    recipe_dir.recipe()
    assert main(["validate", "recipe.yaml"]) == 0
    command = [sys.executable, "-c", SCRIPT]
    variables = environment(refuses, recipe_dir.path / "home")
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "offline: None False\n"
