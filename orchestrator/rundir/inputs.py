"""Inputs of a run beside its recipe (data, reward code, models, principles), each with a digest that reveals changes.

    recipe ──► files that it names ──► {"data.prompts": digest, …} ──► inputs.json of the run, id of a job

Only contents count, not times: a copy of a file has the same digest. Names on the model hub have none.
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
from orchestrator.rundir.manifest import MANIFEST
from workers.config import (
    FunctionRewardConfig,
    GenerateConfig,
    ModelScorerConfig,
    RefusalRewardConfig,
    RewardConfig,
)

WHOLE_BYTES = 64 * 2**20  # larger files of weights are read in parts: the weights of a 70B model are 140 GB
END_BYTES = 2**20
PARTS, PART_BYTES = 64, 2**16
WEIGHTS = (".safetensors", ".bin")
SMALL_FILES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
MODEL_FILES = (*WEIGHTS, *SMALL_FILES)
CONSTITUTION = "algorithm.constitution"
MAY_CHANGE = ("reward.", "evaluation.", "data.eval_")
"""Prefixes of the keys whose inputs may change before a run resumes: rewards and evaluation data. It is reported."""


def named(config: RunConfig) -> dict[str, str]:
    """Return the data, models, functions and principles that the config names, by key.

    Example: `{"data.prompts": "./prompts.jsonl", …}`.
    """
    sources: dict[str, str] = {}
    for name in KEYS:
        is_list = isinstance(getattr(config.data, name), tuple)
        for i, path in enumerate(config.data.paths(name)):
            sources[f"data.{name}.{i}" if is_list else f"data.{name}"] = path
    models = {"model.path": config.model, "critic_model.path": config.critic_model}
    models |= {"teacher.model.path": config.teacher.model if config.teacher else None}
    sources |= {"reference.path": config.reference.path} if config.reference.path is not None else {}
    sources |= {key: model.path for key, model in models.items() if model is not None and model.path is not None}
    if isinstance(config.algorithm, GenerateConfig) and config.algorithm.constitution is not None:
        sources[CONSTITUTION] = config.algorithm.constitution
    scorers = {f"reward.{i}": reward for i, reward in enumerate(config.reward)}
    return sources | named_by_scorers({**scorers, "evaluation.refusal": config.evaluation.refusal})


def named_by_scorers(scorers: Mapping[str, RewardConfig]) -> dict[str, str]:
    """Return the functions, models and classifiers that scorers name, by key."""
    sources = {}
    for key, scorer in scorers.items():
        if isinstance(scorer, FunctionRewardConfig):
            sources[f"{key}.function"] = scorer.function
        elif isinstance(scorer, ModelScorerConfig) and scorer.path is not None:
            sources[f"{key}.path"] = scorer.path
        elif isinstance(scorer, RefusalRewardConfig) and scorer.classifier_file is not None:
            sources[f"{key}.classifier"] = scorer.classifier_file
    return sources


def inputs_of(config: RunConfig, root: Path = Path()) -> dict[str, str]:
    """Return a digest of each input in `named` that exists on this machine. Relative paths start at `root`."""
    digests = {}
    for key, source in named(config).items():
        if key.endswith(".function"):
            digest = _digest_function(source, root)
        elif key == CONSTITUTION or key.endswith(".classifier"):
            digest = digest_data(root / local(source))
        elif key.startswith("data."):
            digest = None if is_hub_name(source, root) else digest_data(root / local(source))
        else:
            digest = _digest_model(root / local(source), is_stored=_is_stored(config, root, source))
        if digest is not None:
            digests[key] = digest
    return digests


def changes(then: Mapping[str, str], now: Mapping[str, str], config: RunConfig) -> dict[str, str]:
    """Return a message for each input that differs between two results of `inputs_of`, by key.

    Example: `{"data.prompts": "data.prompts (./prompts.jsonl) has changed"}`.
    """
    sources, messages = named(config), {}
    for key in sorted(({*then} | {*now}) & {*sources}):
        if then.get(key) != now.get(key):
            what = "is missing" if key not in now else "is new" if key not in then else "has changed"
            messages[key] = f"{key} ({sources[key]}) {what}"
    return messages


# ------------------------------------------------------------------------------------------------ digests


def digest_data(path: Path) -> str | None:
    """Return the digest of a data file, or of all files in a `datasets` folder; None if there is neither."""
    if path.is_file():
        return _cut(_digest_file(path))
    if not path.is_dir():
        return None
    return _digest_files(path, [p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".", "cache-"))])


def _is_stored(config: RunConfig, root: Path, source: str) -> bool:
    """Return whether a model is one of another run in the same storage."""
    output_dir = (root / local(config.output_dir)).absolute()
    return config.storage is not None and (root / local(source)).absolute().is_relative_to(output_dir)


def digest_tokenizer(path: Path) -> str | None:
    """Return the digest of a Hugging Face directory without its weights; None if there is no such directory."""
    if not path.is_dir():
        return None
    return _digest_files(path, [p for p in path.iterdir() if p.suffix in SMALL_FILES and p.is_file()])


def _digest_model(path: Path, *, is_stored: bool) -> str | None:
    """Return the digest of a Hugging Face directory: config, tokenizer, template and weights, no other files.

    Args:
        is_stored: the weights may be on other machines alone; the manifest, which lists their digests, stands for them.
    """
    if not path.is_dir():
        return None
    left_out = WEIGHTS if is_stored and (path / MANIFEST).is_file() else ()
    files = [p for p in path.iterdir() if p.suffix in MODEL_FILES and p.suffix not in left_out and p.is_file()]
    return _digest_files(path, files)


def _digest_files(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root)}\0".encode() + _digest_file(path, whole=path.suffix not in WEIGHTS))
    return _cut(digest.digest())


def _digest_file(path: Path, *, whole: bool = True) -> bytes:
    """Return the SHA-256 of a file.

    Unless `whole`, a large file is represented by its size, both ends, and parts spread over its length. This is
    enough to detect training, which moves every weight.
    """
    size = path.stat().st_size
    with open(path, "rb") as opened:
        if whole or size <= WHOLE_BYTES:
            return hashlib.file_digest(opened, "sha256").digest()
        digest = hashlib.sha256(str(size).encode() + opened.read(END_BYTES))
        for i in range(1, PARTS + 1):
            opened.seek(i * (size - PART_BYTES) // PARTS)
            digest.update(opened.read(PART_BYTES))
        opened.seek(size - END_BYTES)
        digest.update(opened.read())
        return digest.digest()


def _digest_function(function: str, root: Path) -> str | None:
    """Return the digest of a reward function's file and of all files it imports from its folder or from `root`."""
    digests = {file.resolve(): hashlib.sha256(file.read_bytes()).hexdigest() for file in code_of(function, root)}
    return _cut(hashlib.sha256("".join(sorted(digests.values())).encode()).digest()) if digests else None


def code_of(function: str, root: Path = Path()) -> list[Path]:
    """Return the file of a reward function, all files it imports from its folder or from `root`, and their packages'.

    Code that is loaded without an import statement is not found. There are no files of a function that is not on this
    machine.
    """
    location = function.rpartition(":")[0]
    file = root / local(location) if location.endswith(".py") else _module_file(location, [root])
    if file is None or not file.is_file():
        return []
    found, seen = [file], {file.resolve()}
    for known in found:  # grows while files are found
        for needed in (*_package_files(known, root), *_imported(known, [file.parent, root])):
            if needed.resolve() not in seen:
                seen.add(needed.resolve())
                found.append(needed)
    return found


def _package_files(file: Path, root: Path) -> Iterator[Path]:
    """Yield the `__init__.py` of each package between a file and `root`."""
    for folder in file.parents:
        init = folder / "__init__.py"
        if folder == root or not init.is_file():
            return
        yield init


def _imported(file: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the user's own files that a Python file imports. Installed packages are skipped: they have versions."""
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
            if imported := _local_file(name, searched):
                yield imported


def _local_file(module: str, folders: Sequence[Path]) -> Path | None:
    parts = module.split(".")
    candidates = [
        p for f in folders for p in (f.joinpath(*parts).with_suffix(".py"), f.joinpath(*parts, "__init__.py"))
    ]
    return next((path for path in candidates if path.is_file()), None)


def _module_file(module: str, folders: Sequence[Path]) -> Path | None:
    """Return the source file of a module without importing the module; only its package is located."""
    if file := _local_file(module, folders):
        return file
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    return _local_file(".".join(rest), [Path(folder) for folder in spec.submodule_search_locations or ()])


def _cut(digest: bytes) -> str:
    return digest.hex()[:32]
