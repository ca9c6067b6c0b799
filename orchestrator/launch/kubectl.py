"""Client of Kubernetes: `kubectl` as a subprocess. Its arguments are lists, and no shell reads them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import ClusterError, Problem

TIMEOUT_S = 60.0
LONG_S = 600.0  # of a command that runs in a pod


class Kubectl:
    """Calls of kubectl in one context and namespace."""

    def __init__(self, *, context: str | None, namespace: str) -> None:
        self._start = ["kubectl", *(["--context", context] if context else []), "--namespace", namespace]
        self.where = f"namespace {namespace}" + (f" of context {context}" if context else "")

    def get(self, kind: str, *arguments: str) -> dict[str, Any]:
        """Return what `kubectl get` prints as JSON; an empty object if the one that is named does not exist."""
        text = self.run("get", kind, *arguments, "-o", "json", "--ignore-not-found").stdout
        try:
            found = json.loads(text) if text.strip() else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._failed("get", "it printed no JSON")
        return found

    def items(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""
        return list(self.get(kind, *arguments).get("items", []))

    def run(
        self, *arguments: str, manifest: Any = None, timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. `manifest`: object that it reads as JSON.

        Raises:
            ClusterError: it failed; the error has its first line.
        """
        done = self.attempt(*arguments, manifest=manifest, timeout_s=timeout_s)
        if done.returncode != 0:
            raise self._failed(arguments[0], done.stderr or done.stdout)
        return done

    def attempt(
        self, *arguments: str, manifest: Any = None, timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, well or not. Raise ClusterError if it does not answer, or is not installed."""
        try:
            return subprocess.run(
                [*self._start, *arguments],
                input=None if manifest is None else json.dumps(manifest),
                stdin=subprocess.DEVNULL if manifest is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError:
            raise self._not_installed() from None
        except subprocess.TimeoutExpired:
            raise self._failed(arguments[0], f"no answer for {timeout_s:.0f} s") from None

    def stream(self, *arguments: str) -> Iterator[str]:
        """Yield the lines of a command's output until it ends. Raise ClusterError if it failed."""
        try:
            child = subprocess.Popen(
                [*self._start, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except FileNotFoundError:
            raise self._not_installed() from None
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            yield from child.stdout
            if child.wait() != 0:
                raise self._failed(arguments[0], child.stderr.read())
        finally:
            child.terminate()
            child.wait()
            child.stdout.close()
            child.stderr.close()

    def _failed(self, verb: str, said: str) -> ClusterError:
        lines = [line for line in said.splitlines() if line.strip()]
        why = lines[0].strip() if lines else "it printed nothing"
        fix = "check the context, the namespace and your permissions: kubectl auth can-i create rayjobs"
        return ClusterError(Problem(what=f"kubectl {verb} failed", where=self.where, why=why, fix=fix))

    def _not_installed(self) -> ClusterError:
        fix = "install kubectl, the client of Kubernetes"
        return ClusterError(Problem(what="kubectl is not installed", where="PATH", fix=fix))
