"""OpenAI-compatible endpoint on this machine, with replies that a test defines."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Endpoint:
    """State of the endpoint. `answer(body, number)` returns (status, message or raw body) and optionally headers."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""


@contextmanager
def endpoint(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[Endpoint]:
    """Serve an endpoint while inside the context."""
    state = Endpoint(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(body)
                state.headers.append({name.title(): value for name, value in self.headers.items()})
                state.paths.append(self.path)
                number = len(state.requests)
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            status, content, *headers = state.answer(body, number)
            with state.lock:
                state.at_once -= 1
            raw = content if isinstance(content, bytes) else json.dumps(message(content)).encode()
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the client hung up, as some tests intend
                self.wfile.write(raw)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def message(text: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"total_tokens": 7}}


def verdict(word: str) -> str:
    return json.dumps({"reason": "because", "verdict": word})


def shown(body: dict[str, Any]) -> dict[str, Any]:
    """Return the pair that a request shows to the judge."""
    content: dict[str, Any] = json.loads(body["messages"][-1]["content"])
    return content


def score(number: int) -> str:
    return json.dumps({"reason": "because", "score": number})


def longer(body: dict[str, Any], _: int) -> Answer:
    """Reply as a judge that prefers the longer answer in either order."""
    a, b = len(shown(body)["answer_a"]), len(shown(body)["answer_b"])
    return 200, verdict("tie" if a == b else "A" if a > b else "B")
