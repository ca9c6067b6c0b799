"""A run on real Ray: the real driver and real actors, which hold the engines of `cpu_run.py`.

python fake_engines.py CONFIG.json        one attempt of a run, on the Ray cluster at RAY_ADDRESS
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[i] / part) for i, part in ((0, ""), (1, "workers"), (2, ""))]
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cpu_run  # noqa: E402 - sibling modules, on the path set above

from orchestrator.cluster.base import GangPlan  # noqa: E402
from orchestrator.cluster.ray_cluster import RayCluster  # noqa: E402
from orchestrator.config import RunConfig  # noqa: E402
from orchestrator.errors import RlhfError  # noqa: E402


class StandInCluster(RayCluster):
    """Ray cluster whose actors hold the engines of `cpu_run.py`."""

    def spawn(self, plans: Sequence[GangPlan], on_wait: Any = None) -> Any:
        return super().spawn([replace(p, start=cpu_run.STARTS.get(p.role, p.start)) for p in plans], on_wait)


def main() -> int:
    config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
    try:
        cpu_run.run(config, StandInCluster)
    except RlhfError as error:
        print(error, flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
