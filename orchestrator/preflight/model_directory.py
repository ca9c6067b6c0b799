"""Check that a model directory is complete: config, weights, tokenizer, chat template, layers for adapters."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.data.sources import local
from orchestrator.errors import Problems
from orchestrator.preflight.model_files import config_of, read_json, tensors
from workers.config import ModelConfig

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
NOT_LINEAR = re.compile(r"embed|lm_head|wte|wpe|^score\b")
LFS_POINTER = b"version https://git-lfs.github.com/spec"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


def may_be_hub_id(path: str, root: Path = Path()) -> bool:
    """Return whether a model path that does not exist below `root` may be the id of a Hub model."""
    folder, parts = root / local(path), local(path).parts
    looks_local = path.startswith((".", "/", "~")) or (len(parts) > 1 and (root / parts[0]).is_dir())
    return not folder.exists() and not looks_local and HUB_ID.fullmatch(path) is not None


def check_directory(path: str, where: str, problems: Problems, *, needs_template: bool) -> None:
    """Check that `path` is a Hugging Face directory with config, weights and tokenizer. Hub ids are not looked up.

    Args:
        needs_template: the data are conversations, so the tokenizer needs a chat template.
    """
    folder = local(path)
    fix = "give a Hugging Face model directory or the id of a Hub model"
    if not folder.is_dir():
        if not may_be_hub_id(path):
            problems.add("no such directory", where=where, why=f"looked for {folder.absolute()}", fix=fix)
        return
    if not (folder / "config.json").is_file():
        problems.add("no config.json in it", where=where, why="it is not a Hugging Face model", fix=fix)
        return
    config = config_of(path)
    if config is not None and "model_type" not in config:
        why = "transformers needs it to select the model class"
        fix = "copy the config.json that belongs to these weights"
        problems.add("its config.json has no model_type", where=where, why=why, fix=fix)
    weights = [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
    pointers = [file.name for file in weights if _starts_with(file, LFS_POINTER)]
    if not weights:
        problems.add("no weights in it", where=where, why="no *.safetensors file", fix="copy the whole model")
    if pointers:
        why = f"{pointers[0]} is a Git LFS pointer, not the file itself"
        problems.add("no weights in it", where=where, why=why, fix=f"run git lfs pull in {path}")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        problems.add("no tokenizer in it", where=where, fix="save the tokenizer beside the model: save_pretrained")
    elif needs_template and not _has_chat_template(folder):
        why = "the data are conversations, and the tokenizer cannot render them as text"
        fix = "put a chat_template.jinja into the model directory, or use prompts that are plain text"
        problems.add("no chat template in it", where=where, why=why, fix=fix)


def check_lora_targets(model: ModelConfig, problems: Problems) -> None:
    """Check that every name in `target_modules` is a linear layer, if the weights of the model are local."""
    if model.lora is None or model.lora.target_modules == "all-linear":
        return
    assert model.path is not None
    # Weights with two dimensions, without embeddings and output layers.
    layers = [
        name.removesuffix(".weight")
        for name, shape in tensors(model.path).items()
        if name.endswith(".weight") and len(shape) == 2 and not NOT_LINEAR.search(name)
    ]
    available = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
    for target in model.lora.target_modules if layers else ():
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            problems.add(
                f"`{target}` is not a linear layer of {model.path}",
                where="model.lora.target_modules",
                why=f"adapters are added to linear layers of the decoder: {available}",
                fix="name some of these, or set model.lora.target_modules to all-linear",
            )


def _starts_with(file: Path, start: bytes) -> bool:
    with open(file, "rb") as opened:
        return opened.read(len(start)) == start


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in CHAT_TEMPLATES):
        return True
    return bool((read_json(folder / "tokenizer_config.json") or {}).get("chat_template"))
