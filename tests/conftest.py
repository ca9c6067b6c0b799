"""What every test starts from: nothing is fetched, and a test keeps one core busy."""

from __future__ import annotations

import os
import secrets

# Before torch, transformers and DeepSpeed are imported, which read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# A process keeps the first token that Ray has read: all clusters of a session have the same one.
os.environ.setdefault("RLHF_TEST_RAY_TOKEN", secrets.token_hex(32))

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # nothing here depends on how busy the machine is
settings.load_profile("untimed")


def pytest_configure() -> None:
    os.environ.setdefault("RLHF_TEST_SEED", str(secrets.randbelow(2**16)))


def pytest_report_header() -> str:
    return f"sampled faults: RLHF_TEST_SEED={os.environ['RLHF_TEST_SEED']}"
