"""Hosts of a cluster on this machine: namespaces with an address, a hostname, files, processes and an sshd each.

For what only shows between machines: `ray up` over ssh, a host that loses power, one whose link is down, a head that is
gone. Each host sees its own /proc, /root, /tmp and /dev/shm; interpreter, environment and system are this machine's,
and so is its memory. Nothing outside the bridge can be reached from a host. Needs root; `missing()` says what lacks.

    with Hosts(tmp_path, 3) as hosts:
        hosts.ssh(1, "hostname")
        hosts.cut(2)                   # a partition: the link is down, processes go on
        hosts.heal(2)
        hosts.kill(3)                  # its processes die; the kernel still answers their peers with resets
        hosts.cut(3); hosts.kill(3)    # power loss: nobody hears anything
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

INIT = Path(__file__).with_name("host_init.sh")
NEEDED = ("ip", "nsenter", "unshare", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
START_SECONDS = 30  # a host takes 0.3 s on an idle machine
SSHD = """Port 22
ListenAddress {address}
HostKey /run/sshd/hostkey
PidFile /run/sshd/pid
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
PrintMotd no
MaxSessions 100
MaxStartups 100
Subsystem sftp /usr/lib/openssh/sftp-server
"""


def missing() -> str | None:
    """Why there can be no hosts here, or None."""
    if os.geteuid() != 0:
        return "hosts of their own need root"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        return f"hosts of their own need {', '.join(lacking)} (openssh-server, rsync, iproute2)"
    probe = f"rgprobe{os.getpid()}"
    made = _run("ip", "netns", "add", probe, check=False)
    if made.returncode == 0:
        _run("ip", "netns", "del", probe)
        made = _run("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "true", check=False)
    return f"this machine allows no namespaces: {made.stderr.strip()}" if made.returncode else None


class Hosts:
    """`count` hosts, numbered from 1, below `root`. All are started, and none is left, by the `with` block.

    `shell` is what every host's ~/.bashrc holds, a line each; `kept` folders stay visible to the hosts where they lie.
    `addresses[n - 1]` is host n's, `gateway` this machine's on the same bridge.
    """

    made = 0  # by this process

    def __init__(self, root: Path, count: int, *, shell: tuple[str, ...] = (), kept: tuple[str, ...] = ()) -> None:
        self.root, self.count, self.shell = root, count, shell
        self.kept = tuple(dict.fromkeys((sys.base_prefix, os.path.realpath(sys.prefix), *kept)))
        # the owner's process is in the name, for those that a killed owner left; a link's name has 15 characters
        self.name = f"rg{os.getpid():x}{chr(ord('a') + Hosts.made % 26)}"
        Hosts.made += 1
        self.laptop = root / "laptop"  # home of whoever starts the cluster from this machine
        self.key = self.laptop / ".ssh" / "id_ed25519"
        self.network = ""
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def addresses(self) -> list[str]:
        return [self.address(n) for n in range(1, self.count + 1)]

    @property
    def gateway(self) -> str:
        return f"{self.network}.1"

    def address(self, n: int) -> str:
        return f"{self.network}.{10 + n}"

    def host(self, n: int) -> str:
        """Name of host n, its hostname and its network namespace."""
        return f"{self.name}-{n}"

    def folder(self, n: int) -> Path:
        """Files of host n as this machine sees them: root/ is its /root, tmp/ its /tmp."""
        return self.root / self.host(n)

    @property
    def environment(self) -> dict[str, str]:
        """Of a command on this machine: the laptop's home, and the programs of the environment."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        away = ("RAY_ADDRESS", "TMPDIR")
        return {k: v for k, v in os.environ.items() if k not in away} | {"HOME": str(self.laptop), "PATH": path}

    def __enter__(self) -> Hosts:
        sweep()
        self.key.parent.mkdir(parents=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        try:
            self._make_bridge()
            for n in range(1, self.count + 1):
                self.start(n)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, n: int, *, fresh: bool = False) -> None:
        """Switch host n on, with the files it had, or without any if `fresh`; returns once its sshd answers."""
        name, address = self.host(n), self.address(n)
        if fresh:
            shutil.rmtree(self.folder(n), ignore_errors=True)
        self._furnish(n)
        if name not in _run("ip", "netns", "list").stdout.split():
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", f"v{name}", "master", self.name, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")  # and no route: nothing leaves the bridge
        namespaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL"]
        with open(self.folder(n) / "init.log", "ab") as log:
            self.processes[n] = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{name}", "unshare", *namespaces]
                + ["bash", str(INIT), name, str(self.folder(n)), *self.kept],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while not _answers(address):
            if self.processes[n].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"host {name} did not start: {(self.folder(n) / 'init.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self, n: int) -> None:
        """SIGKILL to everything on host n; its link stays as it is."""
        process = self.processes.pop(n)
        process.kill()
        process.wait()
        while self.pids(n):
            time.sleep(0.02)

    def cut(self, n: int) -> None:
        """Take host n's link down: packets in both directions are lost without a word."""
        _run("ip", "link", "set", f"v{self.host(n)}", "down")

    def heal(self, n: int) -> None:
        _run("ip", "link", "set", f"v{self.host(n)}", "up")

    def pids(self, n: int) -> list[int]:
        """Processes on host n, as this machine numbers them, process 1 and sshd among them."""
        found = _run("ip", "netns", "pids", self.host(n), check=False).stdout
        return [int(pid) for pid in found.split()]

    def commands(self, n: int) -> list[str]:
        """Command lines of host n's processes."""
        lines = []
        for pid in self.pids(n):
            with contextlib.suppress(OSError):
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return lines

    def ssh(self, n: int, command: str, timeout: float = 60) -> str:
        """What `command` prints on host n; CalledProcessError when it fails."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5"]
        words = ["ssh", "-n", "-i", str(self.key), *(word for option in options for word in ("-o", option))]
        return _run(*words, f"root@{self.address(n)}", command, timeout=timeout).stdout

    def stop(self) -> None:
        """End every process of every host, and take the network away. Files stay."""
        for n in list(self.processes):
            self.kill(n)
        _remove(self.name)

    def _make_bridge(self) -> None:
        used = set(re.findall(r"inet 10\.77\.(\d+)\.", _run("ip", "-4", "addr").stdout))
        number = next(each for each in (*range(os.getpid() % 200 + 20, 250), *range(20, 250)) if str(each) not in used)
        self.network = f"10.77.{number}"
        _run("ip", "link", "add", self.name, "type", "bridge")
        _run("ip", "addr", "add", f"{self.gateway}/24", "dev", self.name)
        _run("ip", "link", "set", self.name, "up")

    def _furnish(self, n: int) -> None:
        folder = self.folder(n)
        for part, mode in {"root/.ssh": 0o700, "tmp": 0o1777, "etc": 0o755}.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part).chmod(mode)
        (folder / "root").chmod(0o700)
        keys = folder / "root/.ssh/authorized_keys"
        keys.write_text(self.key.with_suffix(".pub").read_text())
        keys.chmod(0o600)
        names = [f"{self.address(k)} {self.host(k)}" for k in range(1, self.count + 1)]
        files: Mapping[str, str] = {
            "hosts": "\n".join(["127.0.0.1 localhost", f"{self.gateway} laptop", *names, ""]),
            "hostname": f"{self.host(n)}\n",
            "resolv.conf": "",
            "sshd_config": SSHD.format(address=self.address(n)),
        }
        for name, text in files.items():
            (folder / "etc" / name).write_text(text)
        if not (folder / "etc/hostkey").exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "etc/hostkey"))
        shell = folder / "root/.bashrc"
        if not shell.exists():
            shell.write_text("".join(f"{line}\n" for line in self.shell))


def sweep() -> None:
    """Remove what a killed test process left: namespaces and bridges are named after their owner's process."""
    text = _run("ip", "netns", "list").stdout + _run("ip", "-o", "link", "show", "type", "bridge").stdout
    for name, owner in set(re.findall(r"\b(rg([0-9a-f]+?)[a-z])(?=[-:@ ])", text)):
        if not Path(f"/proc/{int(owner, 16)}").exists():
            _remove(name)


def _remove(name: str) -> None:
    for space in _run("ip", "netns", "list").stdout.split():
        if re.fullmatch(rf"{name}-\d+", space):
            for pid in _run("ip", "netns", "pids", space, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "del", space, check=False)
            _run("ip", "link", "del", f"v{space}", check=False)
    _run("ip", "link", "del", name, check=False)


def _answers(address: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((address, 22)) == 0


def _run(*words: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=check, timeout=timeout)
