"""A reverse HTTP/1.1 proxy that disturbs the way to an object store; a test switches each fault while it runs.

    with FaultProxy.open(seaweed.endpoint) as proxy:
        store = from_url(seaweed.url, endpoint=proxy.endpoint)
        proxy.down = True                   open connections are reset, new ones refused
        proxy.bytes_per_second = 1e6        of all connections together, in each direction
        proxy.slow_s = 0.5                  before each request goes to the store
        proxy.before = lambda method, path: …       the request has arrived and is not yet with the store
        proxy.after = lambda method, path: …        the store has answered, and the client does not know it yet
        proxy.requests                      everything that was asked, in order

Calls of `before` and `after` never overlap. They can raise Fault. A client that has died in `before` is as if it had
never asked. Heads pass unchanged, because a signature of S3 covers the Host that the client wrote. Bodies pass in
pieces.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from urllib.parse import urlsplit

PIECE_BYTES = 64 * 1024
PIECE_S = 0.05  # with a limit, how long a piece lasts at most
TIMEOUT_S = 60.0  # for the store to answer
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets the connection
BODILESS = (204, 304)
EMPTY_LINES = (b"\r\n", b"\n")

Callback = Callable[[str, str], None]


class Fault(Exception):
    """Word of a callback to reset the connection, or to answer with a status such as 503 instead."""

    def __init__(self, status: int | None = None) -> None:
        super().__init__(status)
        self.status = status


class Gone(ConnectionError):
    """End of a stream in the middle of a message."""


@dataclass(kw_only=True)
class Request:
    """A request, such as PUT /runs/a?partNumber=1; bytes are those of the bodies, status 0 is no answer yet."""

    method: str
    path: str
    request_bytes: int = 0
    response_bytes: int = 0
    status: int = 0


# ------------------------------------------------------------------------------------------------ messages


@dataclass(frozen=True)
class Head:
    """First line and header fields of a message, as they came."""

    data: bytes
    first: list[str]
    fields: dict[str, str]

    @classmethod
    def read(cls, stream: BufferedReader) -> Head:
        lines = [_line(stream)]
        while lines[-1] not in EMPTY_LINES:
            lines.append(_line(stream))
        named = (line.decode("latin-1").partition(":") for line in lines[1:-1])
        fields = {name.strip().lower(): value.strip() for name, _, value in named}
        return cls(b"".join(lines), lines[0].decode("latin-1").split(maxsplit=2), fields)

    @property
    def is_answer(self) -> bool:
        return self.first[0].startswith("HTTP/")

    @property
    def status(self) -> int:
        return int(self.first[1])

    @property
    def is_chunked(self) -> bool:
        return self.fields.get("transfer-encoding", "").lower().endswith("chunked")

    @property
    def length(self) -> int | None:
        return int(self.fields["content-length"]) if "content-length" in self.fields else None

    @property
    def ends_connection(self) -> bool:
        return self.fields.get("connection", "").lower() == "close"


def _exactly(stream: BufferedReader, length: int) -> Iterator[bytes]:
    while length:
        if not (data := stream.read1(min(length, PIECE_BYTES))):
            raise Gone
        length -= len(data)
        yield data


def _line(stream: BufferedReader) -> bytes:
    if not (line := stream.readline()).endswith(b"\n"):
        raise Gone
    return line


def _chunks(stream: BufferedReader) -> Iterator[bytes]:
    """Yield a chunked body with its framing and trailers."""
    while True:
        yield (line := _line(stream))
        if (size := int(line.split(b";")[0], 16)) == 0:
            break
        yield from _exactly(stream, size + len(b"\r\n"))
    while line not in EMPTY_LINES:
        yield (line := _line(stream))


def _body(stream: BufferedReader, head: Head) -> Iterator[bytes]:
    """Yield the pieces of a body; an answer that does not tell its length lasts until the end of the stream."""
    if head.is_chunked:
        yield from _chunks(stream)
    elif head.length is not None:
        yield from _exactly(stream, head.length)
    elif head.is_answer:
        while data := stream.read1(PIECE_BYTES):
            yield data


# ------------------------------------------------------------------------------------------------ sockets


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _shows(peer: socket.socket, event: int) -> bool:
    """Return whether poll() reports this event, or an end of the connection."""
    poll = select.poll()
    poll.register(peer, event)
    return bool(poll.poll(0))


def _reset(peer: socket.socket) -> None:
    """End a connection that a thread may wait for; it resets the connection when it closes it."""
    with suppress(OSError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.shutdown(socket.SHUT_RDWR)


class Pace:
    """Time that the bytes of all connections take in one direction."""

    def __init__(self) -> None:
        self._lock, self._free = threading.Lock(), 0.0

    def take(self, seconds: float) -> float:
        """Return how long to wait for the end of the next so many seconds that are free."""
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now) + seconds
            return self._free - now


# ------------------------------------------------------------------------------------------------ proxy


class FaultProxy:
    """Proxy with one thread for each connection."""

    def __init__(self, target: str) -> None:
        self.bytes_per_second: float | None = None
        self.slow_s = 0.0
        self.before: Callback | None = None
        self.after: Callback | None = None
        self.requests: list[Request] = []
        split = urlsplit(target)
        assert split.hostname is not None
        assert split.port is not None
        self._target = split.hostname, split.port
        self._closed, self._callbacks, self._switch = threading.Event(), threading.Lock(), threading.RLock()
        self._there, self._back = Pace(), Pace()
        self._connections: dict[threading.Thread, list[socket.socket]] = {}
        self._listener, self._is_down = _bound(0), True
        self._port = self._listener.getsockname()[1]

    @classmethod
    @contextmanager
    def open(cls, target: str) -> Iterator[FaultProxy]:
        proxy = cls(target)
        proxy.down = False
        try:
            yield proxy
        finally:
            proxy._close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def heal(self) -> None:
        """End all faults and forget the requests."""
        self.bytes_per_second, self.slow_s, self.before, self.after, self.down = None, 0.0, None, None, False
        self.requests.clear()

    @property
    def down(self) -> bool:
        return self._is_down

    @down.setter
    def down(self, down: bool) -> None:
        with self._switch:
            if down and not self._is_down:
                self._listener.shutdown(socket.SHUT_RDWR)  # close() alone would not end accept()
                self._listener.close()
                self._listener = _bound(self._port)  # a socket that does not listen keeps the port
                for peer in (peer for peers in self._connections.values() for peer in peers):
                    _reset(peer)
            elif not down and self._is_down:
                self._listener.listen(128)
                threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
            self._is_down = down

    def _close(self) -> None:
        self._closed.set()
        self.down = True
        self._listener.close()
        with self._switch:
            threads = list(self._connections)
        for thread in threads:
            thread.join(TIMEOUT_S)

    # ---------------------------------------------------------------------------------------- connections

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the proxy is down
            while True:
                client, _ = listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                with self._switch:
                    self._connections[thread] = [client]
                    if self._listener is not listener:
                        _reset(client)
                    thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with closing(client), suppress(OSError), client.makefile("rb") as stream:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while self._pass(client, stream):
                    pass
        finally:
            with self._switch:
                del self._connections[threading.current_thread()]

    def _pass(self, client: socket.socket, stream: BufferedReader) -> bool:
        """Pass one request and its answer, and return whether the connection goes on."""
        head = Head.read(stream)
        method, path = head.first[:2]
        self.requests.append(request := Request(method=method, path=path))
        self._closed.wait(self.slow_s)
        try:
            try:
                self._call(self.before, request)
            except Fault as fault:
                if fault.status is not None and "expect" not in head.fields:
                    for data in _body(stream, head):  # a client does not read before it has written
                        request.request_bytes += len(data)
                raise
            if _shows(client, select.POLLRDHUP):
                raise Gone
            return self._forward(client, stream, head, request)
        except Fault as fault:
            self._refuse(client, request, fault.status)
            return False
        except OSError:
            _reset(client)
            raise

    def _call(self, callback: Callback | None, request: Request) -> None:
        if callback is not None:
            with self._callbacks:
                callback(request.method, request.path)

    def _refuse(self, client: socket.socket, request: Request, status: int | None) -> None:
        """Answer in the store's place, or reset the connection."""
        if status is None:
            _reset(client)
        else:
            request.status = status
            client.sendall(f"HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    def _forward(self, client: socket.socket, stream: BufferedReader, head: Head, request: Request) -> bool:
        """Send the request over a connection of its own, and the answer back."""
        with socket.create_connection(self._target, timeout=TIMEOUT_S) as store, store.makefile("rb") as answers:
            store.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._switch:
                self._connections[threading.current_thread()][1:] = [store]
                if self._is_down:
                    raise Gone
            store.sendall(head.data)
            answer = Head.read(answers) if "expect" in head.fields else None
            if answer is not None and answer.status == 100:
                client.sendall(answer.data)
                answer = None
            is_sent = answer is None and self._send_body(store, stream, head, request)
            while answer is None or answer.status < 200:
                answer = Head.read(answers)
            self._call(self.after, request)
            self._answer(client, answers, answer, request)
            has_end = answer.is_chunked or answer.length is not None or answer.status in BODILESS
            return is_sent and has_end and not answer.ends_connection and not head.ends_connection

    def _send_body(self, store: socket.socket, stream: BufferedReader, head: Head, request: Request) -> bool:
        """Send a body until the store answers, and return whether that was the whole one."""
        for data in _body(stream, head):
            for piece in self._paced(self._there, data):
                if _shows(store, select.POLLIN):
                    return False
                request.request_bytes += len(piece)
                with suppress(ConnectionError):  # the next look finds its reason
                    store.sendall(piece)
        return True

    def _answer(self, client: socket.socket, answers: BufferedReader, head: Head, request: Request) -> None:
        request.status = head.status
        client.sendall(head.data)
        if request.method != "HEAD" and head.status not in BODILESS:
            for data in _body(answers, head):
                for piece in self._paced(self._back, data):
                    request.response_bytes += len(piece)
                    client.sendall(piece)

    def _paced(self, pace: Pace, data: bytes) -> Iterator[memoryview]:
        """Yield pieces, each at the end of the time that it takes."""
        rest = memoryview(data)
        while rest:
            rate = self.bytes_per_second
            size = len(rest) if rate is None else max(1, int(rate * PIECE_S))
            if rate is not None:
                self._closed.wait(pace.take(len(rest[:size]) / rate))
            yield rest[:size]
            rest = rest[size:]
