"""Environment of every test: no downloads, and one thread per process. Fixtures of the tests with object storage."""

from __future__ import annotations

import gc
import os
import re
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Set before torch, transformers and DeepSpeed are imported, because they read these variables only once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Ray reads its token once per process, so all clusters of a test session share one token.
os.environ.setdefault("RLHF_TEST_RAY_TOKEN", secrets.token_hex(32))

from hypothesis import settings

if TYPE_CHECKING:
    from fault_proxy import FaultProxy
    from seaweed import Seaweed

settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a test
settings.load_profile("untimed")


def pytest_configure() -> None:
    if (
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ):  # a shell in the background ignores it, and so would all tests
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("RLHF_TEST_SEED", str(secrets.randbelow(2**16)))


def pytest_collection_finish() -> None:
    gc.freeze()  # garbage collection skips all objects defined so far, so that a fork copies none


def pytest_report_header() -> str:
    return f"sampled faults: RLHF_TEST_SEED={os.environ['RLHF_TEST_SEED']}"


# ------------------------------------------------------------------------------------------------ object storage

sys.path.append(str(Path(__file__).parent / "storage"))


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    from seaweed import Seaweed, why_not

    if reason := why_not():
        pytest.skip(reason)
    with Seaweed.open() as seaweed:
        yield seaweed


@pytest.fixture
def bucket_prefix(request: pytest.FixtureRequest) -> str:
    """Return a prefix in the bucket that nothing has, such as test_put-1f2e3d4c."""
    return f"{re.sub(r'[^a-z0-9_]+', '-', request.node.name.lower()).strip('-')}-{secrets.token_hex(4)}"


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    from fault_proxy import FaultProxy

    with FaultProxy.open(seaweed.endpoint) as proxy:
        yield proxy
