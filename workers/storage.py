"""Object storage (S3, Google Cloud, a directory): objects by name below one URL. The only module that uses obstore.

`create` is the one operation that two writers cannot both win: on it rest the order of the ledger and its fence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

R = TypeVar("R")

CONNECT_S, REQUEST_S, RETRY_S = 5, 120, 5  # of one request; callers decide how long to try again
SCHEMES = ("s3", "gs", "az", "file")
URL = re.compile(rf"^({'|'.join(SCHEMES)})://\S+$")
PUBLIC = ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST")
SECRET_FILES = "RLHF_SECRET_FILES"
"""Environment variable with the files of a job's secrets on its machines: VARIABLE=FILE, separated as in PATH."""
OF_STORES = ("AWS_", "GOOGLE_", "AZURE_")
PARTS = 4  # of a large object that are written at once
MOST_DELETED = 500  # names in one request


class StorageError(RuntimeError):
    """Object storage does not answer, or answers that it cannot do it now: another try may help."""


class StorageRefused(StorageError):
    """Object storage refuses the credentials, or has no such bucket: another try does not help."""


class Storage:
    """Objects below a URL such as `s3://bucket/prefix`. Credentials are those that obstore reads in the environment."""

    def __init__(self, url: str) -> None:
        """Open the store; no request is made.

        Raises:
            StorageRefused: the URL is malformed, or obstore is not installed.
        """
        if not URL.fullmatch(url):
            raise StorageRefused(f"{url} is no URL of a store: give {', '.join(f'{s}://…' for s in SCHEMES)}")
        self.url = url.rstrip("/")
        try:
            from obstore import store
        except ImportError:
            raise StorageRefused("obstore is not installed: pip install 'rlhf-orchestrator[storage]'") from None
        options: dict[str, Any] = {}
        if not url.startswith("file://"):
            # Given here, because options of a client replace those of the environment.
            plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1", "yes")
            client = {"timeout": f"{REQUEST_S}s", "connect_timeout": f"{CONNECT_S}s", "allow_http": plain}
            options["client_options"] = client
            options["retry_config"] = {"max_retries": 2, "retry_timeout": timedelta(seconds=RETRY_S)}
        else:
            options["mkdir"] = True
        self._store: Any = self._call("", lambda: store.from_url(self.url, **options))

    def put(self, name: str, data: bytes | BinaryIO) -> None:
        """Write an object from bytes or from an open file, replacing an earlier one."""
        import obstore

        # Few parts at once: the deadline of a request covers its body, and all parts share a slow link.
        self._call(name, lambda: obstore.put(self._store, name, data, max_concurrency=PARTS))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one of this name. Return whether it was written."""
        import obstore

        try:
            self._call(name, lambda: obstore.put(self._store, name, data, mode="create", use_multipart=False))
        except FileExistsError:
            return False
        return True

    def get(self, name: str) -> bytes | None:
        """Return the content of an object; None if there is none."""
        import obstore

        try:
            return bytes(self._call(name, lambda: obstore.get(self._store, name).bytes()))
        except FileNotFoundError:
            return None

    def download(self, name: str, path: Path, on_block: Callable[[], None] = lambda: None) -> None:
        """Write the content of an object to a file, block by block; `on_block` is called after each.

        Raises:
            FileNotFoundError: there is no such object.
        """
        import obstore

        def copy() -> None:
            with path.open("wb") as file:
                for block in obstore.get(self._store, name).stream(min_chunk_size=1 << 22):
                    file.write(block)
                    on_block()
                file.flush()
                os.fsync(file.fileno())

        self._call(name, copy)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of each object below a prefix, by its whole name."""
        import obstore

        pages: Iterable[Any] = self._call(prefix, lambda: list(obstore.list(self._store, prefix)))
        return {str(meta["path"]): int(meta["size"]) for page in pages for meta in page}

    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes; None if there is none."""
        import obstore

        try:
            return int(self._call(name, lambda: obstore.head(self._store, name))["size"])
        except FileNotFoundError:
            return None

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the store, without moving its content through this machine."""
        import obstore

        self._call(source, lambda: obstore.copy(self._store, source, target))

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; one that is not there counts as deleted."""
        import obstore

        listed = list(names)
        for first in range(0, len(listed), MOST_DELETED):
            part = listed[first : first + MOST_DELETED]
            try:
                self._call(part[0], lambda part=part: obstore.delete(self._store, part))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def _call(self, name: str, request: Callable[[], R]) -> R:
        """Make a request, and name the object in its error.

        Raises:
            FileExistsError, FileNotFoundError: as the store answers.
            StorageRefused: the store refuses the credentials or the bucket.
            StorageError: any other error.
        """
        from obstore import exceptions as errors

        place = f"{self.url}/{name}" if name else self.url
        try:
            return request()
        except (errors.AlreadyExistsError, errors.PreconditionError, FileExistsError):
            raise FileExistsError(place) from None
        except (errors.NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise StorageRefused(f"{place}: no such bucket{_key_id()}") from None
            raise FileNotFoundError(place) from None
        except (errors.PermissionDeniedError, errors.UnauthenticatedError, PermissionError) as error:
            raise StorageRefused(f"{place}: access is denied{_key_id()}: {_first(error)}") from None
        except (errors.InvalidPathError, errors.UnknownConfigurationKeyError, ValueError) as error:
            raise StorageRefused(f"{place}: {_first(error)}") from None
        except (errors.BaseError, OSError) as error:
            text = str(error)
            if any(word in text for word in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "403 Forbidden")):
                raise StorageRefused(f"{place}: access is denied{_key_id()}: {_first(error)}") from None
            if "NoSuchBucket" in text:
                raise StorageRefused(f"{place}: no such bucket{_key_id()}") from None
            raise StorageError(f"{place}: {_first(error)}") from None


def environment() -> Mapping[str, str]:
    """Return the variables of this process that say where a store and its keys are, none of them secret."""
    return {name: os.environ[name] for name in (*PUBLIC, SECRET_FILES) if name in os.environ}


def read_key_files() -> None:
    """Set the variables of a store's keys that this process lacks from the files that SECRET_FILES names.

    A file that this machine does not have is left out: the machine may have access by its role.
    """
    for pair in filter(None, os.environ.get(SECRET_FILES, "").split(os.pathsep)):
        variable, _, file = pair.partition("=")
        if not variable.startswith(OF_STORES) or variable in os.environ:
            continue
        with suppress(OSError):
            os.environ[variable] = Path(file).read_text("utf-8").strip()


def _key_id() -> str:
    """Return the id of the key in use, for an error; an id is no secret."""
    id = os.environ.get("AWS_ACCESS_KEY_ID")
    return f" to the key {id}" if id else " (AWS_ACCESS_KEY_ID is not set)"


def _first(error: BaseException) -> str:
    """Return what an error says in its first line, without obstore's debug text."""
    return " ".join(str(error).partition("\n")[0].split())[:300]
