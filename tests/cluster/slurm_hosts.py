"""A real Slurm on this machine: a controller, and hosts with a network, host name, processes, /tmp and /dev/shm each.

    with SlurmHosts.open() as slurm:
        slurm.kill("n2")                    SIGKILL to every process of a host, as when its power is cut
        slurm.boot("n2")                    the host comes back, with an empty /tmp
        slurm.inside("n2", "ls /tmp")       a command there

A host is a set of Linux namespaces, which takes root. The hosts share this machine's disk but for /tmp; `slurm.shared`
is their shared storage. No GPUs are pretended.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
NETWORK, BRIDGE = "10.213.9", "rlhfbr0"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged", "ip", "nsenter", "unshare")
PACKAGES = "slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins iproute2"
CPUS = 4  # of a host, whatever this machine has
CREDENTIAL_S = 5  # Slurm starts a requeued job only after the credentials of its last start have expired


def why_not() -> str:
    """Return why Slurm cannot be started here; empty if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install -y --no-install-recommends {PACKAGES}"
    return "" if os.geteuid() == 0 else "it takes root to make hosts out of namespaces"


class SlurmHosts:
    """Controller and hosts n1, n2 …; everything that they start ends with them."""

    def __init__(self, directory: Path, hosts: int) -> None:
        self.directory, self.names = directory, [f"n{i + 1}" for i in range(hosts)]
        self.shared = directory / "shared"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    @contextmanager
    def open(cls, hosts: int = 3) -> Iterator[SlurmHosts]:
        directory = Path(tempfile.mkdtemp(prefix="rlhf-slurm-", dir="/var/tmp"))  # hosts have a /tmp of their own
        slurm = cls(directory, hosts)
        before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
        os.environ.update(SLURM_CONF=str(directory / "slurm.conf"), PATH=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        try:
            slurm._start()
            yield slurm
        finally:
            slurm._stop()
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ.update({name: value} if value is not None else {})
            shutil.rmtree(directory, ignore_errors=True)

    # ---------------------------------------------------------------------------------------- hosts

    def address(self, host: str) -> str:
        return f"{NETWORK}.{self.names.index(host) + 1}"

    def boot(self, host: str) -> None:
        """Start a host and its slurmd, and wait until Slurm has it."""
        directory = self.directory
        kept, shown = ("", "")
        if CHECKOUT.is_relative_to("/tmp"):  # it stays visible under the host's own /tmp
            kept = f"mkdir -p {directory}/checkout; mount --bind {CHECKOUT} {directory}/checkout; "
            shown = f"mkdir -p {CHECKOUT}; mount --bind {directory}/checkout {CHECKOUT}; "
        script = (
            f"hostname {host}; mount -t proc proc /proc; mount -t tmpfs tmpfs /dev/shm; "
            f"{kept}mount -t tmpfs tmpfs /tmp; {shown}"
            f"mount --bind {directory}/hosts-{host} /etc/hosts; exec slurmd -N {host} -D -f {directory}/slurm.conf"
        )
        apart = ["unshare", "--uts", "--pid", "--mount", "--fork", "--propagation", "private", "--kill-child"]
        self._run(host, ["nsenter", f"--net=/run/netns/{_netns(host)}", *apart, "sh", "-c", script])
        assert _eventually(lambda: self.state(host) in ("idle", "mixed", "allocated"), 30), self.words(host)

    def kill(self, host: str) -> None:
        """End every process of a host at once."""
        process = self._processes.pop(host)
        process.kill()  # its child is the first process of the host, which takes all others along
        process.wait()

    def state(self, host: str) -> str:
        """Return Slurm's word for the state of a host, such as idle, mixed or down."""
        return _output("sinfo", "--noheader", f"--nodes={host}", "--format=%T").rstrip("*~#!%$@^-")

    def inside(self, host: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a host."""
        return subprocess.run(self._entered(host, command), capture_output=True, text=True, timeout=60)

    def _entered(self, host: str, command: str) -> list[str]:
        (child,) = Path(f"/proc/{(pid := self._processes[host].pid)}/task/{pid}/children").read_text().split()
        return ["nsenter", f"--target={child}", "--net", "--uts", "--pid", "--mount", "sh", "-c", command]

    # ---------------------------------------------------------------------------------------- start and end

    def words(self, *names: str) -> str:
        """Return the last lines of what these processes printed."""
        logs = [self.directory / "log" / f"{name}.log" for name in (*names, "slurmctld")]
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs if log.exists())

    def _start(self) -> None:
        for name in ("log", "run", "spool", "shared"):
            (self.directory / name).mkdir()
        self._make_network()
        self._configure()
        run = self.directory / "run"
        (run / "munge.key").touch(0o600)
        (run / "munge.key").write_bytes(os.urandom(1024))
        own = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munged.seed"}
        options = [f"--{option}={run / name}" for option, name in own.items()]
        self._run("munged", ["munged", "--foreground", "--force", *options, f"--log-file={run / 'munged.log'}"])
        assert _eventually(lambda: (run / "munge.socket").exists(), 10), self.words("munged")
        self._run("slurmctld", ["slurmctld", "-D", "-c"])
        assert _eventually(lambda: _answers(), 20), self.words()
        for host in self.names:
            self.boot(host)

    def _stop(self) -> None:
        for name in reversed(self._processes):
            process = self._processes[name]
            process.send_signal(signal.SIGKILL)
            process.wait()
        self._remove_network()

    def _run(self, name: str, command: list[str]) -> None:
        with (self.directory / "log" / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _configure(self) -> None:
        directory, here = self.directory, socket.gethostname()
        others = "".join(f"{self.address(host)} {host}\n" for host in self.names)
        for host in self.names:  # as Debian does it, a host's own name leads to its loopback interface
            own = f"127.0.0.1 localhost\n127.0.1.1 {host}\n{NETWORK}.254 {here}\n"
            (directory / f"hosts-{host}").write_text(own + others)
        (directory / "cgroup.conf").write_text("CgroupAutomount=no\n")
        settings = {
            "ClusterName": "rlhf",
            "SlurmctldHost": f"{here}({NETWORK}.254)",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={directory}/run/munge.socket,cred_expire={CREDENTIAL_S}",
            "CryptoType": None,
            "SlurmctldPort": 16917,
            "SlurmdPort": 16918,
            "SrunPortRange": "60201-60400",
            "StateSaveLocation": f"{directory}/spool/ctld",
            "SlurmdSpoolDir": f"{directory}/spool/%n",
            "SlurmctldPidFile": f"{directory}/run/slurmctld.pid",
            "SlurmdPidFile": f"{directory}/run/slurmd-%n.pid",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "ReturnToService": 2,
            "SlurmdParameters": "config_overrides",
            "SlurmdTimeout": 20,
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "KillWait": 30,
        }
        lines = [f"{name}={value}" for name, value in settings.items() if value is not None]
        lines += [f"NodeName={h} NodeAddr={self.address(h)} CPUs={CPUS} RealMemory=24000" for h in self.names]
        lines += [f"PartitionName=main Nodes={','.join(self.names)} Default=YES MaxTime=60 State=UP"]
        (directory / "slurm.conf").write_text("\n".join(lines) + "\n")
        (directory / "spool" / "ctld").mkdir()

    def _make_network(self) -> None:
        self._remove_network()  # of a test that was killed
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for number, host in enumerate(self.names):
            space, cable = _netns(host), _cable(number)
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", BRIDGE)
            _ip("link", "set", cable, "up")
            _ip("-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def _remove_network(self) -> None:
        for number, host in enumerate(self.names):  # a namespace lives on for minutes, as long as its sockets close
            for command in (["link", "del", _cable(number)], ["netns", "del", _netns(host)]):
                with suppress(subprocess.CalledProcessError):
                    _ip(*command)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", BRIDGE)


def _netns(host: str) -> str:
    return f"rlhf-{host}"


def _cable(number: int) -> str:
    return f"rlhfv{number}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def _answers() -> bool:
    return subprocess.run(["scontrol", "ping"], capture_output=True, text=True).stdout.rstrip().endswith("UP")


def _eventually(condition: Callable[[], bool], within_s: float) -> bool:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True
