"""Package of a job: the files that its recipe names, by content, wherever git or Ray would leave them out.

    names ──► stat: kind, link, secret, size ──► copy, sha256 ──► Package ──► zip (Ray) or directory (Slurm, Kubernetes)

Equal contents make an equal package on every machine: names are sorted, and times and modes are not kept.
"""

from __future__ import annotations

import fnmatch
import hashlib
import ntpath
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.errors import BadInput, Problem, Problems
from orchestrator.launch.base import Package

MAX_BYTES = 200 * 2**20  # Ray itself refuses 500 MiB
MAX_FILES = 10_000
MIB = 2**20
SKIPPED = (".*", "__pycache__", "*.pyc", "cache-*.arrow")
"""Names that are left out of a directory that a recipe names: hidden files, and caches of Python and `datasets`."""
SECRETS = (
    ".env", ".env.*", ".netrc", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa", "id_ecdsa", "id_ed25519", "auth_token",
    ".ssh", ".aws", ".kube", ".gnupg", ".docker",
)  # fmt: skip
KINDS = ((stat.S_ISSOCK, "a socket"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
MOVE = "keep models and data on storage that the target can read, and name them by absolute paths"
NEVER_SAFE = re.compile(r"[\0-\x1f\\\ud800-\udfff]")  # Ray drops files with a backslash without a word


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """File or directory that is shipped. Example: `Named(path="data/pairs.jsonl", by="data.dataset")`."""

    path: str  # relative to the working directory
    by: str  # setting that names it


def build_package(named: Iterable[Named], root: Path, into: Path | None = None) -> Package:
    """Return the package of the named files below `root`. Contents are read only after all checks of names and sizes.

    Args:
        into: empty directory that the files are copied to; None: they stay where they are.

    Raises:
        BadInput: with every file that cannot be shipped, or with the largest ones if they are too large together.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        problem = Problem(what="no such directory", where=str(root), fix="give --working-dir an existing one")
        raise BadInput(problem)
    found = _Found(root)
    for item in dict.fromkeys(named):
        found.add(item)
    found.problems.raise_if_any()
    _check_size(found)
    files: dict[str, str] = {}
    size = 0
    for name in sorted(found.sizes):
        files[name], read = _read(root / name, None if into is None else into / name)
        size += read
    return Package(root=into or root, files=files, bytes=size, digest=digest_of(files))


def digest_of(files: Mapping[str, str]) -> str:
    """Return a digest of names and contents. `files`: name -> sha256."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_zip(package: Package, path: Path) -> None:
    """Write a package as a zip file, whose bytes depend on names and contents alone.

    The files are stored, because compression differs between versions of zlib.

    Raises:
        BadInput: a file is not what it was when the package was built.
    """
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for name, sha256 in sorted(package.files.items()):
            entry = zipfile.ZipInfo(name)  # of 1980-01-01, the first time of the format
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            with open(package.root / name, "rb") as source, archive.open(entry, "w") as target:
                found, _ = _copy(source, target)
            if found != sha256:
                why, fix = "it has changed since it was read", "submit again when nobody writes to it"
                raise BadInput(Problem(what="a file changed", where=str(package.root / name), why=why, fix=fix))


class _Found:
    """Files that are shipped, by name relative to the root, and problems with others."""

    def __init__(self, root: Path) -> None:
        self.root, self.real_root = root, root.resolve()
        self.sizes: dict[str, int] = {}
        self.by: dict[str, str] = {}
        self.problems = Problems()

    def add(self, item: Named) -> None:
        """Add a file, or all files of a directory."""
        place = os.path.normpath(item.path)
        path = self.root / place
        if os.path.isabs(item.path) or place.split(os.sep)[0] == os.pardir:
            why = f"only files below {self.root} are shipped"
            fix = "give a --working-dir that contains it; data and models may have absolute paths that the target sees"
            self._refuse("outside the working directory", item, Path(item.path), why=why, fix=fix)
        elif not os.path.lexists(path):
            fix = f"relative paths start at {self.root}; name what only the target has by an absolute path"
            self._refuse("no such file", item, path, fix=fix)
        elif (real := self._real(path, item)) is None:
            return
        elif real != (self.root / item.path).resolve():
            why = "`..` after a symbolic link leads elsewhere on another machine"
            self._refuse("an ambiguous path", item, Path(item.path), why=why, fix=f"write {place}, or the real path")
        elif self._is_allowed(path, real, item):
            self._walk(path, item, ())

    def _walk(self, path: Path, item: Named, above: tuple[tuple[int, int], ...]) -> None:
        """Add a file, or the content of a directory. `above`: the directories that it lies in."""
        try:
            about = path.stat()
            if stat.S_ISDIR(about.st_mode):
                identity = (about.st_dev, about.st_ino)
                if identity not in above:  # else a link to a directory that it lies in
                    self._walk_directory(path, item, (*above, identity))
                return
        except OSError as error:
            self._refuse("cannot be read", item, path, why=os.strerror(error.errno or 0).lower(), fix="mend it")
            return
        if not stat.S_ISREG(about.st_mode):
            kind = next((kind for is_kind, kind in KINDS if is_kind(about.st_mode)), "not a file")
            self._refuse(f"this is {kind}", item, path, why="only files and directories are shipped", fix="remove it")
        elif not os.access(path, os.R_OK):
            self._refuse("cannot be read", item, path, why="permission denied", fix=f"chmod +r {path}")
        else:
            name = path.relative_to(self.root).as_posix()
            self.sizes[name] = about.st_size
            self.by.setdefault(name, item.by)

    def _walk_directory(self, path: Path, item: Named, above: tuple[tuple[int, int], ...]) -> None:
        for name in sorted(os.listdir(path)):
            child = path / name
            if len(self.sizes) > MAX_FILES or any(fnmatch.fnmatch(name, pattern) for pattern in SKIPPED):
                continue
            real = self._real(child, item) if child.is_symlink() else child
            if real is not None and self._is_allowed(child, real, item):
                self._walk(child, item, above)

    def _real(self, path: Path, item: Named) -> Path | None:
        """Return a path without links. Refuse one that does not lie below the root, or does not exist."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop
            why = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "a loop"
            self._refuse("a symbolic link that leads nowhere", item, path, why=why, fix="mend or remove the link")
            return None
        if real.is_relative_to(self.real_root):
            return real
        why = f"it leads to {real}, and only files below {self.root} are shipped"
        fix = f"copy the file to this place, or name it by its absolute path if the target sees it: {real}"
        self._refuse("a symbolic link out of the working directory", item, path, why=why, fix=fix)
        return None

    def _is_allowed(self, path: Path, real: Path, item: Named) -> bool:
        """Refuse secrets, by the names of a path and of what its links lead to, and names that some systems refuse."""
        name = path.relative_to(self.root)
        parts = {*name.parts, *(real.relative_to(self.real_root).parts if real != path else ())}
        if any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in SECRETS):
            why, fix = "its name is that of a secret", "give jobs secrets with `secrets:` of the target, or rename it"
            self._refuse("not shipped", item, path, why=why, fix=fix)
            return False
        if NEVER_SAFE.search(str(name)) or ntpath.splitdrive(name.as_posix())[0]:
            why = "it has a backslash, a drive letter, a control character, or is not UTF-8"
            self._refuse(f"the name {str(name)!a}", item, self.root, why=why, fix="rename it")
            return False
        return True

    def _refuse(self, what: str, item: Named, path: Path, *, why: str = "", fix: str) -> None:
        self.problems.add(f"{item.by}: {what}", where=str(path), why=why, fix=fix)


def _check_size(found: _Found) -> None:
    """Refuse too many or too large files, without reading them."""
    total = sum(found.sizes.values())
    if len(found.sizes) > MAX_FILES:
        what, why = f"more than {MAX_FILES:,} files to ship", ""
    elif total > MAX_BYTES:
        largest = sorted(found.sizes, key=lambda name: (-found.sizes[name], name))
        large = [name for name in largest[:4] if found.sizes[name] * 20 >= total] or largest[:1]
        what = f"{total / MIB:.1f} MiB to ship exceed the limit of {MAX_BYTES // MIB} MiB"
        shown = (f"{name} ({found.sizes[name] / MIB:.1f} MiB, {found.by[name]})" for name in large)
        why = f"the largest {'is' if len(large) == 1 else 'are'} {', '.join(shown)}"
    else:
        return
    raise BadInput(Problem(what=what, where=str(found.root), why=why, fix=MOVE))


def _read(source: Path, target: Path | None) -> tuple[str, int]:
    """Return the sha256 and the size of a file, and copy it."""
    try:
        with open(source, "rb") as opened:
            if target is None:
                return hashlib.file_digest(opened, "sha256").hexdigest(), os.fstat(opened.fileno()).st_size
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as copy:
                return _copy(opened, copy)
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        where = str(error.filename or source)
        raise BadInput(Problem(what="a file cannot be shipped", where=where, why=why, fix="mend it")) from None


def _copy(source: IO[bytes], target: IO[bytes]) -> tuple[str, int]:
    """Copy a file and return the sha256 and the number of its bytes."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(MIB):
        digest.update(block)
        target.write(block)
        size += len(block)
    return digest.hexdigest(), size
