"""A cluster of real hosts: started over ssh, a job submitted, hosts cut off, killed and joined, the head lost, all ended.

tests/hosts/hosts.py makes the hosts. What is checked last is what matters: every step of the run has seen the batch
that the order computed here says, once, whatever happened to the hosts.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests import s3_server
from tests.conftest import S3
from tests.drills.program import ROOT
from tests.hosts.conftest import need_hosts
from tests.hosts.hosts import Hosts
from tests.train.running import letters

pytestmark = pytest.mark.timeout(900)

BIN = Path(sys.executable).parent
# of a host: one training worker of two CPUs and one CPU for what reads
SIZES = "--num-cpus=3 --memory=2000000000 --object-store-memory=200000000"
KILLED, CUT = 30, 45  # seconds that training may stand still


class Laptop:
    """Who starts the cluster and submits, from this machine."""

    def __init__(self, hosts: Hosts, root: Path) -> None:
        self.hosts, self.root = hosts, root
        self.env = {**hosts.environment, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
        self.tunnel: subprocess.Popen[bytes] | None = None
        self.port = 0

    def run(self, *words: str, timeout: float = 300) -> str:
        """What a command of the environment prints; it must succeed."""
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, (words, done.stdout[-4000:], done.stderr[-4000:])
        return done.stdout

    def raygpt(self, *words: str) -> str:
        return self.run("python", "-m", "raygpt.cli", *words)

    def connect(self) -> None:
        """A way to the head's dashboard through ssh, as cluster/on-premise.yaml says."""
        self.disconnect()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        self.tunnel = subprocess.Popen(
            ["ssh", "-N", "-L", f"{self.port}:127.0.0.1:8265", "-i", str(self.hosts.key)]
            + [word for option in options for word in ("-o", option)]
            + [f"root@{self.hosts.address(1)}"]
        )

    def disconnect(self) -> None:
        if self.tunnel is not None:
            self.tunnel.kill()
            self.tunnel.wait()
            self.tunnel = None

    def submit(self, identifier: str, words: list[str]) -> Job:
        runtime = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}, "excludes": [".venv/", ".cache/", "runs/", ".git/"]}'
        address = f"--address=http://127.0.0.1:{self.port}"
        self.run(
            "ray", "job", "submit", "--no-wait", address, "--submission-id", identifier, "--working-dir", ".",
            "--runtime-env-json", runtime, "--", "python", "jobs/pretrain.py", *words,
        )  # fmt: skip
        return Job(self, identifier, address)


class Job:
    """A submitted job, its log followed as `ray job logs --follow` does. `lines` are (time of arrival, line)."""

    def __init__(self, laptop: Laptop, identifier: str, address: str) -> None:
        self.laptop, self.identifier, self.address = laptop, identifier, address
        self.log = laptop.root / f"{identifier}.log"
        with open(self.log, "wb") as out:
            self.follower = subprocess.Popen(
                [str(BIN / "ray"), "job", "logs", "--follow", address, identifier],
                env=laptop.env, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def step(self) -> int:
        """The newest step that the log has."""
        found = re.findall(r"step (\d+)/", self.text())
        return int(found[-1]) if found else 0

    def wait(self, what: Callable[[], object] | str, timeout: float) -> float:
        """Seconds until `what`, a text of the log or a condition, is there."""
        began = time.monotonic()
        there = (lambda: what in self.text()) if isinstance(what, str) else what
        while not there():
            assert time.monotonic() - began < timeout, f"{what} did not come in {timeout} s:\n{self.text()[-5000:]}"
            time.sleep(0.2)
        return time.monotonic() - began

    def stood_still(self, timeout: float) -> float:
        """Seconds from now until a step is logged that was trained after workers had been started anew."""
        starts = self.text().count("Going on from step")
        began = time.monotonic()
        self.wait(lambda: self.text().count("Going on from step") > starts, timeout)
        self.wait(lambda: re.search(r"step \d+/", self.text().rpartition("Going on from step")[2]), timeout)
        return time.monotonic() - began

    def stop(self) -> None:
        self.laptop.run("ray", "job", "stop", self.address, self.identifier)

    def close(self) -> None:
        self.follower.kill()
        self.follower.wait()


def cluster_file(hosts: Hosts, workers: list[int]) -> Path:
    """cluster/on-premise.yaml with these hosts' addresses and key, and no more of this machine than a host would have."""
    cluster = yaml.safe_load((ROOT / "cluster/on-premise.yaml").read_text())
    cluster["provider"] |= {"head_ip": hosts.address(1), "worker_ips": [hosts.address(n) for n in workers]}
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    cluster["cluster_name"] = hosts.name
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        cluster[key] = [command.replace("ray start", f"ray start {SIZES}") for command in cluster[key]]
    path = hosts.root / "on-premise.yaml"
    path.write_text(yaml.safe_dump(cluster))
    return path


def install(hosts: Hosts, n: int) -> None:
    """What the setup commands would leave: the environment of this machine, which has the versions of constraints.txt."""
    home = hosts.folder(n) / "root/raygpt"
    home.mkdir(exist_ok=True)
    (home / ".venv").symlink_to(Path(sys.prefix).resolve())
    (home / "installed.txt").write_text((ROOT / "constraints.txt").read_text())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    need_hosts()
    with Hosts(tmp_path / "hosts", 3) as made:
        yield made


@pytest.fixture
def store(hosts: Hosts, tmp_path: Path) -> Iterator[S3]:
    """S3 on the bridge's address, its keys in every host's environment, as they are in a user's ~/.bashrc."""
    try:
        with s3_server.running(tmp_path / "s3", hosts.gateway) as facts:
            server = S3(facts)
            for n in range(1, hosts.count + 1):
                with open(hosts.folder(n) / "root/.bashrc", "a") as shell:
                    shell.writelines(f"export {key}={value}\n" for key, value in server.env.items())
                install(hosts, n)
            yield server
    except s3_server.ServerError as error:
        pytest.fail(str(error), pytrace=False)


def test_a_run_outlives_its_hosts(hosts: Hosts, store: S3, tmp_path: Path) -> None:
    bucket = store.make_bucket("hosts")
    letters(tmp_path / "shards", 60_000)
    for file in (tmp_path / "shards").iterdir():
        store.client.upload_file(str(file), "hosts", f"shards/{file.name}")
    words = [
        "--scale.address=auto", "--scale.num_workers=[1,3]", "--scale.cpus_per_worker=2", "--scale.use_gpu=false",
        f"--data.train={bucket}/shards", f"--data.val={bucket}/shards", f"--run.storage={bucket}/runs", "--run.name=r",
        "--model.preset=nano", "--model.n_layer=2", "--model.n_embd=64", "--model.seq_len=64",
        "--train.global_batch_tokens=1536", "--train.micro_batch_size=4", "--train.max_steps=100000",
        "--train.checkpoint_every=25", "--train.log_every=5", "--train.log_batch_digest=true", "--eval.every=1000",
        "--optim.schedule=constant", "--track.wandb=off", "--train.max_failures=10",
    ]  # fmt: skip
    file = cluster_file(hosts, [2])
    laptop = Laptop(hosts, tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(laptop.disconnect)
        t = time.monotonic()

        def note(*a):
            print(f"{time.monotonic() - t:7.1f}", *a, flush=True)

        said = laptop.raygpt("cluster", "up", str(file))
        note(said[-900:])
        laptop.connect()
        job = laptop.submit("first", words)
        note("submitted")
        stack.callback(job.close)
        job.wait("2 workers on cpu", 120)
        job.wait(lambda: job.step() >= 20, 60)
        note("two workers at step", job.step())
        hosts.ssh(3, f"bash -lic 'ray start {SIZES} --address={hosts.address(1)}:6379'")
        note("third host joined", job.step())
        job.wait("3 workers on cpu", 150)
        note("used", job.step())
        job.wait(lambda: job.step() >= 100, 60)
        hosts.cut(3)
        note("cut 3", job.step())
        note("stood", job.stood_still(200))
        hosts.kill(2)
        note("kill 2", job.step())
        note("stood", job.stood_still(200))
        note("job log", job.text()[-3000:])
        job.stop()
        note("stopped")
        note(job.text()[-1000:])
        note(laptop.raygpt("cluster", "down", str(file)))
