"""The real Ray, vLLM and DeepSpeed on tiny models.

One Ray head serves every run that is driven from this process: a run connects, brings its own actors and takes them
along. A family of models is a directory with the same files in it, so that the recipes differ in nothing.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TASK = HERE.parents[1] / "configs" / "quickstart" / "task.py"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + (eos_token if m['role'] == 'assistant' else '') }}"
    "{% endfor %}{{ '<|assistant|>' if add_generation_prompt else '' }}"
)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray head that outlives the runs, as a cluster does."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray.cluster_utils import Cluster

    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray reads RAY_AUTH_MODE when it is imported, which another test may have done: this is what `ray start` calls.
        maybe_enable_token_auth_if_token_available()
        node = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 64, "include_dashboard": False, "object_store_memory": 256 * 2**20},
        )
        environment.setenv("RAY_ADDRESS", node.address)
        yield
        node.shutdown()


# ------------------------------------------------------------------------------------------------ two families


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 model with tied embeddings and a token per character; data in plain text."""
    from workers.engines import hf_models
    from workers.rewards.function import load

    directory = tmp_path_factory.mktemp("qwen2")
    load(f"{TASK}:write_data")(directory, seed=0)
    demonstrations = read_jsonl(directory / "demonstrations.jsonl")
    write_jsonl(directory / "pairs.jsonl", [_pair(row) for row in demonstrations[:256]])
    config = {"model_type": "qwen2", "tie_word_embeddings": True, **SHAPE}
    hf_models.create_model(directory / "model", config, hf_models.character_tokenizer("abcdefghijkl>"), seed=0)
    shutil.copy(HERE / "scorers.py", directory)
    return directory


@pytest.fixture(scope="session")
def llama(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama model with a head of its own, a BPE tokenizer and a chat template; the same data as conversations."""
    from workers.engines import hf_models

    directory = tmp_path_factory.mktemp("llama")
    for name in ("demonstrations", "prompts", "heldout", "pairs"):
        write_jsonl(directory / f"{name}.jsonl", [_as_conversation(r) for r in read_jsonl(qwen2 / f"{name}.jsonl")])
    corpus = [row["prompt"] + row["completion"] for row in read_jsonl(qwen2 / "demonstrations.jsonl")]
    config = {"model_type": "llama", "tie_word_embeddings": False, **SHAPE}
    hf_models.create_model(directory / "model", config, hf_models.bpe_tokenizer(corpus, 320, CHAT_TEMPLATE), seed=0)
    shutil.copy(HERE / "scorers.py", directory)
    return directory


def _pair(demonstration: dict[str, str]) -> dict[str, str]:
    prompt = demonstration["prompt"]
    right = "".join(sorted(prompt.removesuffix(">")))
    return {"prompt": prompt, "chosen": right, "rejected": right[::-1]}


def _as_conversation(row: dict[str, str]) -> dict[str, Any]:
    """As TRL has it: the prompt and each answer are lists of messages, further columns stay as they are."""
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return {k: [{"role": roles[k], "content": v}] if k in roles else v for k, v in row.items()}


# ------------------------------------------------------------------------------------------------ runs


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    path: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "metrics.jsonl")

    @property
    def ledger(self) -> list[tuple[str, int]]:
        return [(record["fact"], record["step"]) for record in read_jsonl(self.path / "ledger.jsonl")]

    @property
    def exit(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "exit.json").read_text())
        return found

    def figures(self, name: str) -> list[float]:
        return [row[name] for row in self.metrics if name in row]


Driver = Callable[..., Run]


@pytest.fixture
def drive(head: None, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Runs a recipe of this folder in the directory of a family; returns its last stage."""
    from orchestrator.config import load
    from orchestrator.config.preflight import preflight
    from orchestrator.run.driver import run_recipe

    def drive(recipe: str, family: Path, *overrides: str) -> Run:
        monkeypatch.chdir(family)
        loaded = load(HERE / "recipes" / f"{recipe}.yaml", overrides)
        preflight(loaded)
        run_recipe(loaded)
        return Run(family / loaded.stages[-1].directory)

    return drive
