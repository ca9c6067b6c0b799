"""Connecting to a cluster's job server, step by step, so that an error names the step that failed."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

from orchestrator.errors import BadInput, ClusterError, Problem, redact

TIMEOUT_S = 10.0
DEFAULT_PORT = 8265
MIN_RAY = (2, 56)  # earlier versions have CVE-2026-57516 and others
TOKEN_SOURCES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """Address of a job server, and the headers to send. The headers hold the token: never print them."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    open_is_allowed: bool = True  # accept a cluster without authentication that other machines can reach

    @classmethod
    def at(cls, address: str, *, token_file: Path | None = None, open_is_allowed: bool = True) -> Server:
        """Return the server at `address`. Raise BadInput for an invalid address or an unreadable token file."""
        headers = _extra_headers()
        if token := find_token(token_file):
            headers.setdefault("Authorization", f"Bearer {token}")
        return cls(url=server_url(address), headers=headers, open_is_allowed=open_is_allowed)

    def check(self) -> str:
        """Check host name, port, HTTP, token and version, in this order, and return the cluster's version of Ray.

        Raises:
            ClusterError: names the step that failed.
        """
        if not requests.utils.get_environ_proxies(self.url):
            self._reach()
        anonymous = self._get("/api/jobs/", {})
        if anonymous.status_code in (401, 403):
            if "authorization" not in {name.lower() for name in self.headers}:
                fix = f"set the cluster's token in {TOKEN_SOURCES}"
                raise self._failed("token", "the cluster requires a token, and none is set here", fix)
        elif anonymous.ok and not self.open_is_allowed and not is_loopback(self.url):
            fix = "start it with RAY_AUTH_MODE=token; or accept the risk: --allow-open-cluster"
            raise self._failed("token", "anyone who reaches this cluster can run code on it", fix)
        answer = self._get("/api/version", self.headers)
        if answer.status_code in (401, 403):
            fix = f"use this cluster's own token; the token is read from {TOKEN_SOURCES}"
            raise self._failed("token", "the cluster refuses this token", fix)
        return self._version(answer)

    def answers_anyone(self) -> bool:
        """Return whether the server lists its jobs without a token. Raise ClusterError if it does not answer."""
        return self._get("/api/jobs/", {}).ok

    def _reach(self) -> None:
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise self._failed("name", f"cannot resolve {host} ({error})", "check the host name") from None
        try:
            socket.create_connection((host, port), TIMEOUT_S).close()
        except OSError as error:
            why = f"port {port} of {host}: {(error.strerror or str(error)).lower()}"
            fix = "is the cluster up? is a tunnel needed, such as kubectl port-forward svc/HEAD 8265:8265?"
            raise self._failed("connection", why, fix) from None

    def _get(self, path: str, headers: Mapping[str, str]) -> requests.Response:
        https = self.url.startswith("https")
        try:
            return requests.get(self.url + path, headers=dict(headers), timeout=TIMEOUT_S)
        except requests.exceptions.SSLError as error:
            plain = "WRONG_VERSION_NUMBER" in str(error).upper() or "RECORD_LAYER" in str(error).upper()
            why = "the server speaks http, not https" if plain else "its certificate is not trusted here"
            fix = f"use http{self.url[5:]}" if plain else "set REQUESTS_CA_BUNDLE to the authority's certificate"
            raise self._failed("TLS", why, fix) from None
        except requests.exceptions.RequestException as error:
            why = f"no HTTP response ({type(error).__name__})"
            fix = "is this the dashboard port?" + ("" if https else f" if it speaks https: https{self.url[4:]}")
            raise self._failed("HTTP", why, fix) from None

    def _version(self, answer: requests.Response) -> str:
        try:
            version = str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError):
            why = f"the response to /api/version has status {answer.status_code} and is not Ray's"
            fix = "give the dashboard of the head node: http://HEAD:8265"
            if not self.url.startswith("https"):
                fix += f"; if it speaks https: https{self.url[4:]}"
            raise self._failed("Ray", why, fix) from None
        numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
        if numbers < MIN_RAY:
            wanted = ".".join(str(n) for n in MIN_RAY)
            raise self._failed("version", f"the cluster runs ray {version}", f"use ray >= {wanted} (security)")
        return version

    def _failed(self, step: str, why: str, fix: str) -> ClusterError:
        what = f"cannot use the cluster: the {step} step failed"
        return ClusterError(Problem(what=what, where=redact(self.url), why=why, fix=fix))


def server_url(address: str) -> str:
    """Return the URL of an address as people write it: `http://HOST:8265`. Raise BadInput for an invalid one."""
    where = "--cluster"
    if address.startswith("ray://"):
        fix = "give the dashboard: http://HEAD:8265"
        raise BadInput(Problem(what=redact(address), where=where, why="jobs are submitted over http", fix=fix))
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(Problem(what=redact(address), where=where, why="not a URL", fix="give http://HEAD:8265"))
    if parts.username or parts.password:
        fix = f"set the token in {TOKEN_SOURCES}"
        what, why = "[redacted]@" + parts.hostname, "a URL with credentials ends up in logs"
        raise BadInput(Problem(what=what, where=where, why=why, fix=fix))
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    suffix = f":{port}" if port else "" if parts.scheme == "https" else f":{DEFAULT_PORT}"
    return f"{parts.scheme}://{host}{suffix}{parts.path.rstrip('/')}"


def find_token(token_file: Path | None = None) -> str | None:
    """Return the token from a file or the environment, where Ray looks for it; None if there is none.

    Raises:
        BadInput: a token file is named and cannot be read.
    """
    if token_file is None and (token := os.environ.get("RAY_AUTH_TOKEN", "").strip()):
        return token
    named = token_file or (Path(p) if (p := os.environ.get("RAY_AUTH_TOKEN_PATH")) else None)
    path = (named or Path("~/.ray/auth_token")).expanduser()
    try:
        return path.read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        if named is None:
            return None
        why = (getattr(error, "strerror", None) or "it is not text").lower()
        fix = "check the path, or get the token from the cluster: ray get-auth-token"
        raise BadInput(Problem(what="the token file cannot be read", where=str(path), why=why, fix=fix)) from None


def _extra_headers() -> dict[str, str]:
    text = os.environ.get("RAY_JOB_HEADERS")
    if not text:
        return {}
    try:
        return {str(name): str(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        fix = 'write a JSON object: {"name": "value"}'
        raise BadInput(Problem(what="RAY_JOB_HEADERS is not a JSON object", where="environment", fix=fix)) from None


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


@contextmanager
def environment_without_addresses() -> Iterator[None]:
    """Hide the variables that Ray prefers to an address given on the command line."""
    hidden = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
