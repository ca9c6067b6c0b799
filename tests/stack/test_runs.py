from __future__ import annotations
from pathlib import Path
import pytest
from tests.stack.conftest import Driver

pytestmark = pytest.mark.stack

@pytest.mark.parametrize("name", ["base", "rounds", "drifting", "grpo", "ppo", "offline"])
def test_x(drive: Driver, qwen2: Path, name) -> None:
    run = drive(name, qwen2)
    print(run.path, run.ledger)
    for m in run.metrics: print(m)
    assert run.exit["cause"] == "completed"
@pytest.mark.parametrize("name", ["base", "grpo", "offline"])
def test_y(drive: Driver, llama: Path, name) -> None:
    run = drive(name, llama)
    print(run.path, run.ledger)
    for m in run.metrics: print(m)
    assert run.exit["cause"] == "completed"
