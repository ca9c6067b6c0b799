"""What a run is told before its first model is loaded, by the GPUs that its cluster really has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cluster.local import LocalCluster
from orchestrator.config import load
from orchestrator.driver.capacity import check_capacity
from orchestrator.errors import BadInput

CONFIGS = Path(__file__).parents[3] / "configs"


class NumbersOnly(LocalCluster):
    """A cluster that says which GPUs it has."""

    def __init__(self, *accelerators: str) -> None:
        super().__init__()
        self.cuda = bool(accelerators)
        self._accelerators = list(accelerators)

    def accelerators(self) -> list[str]:
        return self._accelerators


def test_what_it_ran_on_is_written_down(tmp_path: Path) -> None:
    check_capacity(load(CONFIGS / "8b/dpo.yaml").stages[-1], NumbersOnly("H100"), tmp_path)
    assert json.loads((tmp_path / "devices.json").read_text()) == {"cuda": True, "accelerators": ["H100"]}


@pytest.mark.parametrize(
    ("accelerators", "refused"),
    [
        (("A100-40G",), True),
        (("A100-40G", "H100"), False),  # it may be placed on the larger ones
        (("T4",), False),  # not known: no opinion
        (("T4", "A100-40G"), False),
        ((), False),  # a CPU
    ],
)
def test_only_what_is_known_not_to_fit_is_refused(tmp_path: Path, accelerators: tuple[str, ...], refused: bool) -> None:
    config = load(CONFIGS / "70b/dpo.yaml").stages[-1]  # 52.7 GB per learner rank
    if not refused:
        check_capacity(config, NumbersOnly(*accelerators), tmp_path)
        return
    with pytest.raises(BadInput, match="policy does not fit: policy lacks"):
        check_capacity(config, NumbersOnly(*accelerators), tmp_path)
    assert (tmp_path / "devices.json").exists()  # whoever asks why finds what it was


def test_a_model_that_nobody_knows_is_let_through(tmp_path: Path) -> None:
    config = load(CONFIGS / "70b/dpo.yaml", ["model.path=someone/unknown"]).stages[-1]
    check_capacity(config, NumbersOnly("A100-40G"), tmp_path)
