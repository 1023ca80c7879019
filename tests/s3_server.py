"""An S3 server for tests and drills: OpenStack Swift with its s3api, from wheels, on loopback, without root.

Swift is a production object store: it checks signatures, refuses unknown buckets and answers 503 when a part of it
hangs, which a mock does not. It lives in an environment of its own, `.cache/swift-venv`, so that its pins never meet
the project's. Nothing but the standard library is imported here: the Makefile runs this file with any Python 3.

    python tests/s3_server.py install            build .cache/swift-venv (nothing to do where it is there)
    python tests/s3_server.py serve [FOLDER [ADDRESS]]    run a server until standard input closes or Ctrl-C
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SWIFT = "swift==2.38.3"
KEY, SECRET, REGION = "test:tester", "testing", "us-east-1"
CACHE = Path(__file__).resolve().parent.parent / ".cache"
VENV = CACHE / "swift-venv"
START_SECONDS = 60
PARTS = ("object", "container", "account", "proxy")

# one ring of 2^4 partitions, one replica, one device for each kind of server
RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, ports = sys.argv[1], dict(zip(("object", "container", "account"), sys.argv[2:]))
for kind, port in ports.items():
    builder = RingBuilder(4, 1, 1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{kind}.ring.gz")
"""

STORAGE_CONF = """
[DEFAULT]
devices = {root}/dev
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 1
user = {user}
swift_dir = {root}/etc
log_level = WARNING
# the file system's own reserve is enough: Swift's default refuses writes on a disk that is 99 % full
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY_CONF = """
[DEFAULT]
bind_ip = {address}
bind_port = {port}
workers = 2
user = {user}
swift_dir = {root}/etc
log_level = WARNING
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth bulk slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
# a paused object server is answered with 503 after these seconds (10 is Swift's default), before the 3 s after
# which the AWS SDK gives an answer up ...
node_timeout = 2
recoverable_node_timeout = 2
# ... and is asked again at once when it is back, rather than after a minute of suppression
error_suppression_interval = 0.5
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


class ServerError(RuntimeError):
    """The server could not be installed or started; the message says why and shows the end of its log."""


def install() -> Path:
    """Folder with Swift's executables; builds the environment once, also when several processes ask at once."""
    stamp = VENV / ".installed"
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "swift-venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != SWIFT:
            print(f"installing {SWIFT} (the tests' S3 server) into {VENV.relative_to(CACHE.parent)}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
            pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--no-input", SWIFT]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                raise ServerError(f"pip could not install {SWIFT}, the S3 server of the tests:\n{done.stderr[-2000:]}")
            stamp.write_text(SWIFT)
    return VENV / "bin"


def check_xattrs(folder: Path) -> None:
    """Swift keeps an object's metadata in user extended attributes. ServerError where `folder` has none."""
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        try:
            os.setxattr(probe.name, "user.swift.probe", b"1")
        except (OSError, AttributeError) as error:
            raise ServerError(
                f"{folder} has no user extended attributes ({error}), which the tests' S3 server needs: "
                "point TMPDIR at a folder on ext4, xfs or btrfs."
            ) from error


@dataclass
class Server:
    """A running server. `stop` ends its processes and no others; the data stays in `root` for another start."""

    root: Path
    address: str = "127.0.0.1"  # of the proxy, which clients talk to; the others stay on loopback
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.ports['proxy']}"

    def start(self) -> Server:
        bin_folder = install()
        for folder in ("etc", "dev/d1", "log"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        check_xattrs(self.root / "dev")
        self.ports = self.ports or dict(zip(PARTS, _free_ports(len(PARTS)), strict=True))
        self._configure(bin_folder)
        for part in PARTS:
            command = [str(bin_folder / f"swift-{part}-server"), str(self.root / "etc" / f"{part}-server.conf"), "-v"]
            with open(self.root / "log" / f"{part}.log", "ab") as log:
                # a session of its own: the signals of `pause` and `stop` reach the server's own worker processes too
                self.processes[part] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        self._wait()
        return self

    def _configure(self, bin_folder: Path) -> None:
        etc, user = self.root / "etc", _user()
        hashes = "[swift-hash]\nswift_hash_path_prefix = t\nswift_hash_path_suffix = t\n"
        (etc / "swift.conf").write_text(hashes + "[storage-policy:0]\nname = one\ndefault = yes\n")
        for part in PARTS:
            text = PROXY_CONF if part == "proxy" else STORAGE_CONF
            text = text.format(root=self.root, address=self.address, port=self.ports[part], user=user, kind=part)
            (etc / f"{part}-server.conf").write_text(text)
        ports = [str(self.ports[kind]) for kind in ("object", "container", "account")]
        command = [str(bin_folder / "python"), "-W", "ignore", "-c", RINGS, str(etc), *ports]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ServerError(f"Swift's rings could not be built:\n{done.stderr[-2000:]}")

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        waiting = list(PARTS)
        while waiting:
            part = waiting[0]
            if any(process.poll() is not None for process in self.processes.values()) or time.monotonic() > deadline:
                logs = "\n".join(f"{p}: {_tail(self.root / 'log' / f'{p}.log')}" for p in PARTS)
                self.stop()
                raise ServerError(f"the tests' S3 server did not start ({part}):\n{logs}")
            if part == "proxy":
                up = _healthy(f"{self.endpoint}/healthcheck")
            else:
                up = _listens(self.ports[part])
            if up:
                waiting.pop(0)
            else:
                time.sleep(0.1)

    def signal(self, part: str, number: signal.Signals) -> None:
        """Send a signal to one part (`object`, `container`, `account` or `proxy`) with its worker processes."""
        os.killpg(self.processes[part].pid, number)

    def stop(self) -> None:
        for part, process in self.processes.items():
            with contextlib.suppress(ProcessLookupError):
                self.signal(part, signal.SIGCONT)
                self.signal(part, signal.SIGTERM)
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                pass
            with contextlib.suppress(ProcessLookupError):
                self.signal(part, signal.SIGKILL)
            process.wait()
        self.processes.clear()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-800:].strip() if log.exists() else "no log"


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def serve(root: Path, address: str = "127.0.0.1") -> None:
    """Run a server below `root` until standard input closes: it ends with its starter, even a killed one."""
    server = Server(root, address).start()
    facts = {"endpoint": server.endpoint, "pids": {part: process.pid for part, process in server.processes.items()}}
    try:
        print(json.dumps({**facts, "key": KEY, "secret": SECRET, "region": REGION}), flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


@contextlib.contextmanager
def running(root: Path, address: str = "127.0.0.1") -> Iterator[dict]:
    """The facts `serve` prints, of a server that runs in a process of its own as long as the block does."""
    command = [sys.executable, str(Path(__file__).resolve()), "serve", str(root), address]
    install()
    keeper = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdin and keeper.stdout and keeper.stderr
    try:
        line = keeper.stdout.readline()
        if not line:
            raise ServerError(keeper.stderr.read()[-4000:])
        yield json.loads(line)
    finally:
        keeper.stdin.close()
        keeper.wait(60)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if sys.argv[1:2] == ["install"]:
        install()
    elif sys.argv[1:2] == ["serve"]:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="raygpt-s3-")).resolve()
        serve(folder, *sys.argv[3:4])
    else:
        sys.exit(__doc__)
