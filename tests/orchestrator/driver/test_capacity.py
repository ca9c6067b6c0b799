"""Check of a run against the GPUs of its cluster, before the first model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cluster.local import LocalCluster
from orchestrator.config import load
from orchestrator.driver.capacity import check_capacity
from orchestrator.errors import BadInput

CONFIGS = Path(__file__).parents[3] / "configs"


class ClusterOf(LocalCluster):
    """Cluster with the given GPUs."""

    def __init__(self, *accelerators: str) -> None:
        super().__init__()
        self.cuda = bool(accelerators)
        self._accelerators = list(accelerators)

    def accelerators(self) -> list[str]:
        return self._accelerators


def test_the_devices_are_recorded(tmp_path: Path) -> None:
    check_capacity(load(CONFIGS / "8b/dpo.yaml").stages[-1], ClusterOf("H100"), tmp_path)
    assert json.loads((tmp_path / "devices.json").read_text()) == {"cuda": True, "accelerators": ["H100"]}


@pytest.mark.parametrize(
    ("accelerators", "refused"),
    [
        (("A100-40G",), True),
        (("A100-40G", "H100"), False),  # the larger GPU counts
        (("T4",), False),  # unknown to the planner: not checked
        (("T4", "A100-40G"), False),
        ((), False),  # a CPU
    ],
)
def test_a_role_that_does_not_fit_is_refused(tmp_path: Path, accelerators: tuple[str, ...], refused: bool) -> None:
    config = load(CONFIGS / "70b/dpo.yaml").stages[-1]  # 52.7 GB per learner rank
    if not refused:
        check_capacity(config, ClusterOf(*accelerators), tmp_path)
        return
    with pytest.raises(BadInput, match="policy does not fit: policy lacks"):
        check_capacity(config, ClusterOf(*accelerators), tmp_path)
    assert (tmp_path / "devices.json").exists()  # recorded even so


def test_a_model_that_the_planner_does_not_know_is_not_checked(tmp_path: Path) -> None:
    config = load(CONFIGS / "70b/dpo.yaml", ["model.path=someone/unknown"]).stages[-1]
    check_capacity(config, ClusterOf("A100-40G"), tmp_path)
