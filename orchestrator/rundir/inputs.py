"""What a run reads beside its recipe: data, reward code, models; and a digest of each, by which a change is seen.

    recipe ──► files that it names ──► {"data.prompts": digest, …} ──► inputs.json of the run, id of a job

Contents count, never times: a copy of a file is the same file. Names of the hub have no digest here.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.config.run import RunConfig
from orchestrator.data.sources import is_hub_name, local
from orchestrator.preflight.data_files import KEYS
from workers.config import FunctionRewardConfig, ModelRewardConfig

WHOLE_BYTES = 64 * 2**20  # of a model's larger files, parts are read: the weights of a 70B model are 140 GB
END_BYTES = 2**20
PARTS, PART_BYTES = 64, 2**16
WEIGHTS = (".safetensors", ".bin")
MODEL_FILES = (*WEIGHTS, ".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
MAY_BE_MENDED = ("reward.", "evaluation.", "data.eval_")
"""Begins the keys of what an unfinished run may find changed: what scores and what is held out. It is told."""


def named(config: RunConfig) -> dict[str, str]:
    """What the config names on this machine, by key. Example: `{"data.prompts": "./prompts.jsonl", …}`."""
    found = {f"data.{name}": source for name in KEYS if (source := getattr(config.data, name)) is not None}
    models = {"model.path": config.model, "critic_model.path": config.critic_model}
    models |= {"teacher.model.path": config.teacher.model if config.teacher else None}
    found |= {key: model.path for key, model in models.items() if model is not None and model.path is not None}
    for i, reward in enumerate(config.reward):
        if isinstance(reward, FunctionRewardConfig):
            found[f"reward.{i}.function"] = reward.function
        elif isinstance(reward, ModelRewardConfig) and reward.path is not None:
            found[f"reward.{i}.path"] = reward.path
    if isinstance(config.evaluation.refusal, FunctionRewardConfig):
        found["evaluation.refusal.function"] = config.evaluation.refusal.function
    return found


def inputs_of(config: RunConfig, root: Path = Path()) -> dict[str, str]:
    """A digest of everything that `named` says and that is there; relative paths begin at `root`."""
    found = {}
    for key, source in named(config).items():
        if key.endswith(".function"):
            digest = _of_function(source, root)
        elif key.startswith("data."):
            digest = None if is_hub_name(source) else _of_data(root / local(source))
        else:
            digest = _of_model(root / local(source))
        if digest is not None:
            found[key] = digest
    return found


def changes(then: Mapping[str, str], now: Mapping[str, str], config: RunConfig) -> dict[str, str]:
    """Key and words of each input that is not what it was. Example: `{"data.prompts": "data.prompts
    (./prompts.jsonl) has changed"}`."""
    sources, told = named(config), {}
    for key in sorted(({*then} | {*now}) & {*sources}):
        if then.get(key) != now.get(key):
            what = "is gone" if key not in now else "was not there" if key not in then else "has changed"
            told[key] = f"{key} ({sources[key]}) {what}"
    return told


# ------------------------------------------------------------------------------------------------ digests


def _of_data(path: Path) -> str | None:
    """A file, or a `datasets` folder with all that is in it."""
    if path.is_file():
        return _cut(_of_file(path))
    if not path.is_dir():
        return None
    return _of_files(path, [p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".", "cache-"))])


def _of_model(path: Path) -> str | None:
    """A Hugging Face directory: config, tokenizer, template, weights; what else lies there does not count."""
    if not path.is_dir():
        return None
    return _of_files(path, [p for p in path.iterdir() if p.suffix in MODEL_FILES and p.is_file()])


def _of_files(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root)}\0".encode() + _of_file(path, whole=path.suffix not in WEIGHTS))
    return _cut(digest.digest())


def _of_file(path: Path, *, whole: bool = True) -> bytes:
    """Of a large file of weights: its size, both ends, and parts spread over all of it. Training moves every weight."""
    with open(path, "rb") as opened:
        size = path.stat().st_size
        if whole or size <= WHOLE_BYTES:
            return hashlib.file_digest(opened, "sha256").digest()
        digest = hashlib.sha256(str(size).encode() + opened.read(END_BYTES))
        for i in range(1, PARTS + 1):
            opened.seek(i * (size - PART_BYTES) // PARTS)
            digest.update(opened.read(PART_BYTES))
        opened.seek(size - END_BYTES)
        digest.update(opened.read())
        return digest.digest()


def _of_function(function: str, root: Path) -> str | None:
    """The file of a reward function, and the files beside it or below `root` that it imports, and theirs."""
    place = function.rpartition(":")[0]
    file = root / local(place) if place.endswith(".py") else _module_file(place, [root])
    if file is None or not file.is_file():
        return None
    folders = [file.parent, root]
    waiting, seen = [file], {file.resolve(): hashlib.sha256(file.read_bytes()).hexdigest()}
    while waiting:
        for imported in _imported(waiting.pop(), folders):
            if imported.resolve() not in seen:
                seen[imported.resolve()] = hashlib.sha256(imported.read_bytes()).hexdigest()
                waiting.append(imported)
    return _cut(hashlib.sha256("".join(sorted(seen.values())).encode()).digest())


def _imported(file: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """Files of the user's own that a file of Python imports; what is installed has a version instead."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else None
            module = node.module or ""
            names = [module, *(f"{module}.{name}".strip(".") for name in names)]
            searched: Sequence[Path] = folders if base is None else [base]
        else:
            searched = folders
        for name in filter(None, names):
            if found := _local_file(name, searched):
                yield found


def _local_file(module: str, folders: Sequence[Path]) -> Path | None:
    parts = module.split(".")
    candidates = [
        p for f in folders for p in (f.joinpath(*parts).with_suffix(".py"), f.joinpath(*parts, "__init__.py"))
    ]
    return next((path for path in candidates if path.is_file()), None)


def _module_file(module: str, folders: Sequence[Path]) -> Path | None:
    """Where a module's source is. None of it is imported: only its package is looked for."""
    if found := _local_file(module, folders):
        return found
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    return _local_file(".".join(rest), [Path(place) for place in spec.submodule_search_locations or ()])


def _cut(digest: bytes) -> str:
    return digest.hex()[:32]
