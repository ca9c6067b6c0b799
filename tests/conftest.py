"""Environment of every test: no downloads, and one thread per process."""

from __future__ import annotations

import gc
import os
import secrets

# Set before torch, transformers and DeepSpeed are imported, because they read these variables only once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Ray reads its token once per process, so all clusters of a test session share one token.
os.environ.setdefault("RLHF_TEST_RAY_TOKEN", secrets.token_hex(32))

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a test
settings.load_profile("untimed")


def pytest_configure() -> None:
    os.environ.setdefault("RLHF_TEST_SEED", str(secrets.randbelow(2**16)))


def pytest_collection_finish() -> None:
    gc.freeze()  # garbage collection skips all objects defined so far, so that a fork copies none


def pytest_report_header() -> str:
    return f"sampled faults: RLHF_TEST_SEED={os.environ['RLHF_TEST_SEED']}"
