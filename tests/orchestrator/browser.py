"""Headless browser, controlled through a pipe, for measurements of a rendered page.

The browser is the Chromium or Chrome of the system; nothing is installed for it. The protocol is that of DevTools: JSON
messages separated by NUL on the file descriptors 3 and 4 (`--remote-debugging-pipe`).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_S = 120.0
HIGH = 200  # a file descriptor that neither pipe uses


def executable() -> str | None:
    """Return the browser of this machine, or None. `RLHF_TEST_BROWSER` names another one."""
    if named := os.environ.get("RLHF_TEST_BROWSER"):
        return named
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a browser without network access."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []

    @classmethod
    @contextmanager
    def started(cls, path: str, profile: Path) -> Iterator[Self]:
        down, up = os.pipe(), os.pipe()

        def on_3_and_4() -> None:
            os.dup2(down[0], HIGH)  # via unused numbers, because a pipe may itself be 3 or 4
            os.dup2(up[1], HIGH + 1)
            os.dup2(HIGH, 3)
            os.dup2(HIGH + 1, 4)

        options = ["--headless=new", "--disable-gpu", "--no-sandbox", "--no-first-run"]
        process = subprocess.Popen(
            [path, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=on_3_and_4,
            close_fds=False,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(down[0])
        os.close(up[1])
        browser = cls(down[1], up[0])
        try:
            browser._attach()
            yield browser
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # including its helper processes
            process.wait()
            os.close(down[1])
            os.close(up[0])

    def _attach(self) -> None:
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        target = pages[0]["targetId"] if pages else self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def open(self, page: Path, *, width: int, height: int, dark: bool = False) -> None:
        """Open a file on a screen of that size. A narrow screen emulates a phone with two device pixels per pixel."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self._until(lambda event: event.get("method") == "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Save a screenshot of the whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def requested(self) -> list[str]:
        """Return every URL that the page has requested since it was opened."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Return the messages of the browser's console."""
        return [e["params"]["entry"]["text"] for e in self.events if e.get("method") == "Log.entryAdded"]

    # -------------------------------------------------------------------------------------------- protocol

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda event: event.get("id") == self._number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _until(self, matches: Any) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            while b"\0" in self._buffer:
                line, self._buffer = self._buffer.split(b"\0", 1)
                event: dict[str, Any] = json.loads(line)
                self.events.append(event)
                if matches(event):
                    return event
            if not select.select([self._receive], [], [], 1.0)[0]:
                continue
            read = os.read(self._receive, 1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        raise AssertionError("the browser did not answer")
