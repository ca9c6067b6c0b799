"""The bench of these tests: a real server, and a proxy that disturbs the way to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
from fault_proxy import Fault, FaultProxy, Request
from obstore.exceptions import AlreadyExistsError, GenericError, PermissionDeniedError
from obstore.store import S3Store
from seaweed import Seaweed

MIB = 2**20
ONCE = {"max_retries": 0, "retry_timeout": timedelta(seconds=5)}
CLIENT = """
import sys
import obstore
store = obstore.store.from_url(sys.argv[1])
print("ready", flush=True)
for n in range(int(sys.stdin.readline())):
    obstore.put(store, str(n), b"x")
"""


@pytest.fixture
def direct(seaweed: Seaweed, bucket_prefix: str) -> S3Store:
    return seaweed.store(bucket_prefix)


@pytest.fixture
def store(seaweed: Seaweed, proxy: FaultProxy, bucket_prefix: str) -> S3Store:
    """Return the store that `direct` is, through the proxy and without retries."""
    return replace(seaweed, endpoint=proxy.endpoint).store(bucket_prefix, retry_config=ONCE)


def listed(store: S3Store) -> dict[str, int]:
    return {entry["path"]: entry["size"] for entry in store.list().collect()}


def test_the_environment_is_enough(seaweed: Seaweed, bucket_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    store = obstore.store.from_url(f"{seaweed.url}/{bucket_prefix}")
    obstore.put(store, "a", b"1")
    assert listed(seaweed.store(bucket_prefix)) == {"a": 1}


def test_objects_pass(store: S3Store, direct: S3Store, proxy: FaultProxy, seaweed: Seaweed, bucket_prefix: str) -> None:
    data = b"0123456789"
    obstore.put(store, "a/b", data, mode="create")
    assert bytes(obstore.get(store, "a/b").bytes()) == data
    assert bytes(obstore.get_range(store, "a/b", start=2, end=5)) == b"234"
    assert obstore.head(store, "a/b")["size"] == len(data)
    assert listed(store) == listed(direct) == {"a/b": len(data)}
    obstore.copy(store, "a/b", "c")
    obstore.delete(store, "a/b")
    assert listed(store) == {"c": len(data)}
    root = f"/{seaweed.bucket}/{bucket_prefix}"
    assert proxy.requests[:4] == [
        Request(method="PUT", path=f"{root}/a/b", request_bytes=10, status=200),
        Request(method="GET", path=f"{root}/a/b", response_bytes=10, status=200),
        Request(method="GET", path=f"{root}/a/b", response_bytes=3, status=206),
        Request(method="HEAD", path=f"{root}/a/b", status=200),
    ]


def test_an_object_is_created_once(store: S3Store) -> None:
    obstore.put(store, "a", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a", b"second", mode="create")
    assert bytes(obstore.get(store, "a").bytes()) == b"first"


def test_the_server_refuses(seaweed: Seaweed, store: S3Store) -> None:
    for wrong in (replace(seaweed, secret="no"), replace(seaweed, key="NOBODY")):
        with pytest.raises(PermissionDeniedError):
            obstore.put(wrong.store(), "a", b"")
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.put(replace(seaweed, bucket="missing").store(), "a", b"")
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "missing")


def test_a_big_object_passes(store: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(data := os.urandom(20 * MIB))
    obstore.put(store, "big", tmp_path / "big")
    assert bytes(obstore.get(store, "big").bytes()) == data
    parts = [request for request in proxy.requests if "partNumber=" in request.path]
    assert [part.request_bytes for part in parts] == 4 * [5 * MIB]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_may_wait_for_the_word_to_go_on(
    seaweed: Seaweed, proxy: FaultProxy, direct: S3Store, bucket_prefix: str, chunked: bool
) -> None:
    """Check `Expect: 100-continue` and a chunked body, which obstore does not send."""
    there = replace(seaweed, endpoint=proxy.endpoint).store(bucket_prefix)
    url = urlsplit(obstore.sign(there, "PUT", "a", timedelta(minutes=1)))
    connection = HTTPConnection(url.netloc, timeout=10)
    connection.putrequest("PUT", f"{url.path}?{url.query}")
    connection.putheader("Expect", "100-continue")
    connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", "5")))
    connection.endheaders()
    connection.sock.settimeout(10)
    assert connection.sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n" if chunked else b"abcde")
    with connection.getresponse() as answer:
        assert answer.status == 200
    connection.close()
    assert bytes(obstore.get(direct, "a").bytes()) == b"abcde"


# ------------------------------------------------------------------------------------------------ faults


def test_the_store_goes_down_and_up_again(store: S3Store, proxy: FaultProxy) -> None:
    obstore.put(store, "a", b"1")  # its connection is kept
    for _ in range(2):
        proxy.down = True
        for _ in range(2):
            with pytest.raises(GenericError):
                obstore.put(store, "b", b"2")
        proxy.down = False
        obstore.put(store, "a", b"1")
    assert listed(store) == {"a": 1}


def test_a_request_is_cut(store: S3Store, direct: S3Store, proxy: FaultProxy) -> None:
    proxy.bytes_per_second = MIB
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(obstore.put, store, "a", bytes(4 * MIB))
        wait_until(lambda: any(request.request_bytes for request in proxy.requests))
        proxy.down = True
        with pytest.raises(GenericError):
            put.result(timeout=10)
    assert listed(direct) == {}


def test_the_way_is_narrow(store: S3Store, proxy: FaultProxy) -> None:
    data = os.urandom(MIB)
    proxy.bytes_per_second = 2 * MIB
    for action in (lambda: obstore.put(store, "a", data), lambda: obstore.get(store, "a").bytes()):
        began = time.monotonic()
        action()
        assert 0.45 < time.monotonic() - began < 5
    proxy.bytes_per_second = None
    assert bytes(obstore.get(store, "a").bytes()) == data


def test_the_way_is_slow(seaweed: Seaweed, store: S3Store, proxy: FaultProxy) -> None:
    proxy.slow_s = 0.5
    began = time.monotonic()
    obstore.put(store, "a", b"")
    assert time.monotonic() - began > 0.5
    there = replace(seaweed, endpoint=proxy.endpoint)
    hasty = there.store(retry_config=ONCE, client_options={"timeout": "100ms"})
    with pytest.raises(GenericError, match="TimedOut"):
        obstore.head(hasty, "a")


def test_callbacks_stand_before_and_after_the_store(store: S3Store, direct: S3Store, proxy: FaultProxy) -> None:
    seen: list[tuple[str, str, list[str]]] = []
    proxy.before = lambda method, path: seen.append(("before", method, sorted(listed(direct))))
    proxy.after = lambda method, path: seen.append(("after", method, sorted(listed(direct))))
    obstore.put(store, "a", b"")
    obstore.put(store, "b", b"")
    obstore.head(store, "b")
    assert seen == [
        ("before", "PUT", []),
        ("after", "PUT", ["a"]),
        ("before", "PUT", ["a"]),
        ("after", "PUT", ["a", "b"]),
        ("before", "HEAD", ["a", "b"]),
        ("after", "HEAD", ["a", "b"]),
    ]


@pytest.mark.parametrize(
    ("when", "status", "exists"),
    [
        ("before", None, False),
        ("before", 503, False),
        ("after", None, True),
        ("after", 500, True),
    ],
)
def test_a_callback_takes_the_answer_away(
    store: S3Store, direct: S3Store, proxy: FaultProxy, when: str, status: int | None, exists: bool
) -> None:
    def fail(method: str, path: str) -> None:
        raise Fault(status)

    setattr(proxy, when, fail)
    with pytest.raises(GenericError, match=str(status) if status else None):
        obstore.put(store, "a", b"1", mode="create")
    assert listed(direct) == ({"a": 1} if exists else {})
    proxy.heal()
    assert listed(store) == listed(direct)


@pytest.mark.parametrize(("when", "objects"), [("before", 2), ("after", 3)])
def test_a_client_dies_at_its_third_put(
    seaweed: Seaweed, proxy: FaultProxy, direct: S3Store, bucket_prefix: str, when: str, objects: int
) -> None:
    puts: list[str] = []

    def kill(method: str, path: str) -> None:
        puts.append(path)
        if len(puts) == 3:
            client.kill()
            client.wait()

    setattr(proxy, when, kill)
    there = replace(seaweed, endpoint=proxy.endpoint)
    command = [sys.executable, "-c", CLIENT, f"{seaweed.url}/{bucket_prefix}"]
    environment = os.environ | there.environment
    with subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.readline()
        client.communicate("10\n", timeout=10)
    assert len(puts) == 3
    assert sorted(listed(direct)) == [str(n) for n in range(objects)]


def test_the_server_ends_with_a_killed_parent(seaweed: Seaweed, tmp_path: Path) -> None:
    code = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from seaweed import Seaweed
with Seaweed.open() as seaweed:
    print(seaweed.endpoint, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(
        command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True, timeout=60
    )
    address = urlsplit(done.stdout.strip()).netloc
    wait_until(lambda: not answers(address))
    (log,) = tmp_path.glob("*/log")
    for left in re.findall(r"Unix socket (/\S+)", log.read_text()):
        Path(left).unlink(missing_ok=True)


def answers(netloc: str) -> bool:
    connection = HTTPConnection(netloc, timeout=5)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
