"""Write the jobs of overlays/8b and overlays/70b: what `rlhf render kuberay` prints for configs/{8b,70b}/dpo.yaml."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from orchestrator.launch.needs import node_of, with_needs
from orchestrator.launch.render_kuberay import render, to_yaml
from orchestrator.launch.request import Asked, make_request, read_content
from orchestrator.launch.targets import KubeRayTarget

ROOT = Path(__file__).parents[2]
OVERLAYS = {"8b": "configs/8b/dpo.yaml", "70b": "configs/70b/dpo.yaml"}
TARGET = KubeRayTarget(
    engine="kuberay",
    image="registry.example/rlhf@sha256:" + "0" * 64,
    namespace="rlhf",
    volume_claim="rlhf-runs",
    queue="rlhf",
)


def job(recipe: str) -> str:
    """Return the manifests of a recipe. The working directory must be the repository."""
    asked = Asked(file=Path(recipe), attempts=5)
    content = read_content(asked, TARGET)
    with tempfile.TemporaryDirectory() as into:
        request = make_request(asked, content, TARGET, Path(into))
        request, _ = with_needs(request, content, node_of(TARGET))
        return to_yaml(render(request, TARGET))


def place(overlay: str) -> Path:
    return ROOT / "deploy" / "kuberay" / "overlays" / overlay / "job.yaml"


if __name__ == "__main__":
    os.chdir(ROOT)
    for overlay, recipe in OVERLAYS.items():
        place(overlay).write_text(f"# Written by make kuberay from {recipe}.\n{job(recipe)}")
