"""CPU image, built for real with buildah from a Debian base, and run on a read-only root as its own user by bubblewrap.

The base is made by debootstrap, because no registry of images is needed then; `RLHF_IMAGE_BASE` names another one. A
build takes some minutes and 15 GB of /var/tmp. The GPU image is not built: tests/deploy checks its Dockerfile and lock.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COPIED = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "orchestrator",
    "workers",
    "requirements",
    "deploy",
    ".dockerignore",
)
PROGRAMS = ("buildah", "crun", "debootstrap", "bwrap", "setpriv")
NAME = "localhost/rlhf:cpu"
CANARY = "canary-4f1d0c"
NEEDED_BYTES = 25 * 2**30


def why_not() -> str:
    """Return why no image can be built here; empty if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        packages = "buildah crun debootstrap bubblewrap"
        return f"{', '.join(missing)} missing: apt-get install --no-install-recommends {packages}"
    if os.geteuid() != 0:
        return "a build in a chroot takes root"
    return "" if shutil.disk_usage("/var/tmp").free > NEEDED_BYTES else "a build takes 25 GB of free space in /var/tmp"


pytestmark = [
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]


@dataclass(frozen=True)
class Image:
    """Image that is mounted at `root`, and directories that a container may see."""

    root: Path
    config: dict[str, Any]
    runs: Path  # /mnt of a container, writable
    data: Path  # /srv of a container

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the image, as `docker run --read-only --user … --network none` does."""
        user, group = self.config["User"].split(":")
        variables = [part for entry in self.config["Env"] for part in ("--setenv", *entry.split("=", 1))]
        return subprocess.run(
            [
                *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"),
                *("bwrap", "--ro-bind", str(self.root), "/", "--dev", "/dev", "--proc", "/proc"),
                *("--tmpfs", "/tmp", "--tmpfs", "/home/rlhf"),
                *("--bind", str(self.runs), "/mnt", "--ro-bind", str(self.data), "/srv"),
                *("--unshare-all", "--die-with-parent", "--new-session", "--clearenv", *variables),
                *("--chdir", self.config["WorkingDir"], *command),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


def checked(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build_context(directory: Path) -> Path:
    """Copy what the build needs, and plant secrets beside it and in it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)
    for place in (".env", "id_rsa", "data/token", "orchestrator/.env", "orchestrator/key.pem", "requirements/pip.conf"):
        (directory / place).parent.mkdir(exist_ok=True)
        (directory / place).write_text(CANARY)
    return directory


def pip_arguments() -> Sequence[str]:
    """Return the arguments that let pip inside the build use the certificates and wheels that it uses outside."""
    arguments: list[str] = []
    if certificate := os.environ.get("PIP_CERT"):
        arguments += ["--volume", f"{certificate}:/run/pip.crt:ro", "--build-arg", "PIP_CERT=/run/pip.crt"]
    if Path(wheels := os.environ.get("PIP_FIND_LINKS", "")).is_absolute():
        arguments += ["--volume", f"{wheels}:/run/wheels:ro", "--build-arg", "PIP_FIND_LINKS=/run/wheels"]
    return arguments


def base_image(buildah: Sequence[str], work: Path) -> str:
    if named := os.environ.get("RLHF_IMAGE_BASE"):
        return named
    checked("debootstrap", "--variant=minbase", "bookworm", str(work / "base"))
    container = checked(*buildah, "from", "scratch").strip()
    checked(*buildah, "add", "--quiet", container, str(work / "base"), "/")
    checked(*buildah, "commit", "--quiet", "--rm", container, "localhost/base:bookworm")
    shutil.rmtree(work / "base")
    return "localhost/base:bookworm"


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    work = Path(tempfile.mkdtemp(prefix="rlhf-image-", dir="/var/tmp"))
    buildah = ("buildah", "--root", str(work / "store"), "--runroot", str(work / "run"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, work)
        # buildah leaves its store mounted on itself.
        stack.callback(subprocess.run, ["umount", "--recursive", str(work / "store" / "overlay")], check=False)
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("TMPDIR", str(work))  # buildah's, many GB
        for name in ("context", "runs", "data"):
            (work / name).mkdir()
        base = base_image(buildah, work)
        checked(
            *buildah,
            *("bud", "--format", "docker", "--isolation", "chroot", "--network", "host", *pip_arguments()),
            *(
                "--build-arg",
                f"BASE={base}",
                "--file",
                "deploy/docker/Dockerfile.cpu",
                "--tag",
                NAME,
                ".",
            ),
            cwd=build_context(work / "context"),
        )
        checked(sys.executable, str(ROOT / "configs" / "quickstart" / "task.py"), "--directory", str(work / "data"))
        shutil.copy(ROOT / "configs" / "quickstart" / "base.yaml", work / "data")
        container = checked(*buildah, "from", NAME).strip()
        root = Path(checked(*buildah, "mount", container).strip())
        stack.callback(checked, *buildah, "rm", "--all")
        for directory in (work, *(p for p in root.parents if p.is_relative_to(work))):
            directory.chmod(0o755)
        checked("chown", "--recursive", "1000:1000", str(work / "runs"), str(work / "data"))
        config = json.loads(checked(*buildah, "inspect", "--type", "image", NAME))["Docker"]["config"]
        yield Image(root=root, config=config, runs=work / "runs", data=work / "data")


def test_the_image_runs_as_a_user_without_privileges(image: Image) -> None:
    assert (image.config["User"], image.config["Cmd"]) == ("1000:1000", ["rlhf", "--help"])
    assert image.config["Healthcheck"] == {"Test": ["NONE"]}
    assert image.run("id", "--user").stdout == "1000\n"


def test_its_command_answers(image: Image) -> None:
    done = image.run(*image.config["Cmd"])
    assert (done.returncode, "Usage: rlhf" in done.stdout) == (0, True), done.stderr


def test_its_root_cannot_be_written(image: Image) -> None:
    for path in ("/x", "/opt/rlhf/x", "/etc/x", "/var/tmp/x"):
        assert "Read-only file system" in image.run("touch", path).stderr
    for path in ("/tmp/x", "/home/rlhf/x", "/dev/shm/x", "/mnt/x"):
        assert image.run("touch", path).returncode == 0


def test_it_holds_neither_secrets_nor_what_built_it(image: Image) -> None:
    found = subprocess.run(["grep", "-rlF", CANARY, str(image.root)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    for path in ("src", "usr/bin/gcc", "usr/bin/cc", "root/.cache", "var/lib/apt/lists/lock"):
        assert not (image.root / path).exists()
    files = [path for path in (image.root / "opt").rglob("*") if not path.is_symlink()]
    assert len(files) > 10_000
    assert [path for path in files if path.stat().st_mode & (stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID)] == []


def test_it_trains_on_a_read_only_root(image: Image) -> None:
    """Check supervised fine-tuning with real Ray and DeepSpeed, without a network, and what is seen of it then."""
    overrides = ("output_dir=/mnt", "model.path=/srv/model", "data.dataset=/srv/demonstrations.jsonl")
    few = ("algorithm.max_steps=2", "algorithm.batch_size=8", "policy.num_ranks=1", "checkpoint.every=2")
    done = image.run("rlhf", "run", "/srv/base.yaml", *overrides, *few)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = image.runs / "quickstart-base"
    assert json.loads((run / "exit.json").read_text())["cause"] == "completed"
    assert list((run / "model").glob("*.safetensors"))
    assert all(path.stat().st_uid == 1000 for path in run.rglob("*"))
    assert (
        'rlhf_run_state{method="sft",run="quickstart-base",state="succeeded"} 1.0'
        in image.run("rlhf", "metrics", "/mnt").stdout
    )
