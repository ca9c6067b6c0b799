"""Program that prints the address of the job server of the cluster at RAY_ADDRESS, as the cluster itself knows it.

A program of its own, so that a driver that waits for its turn need not import Ray.
"""

from __future__ import annotations

import os

from ray.dashboard.utils import ray_address_to_api_server_url

if __name__ == "__main__":
    print(ray_address_to_api_server_url(os.environ.get("RAY_ADDRESS", "auto")))
