"""Fixtures: a directory with a valid recipe, and the comparison with golden texts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_dir import RecipeDir

GOLDEN = Path(__file__).parent.parent / "golden" / "errors"


@pytest.fixture
def recipe_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecipeDir:
    for variable in [v for v in os.environ if v.startswith(("WANDB_", "RAY_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return RecipeDir(tmp_path)


@pytest.fixture
def golden(tmp_path: Path) -> Callable[[str, str], None]:
    """Compare with the golden text of a name. `RLHF_WRITE_GOLDEN=1` writes it instead, for review in the diff."""

    def compare(name: str, text: str) -> None:
        text = text.replace(str(tmp_path), "/here")
        path = GOLDEN / f"{name}.txt"
        if os.environ.get("RLHF_WRITE_GOLDEN"):
            path.write_text(text)
        assert text == path.read_text()

    return compare
