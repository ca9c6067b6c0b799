"""Fixtures: a directory with preferences, and the commands of `rlhf label` in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from annotators import PAIRS, Label

from orchestrator.cli.main import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return tmp_path


@pytest.fixture
def label(here: Path, capsys: pytest.CaptureFixture[str]) -> Label:
    """Run `rlhf label ARGUMENTS`, and return the lines that it prints: to standard error if it is refused."""

    def run(*arguments: Any, code: int = 0) -> list[str]:
        assert main(["label", *map(str, arguments)]) == code
        printed = capsys.readouterr()
        return (printed.err if code else printed.out).splitlines()

    return run
