"""Tools of the tests of rendering: a working directory with the files of every recipe, requests, schemas, policies."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.launch.base import JobRequest
from orchestrator.launch.needs import node_of, with_needs
from orchestrator.launch.request import Asked, kind_of, make_request, read_content
from orchestrator.launch.targets import KubeRayTarget

ROOT = Path(__file__).parents[3]
IMAGE = "registry.example/rlhf@sha256:" + "0" * 64


def crds() -> Path | None:
    """Return the directory with KubeRay's CRDs as JSON, which are not ours to ship; None if there is none."""
    named = os.environ.get("RLHF_CRDS")
    folder = Path(named) if named else ROOT.parent / "shared" / "kubernetes"
    return folder if any(folder.glob("*rayjobs*.json")) else None


def load(path: Path) -> ModuleType:
    """Return a Python file that is in no package as a module."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = load(ROOT / "deploy" / "kuberay" / "check.py")


def working_directory(folder: Path) -> Path:
    """Copy the recipes to a directory, with a small stand-in for each file that `make quickstart` writes."""
    shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for recipe in [*(folder / "configs" / "quickstart").rglob("*.yaml"), *(folder / "configs" / "eval").glob("*.yaml")]:
        for name in re.findall(r"data/\w+/[\w.-]+", recipe.read_text("utf-8")):
            place = folder / name
            if place.suffix == ".jsonl":
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text('{"prompt": "sort: 3 1 2"}\n')
            else:
                place.mkdir(parents=True, exist_ok=True)
                (place / "config.json").write_text("{}")
    (folder / "benchmarks" / "results").mkdir(parents=True)
    (folder / "benchmarks" / "results" / "frontier.json").write_text("{}")
    return folder


def target(**settings: Any) -> KubeRayTarget:
    return KubeRayTarget(
        **{"engine": "kuberay", "image": IMAGE, "namespace": "rlhf", "volume_claim": "rlhf-runs", **settings}
    )


def request_of(
    recipe: str, where: Path, into: Path, on: KubeRayTarget, *, overrides: Sequence[str] = (), attempts: int = 5
) -> JobRequest:
    """Return the request for a recipe, or a suite with some model. The working directory must be `where`."""
    evaluated: dict[str, Any] = {"model": "/runs/a/model"} if kind_of(Path(recipe)) == "suite" else {}
    asked = Asked(
        file=Path(recipe),
        overrides=tuple(overrides),
        working_dir=where,
        attempts=1 if evaluated else attempts,
        **evaluated,
    )
    content = read_content(asked, on)
    request, _ = with_needs(make_request(asked, content, on, into), content, node_of(on))
    return request
