"""Fill the object store with results that nobody fetches, until there is no room for another one.

    python full_store.py CPUS        on the cluster at RAY_ADDRESS, with a worker that takes this many CPUs

The script prints one line of JSON: how many results fitted, and the error that followed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[i] / part) for i, part in ((0, ""), (1, "workers"), (2, ""))]

import numpy as np  # noqa: E402

from orchestrator.cluster.base import GangPlan, Resources  # noqa: E402 - on the path set above
from orchestrator.cluster.ray_cluster import RayCluster  # noqa: E402
from orchestrator.config import ClusterConfig  # noqa: E402
from orchestrator.errors import RlhfError  # noqa: E402

ANSWER_BYTES, MAX_ANSWERS = 20 * 2**20, 12  # together more than any store in these tests holds


class Filler:
    """Worker that returns large results."""

    def __init__(self) -> None:
        self.num_answers = 0

    def answer(self) -> np.ndarray:
        self.num_answers += 1
        return np.full(ANSWER_BYTES, self.num_answers, np.uint8)


def main() -> None:
    cluster, kept, failure = RayCluster(ClusterConfig()), [], {}
    try:
        plan = GangPlan(role="filler", start=Filler, arguments=[{}], resources=Resources(cpus=float(sys.argv[1])))
        gang = cluster.spawn([plan])["filler"]
        while len(kept) < MAX_ANSWERS:
            handle = gang.one(Filler.answer)
            handle.wait()
            kept.append(handle)
    except RlhfError as error:
        failure = {"cause": error.cause, "message": str(error)}
    finally:
        cluster.shutdown()
    print(json.dumps({"room_for": len(kept), **failure}), flush=True)


if __name__ == "__main__":
    main()
