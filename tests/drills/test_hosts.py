"""A cluster of hosts: started over ssh, a job submitted, hosts cut off, killed and joined, the head lost, all ended.

tests/hosts/hosts.py makes the hosts. What is checked last is what matters: every step of the run has seen the batch
that the order computed here says, once, whatever happened to the hosts.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from raygpt.cluster.down import ray_processes
from tests import s3_server
from tests.conftest import S3
from tests.drills.program import ROOT
from tests.hosts.conftest import need_hosts
from tests.hosts.hosts import Hosts
from tests.train.running import letters

pytestmark = pytest.mark.timeout(1200)

BIN = Path(sys.executable).parent
# of a host: one training worker of two CPUs and one CPU for what reads
SIZES = "--num-cpus=3 --memory=2000000000 --object-store-memory=200000000"
KILLED, CUT = 30, 45  # seconds that training may stand still
PATIENCE = 240  # seconds until a drill gives up waiting


class Laptop:
    """Who starts the cluster and submits, from this machine."""

    def __init__(self, hosts: Hosts, root: Path) -> None:
        self.hosts, self.root = hosts, root
        self.env = {
            **hosts.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
        }
        self.tunnel: subprocess.Popen[bytes] | None = None
        self.port = 0

    def run(self, *words: str, timeout: float = 600) -> str:
        """What a command of the environment prints; it must succeed."""
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode:
            raise AssertionError(f"{words} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
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
        runtime = (
            '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}, "excludes": [".venv/", ".cache/", "runs/", ".git/"]}'
        )
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
            waited, ended = time.monotonic() - began, self.follower.poll() is not None and not there()
            assert waited < timeout and not ended, f"{what} did not come in {waited:.0f} s:\n{self.text()[-5000:]}"
            time.sleep(0.2)
        return time.monotonic() - began

    def stood_still(self, timeout: float) -> float:
        """Seconds from now until a step is logged that was trained after workers had been started anew."""
        starts = self.text().count("Going on from step")
        began = time.monotonic()
        self.wait(lambda: self.text().count("Going on from step") > starts, timeout)
        self.wait(lambda: self.trained_since("Going on from step"), timeout)
        return time.monotonic() - began

    def trained_since(self, text: str) -> bool:
        """Whether a step has been logged after the last time that the log says `text`."""
        return re.search(r"step \d+/", self.text().rpartition(text)[2]) is not None

    def stop(self) -> None:
        self.laptop.run("ray", "job", "stop", self.address, self.identifier)

    def close(self) -> None:
        self.follower.kill()
        self.follower.wait()


def cluster_file(hosts: Hosts, workers: list[int]) -> Path:
    """cluster/on-premise.yaml with these hosts' addresses and key, and the CPUs and memory of small hosts."""
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
    """What the setup commands leave: an environment, here this machine's, with the versions of constraints.txt."""
    home = hosts.folder(n) / "root/raygpt"
    home.mkdir(exist_ok=True)
    (home / ".venv").symlink_to(Path(sys.prefix).resolve())
    installed = (ROOT / "constraints.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    (home / "installed.txt").write_text(installed)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    need_hosts()
    # Ray's workers run at nice 15 else, and beside another drill hardly at all; the memory that each host sees, and
    # Ray's monitor kills for, is the whole machine's
    shell = "export RAY_worker_niceness=0 RAY_memory_monitor_refresh_ms=0"
    with Hosts(tmp_path / "hosts", 3, shell=(shell,)) as made:
        yield made
        name = made.name
    for left in Path("/tmp/ray").glob(f"cluster-{name}.*"):  # what `ray up` remembers of a cluster's hosts
        left.unlink()


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


def digest_of_step(train: str) -> Callable[[int], str]:
    """The digest of any step's batch, from the order alone: the tokens of one process, no workers, no cluster."""
    import torch

    from raygpt.config.settings import load_config
    from raygpt.data.reader import TokenReader
    from raygpt.parallel.distributed import World
    from raygpt.train.resolve import resolve

    options = dict(word.lstrip("-").split("=", 1) for word in TRAINING)
    options |= {"data.train": train, "data.val": train, "run.storage": str(Path(train).parent), "run.name": "oracle"}
    order = resolve(load_config("pretrain", None, options, {})).plan.order
    reader, alone = TokenReader(train), World.join(torch.device("cpu"))

    def digest(step: int) -> str:
        epoch, inside = order.position(step - 1)  # record k is written after the k-th step
        starts = order.starts(epoch, order.rows(epoch, inside))
        return alone.batch_digest(reader.read_rows(starts, order.seq_len + 1))

    return digest


TRAINING = [
    "--scale.num_workers=[1,3]", "--scale.cpus_per_worker=2", "--scale.use_gpu=false",
    "--model.preset=nano", "--model.n_layer=2", "--model.n_embd=64", "--model.seq_len=64",
    "--train.global_batch_tokens=1536", "--train.micro_batch_size=4", "--train.max_steps=100000",
    "--train.checkpoint_every=25", "--train.log_every=1", "--train.log_batch_digest=true", "--train.max_failures=10",
    "--eval.every=100000", "--optim.schedule=constant", "--track.wandb=off",
]  # fmt: skip


def test_a_run_outlives_its_hosts(hosts: Hosts, store: S3, tmp_path: Path) -> None:
    bucket = store.make_bucket("hosts")
    train = letters(tmp_path / "shards", 60_000)
    for file in (tmp_path / "shards").iterdir():
        store.client.upload_file(str(file), "hosts", f"shards/{file.name}")
    places = [f"--data.train={bucket}/shards", f"--data.val={bucket}/shards", f"--run.storage={bucket}/runs"]
    words = ["--scale.address=auto", "--run.name=r", *places, *TRAINING]
    file = str(cluster_file(hosts, [2]))
    laptop = Laptop(hosts, tmp_path)
    began = time.monotonic()

    def note(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s {what}", flush=True)

    with contextlib.ExitStack() as stack:
        stack.callback(laptop.disconnect)

        said = laptop.raygpt("cluster", "up", file)
        assert "2 of 2 nodes" in said and all(phase in said for phase in ("API", "boot", "setup", "Ray", "workers"))
        kept = json.loads((hosts.folder(1) / "root/.raygpt/cluster.json").read_text())
        assert kept["cluster_name"] == hosts.name and [each["name"] for each in kept["phases"]][-1] == "workers"
        note(said)

        laptop.connect()
        job = laptop.submit("first", words)
        stack.callback(job.close)
        job.wait("2 workers on CPU", PATIENCE)
        job.wait(lambda: job.step() >= 30, PATIENCE)
        note(f"two hosts train, step {job.step()}")

        # as docs/cluster/on-premise.md has it: what another worker has, and one command
        shutil.copytree(hosts.folder(2) / "root/.ray", hosts.folder(3) / "root/.ray", dirs_exist_ok=True)
        start = f"RAY_AUTH_MODE=token ~/raygpt/.venv/bin/ray start {SIZES} --address={hosts.address(1)}:6379"
        hosts.ssh(3, f"bash --login -c -i 'source ~/.bashrc; {start}'")
        note("a third host joins")
        job.wait("3 workers on CPU", PATIENCE)
        job.wait(lambda: job.trained_since("3 workers on CPU"), PATIENCE)
        note(f"it is used, step {job.step()}")

        hosts.cut(3)
        cut = job.stood_still(PATIENCE)
        note(f"cut off: stood still for {cut:.1f} s, goes on, step {job.step()}")

        hosts.kill(2)
        killed = job.stood_still(PATIENCE)
        note(f"killed: stood still for {killed:.1f} s, goes on, step {job.step()}")

        hosts.kill(1)
        note("the head is killed")
        hosts.start(1)
        hosts.start(2)
        hosts.heal(3)
        file = str(cluster_file(hosts, [2, 3]))  # where the third host belongs by now
        assert "3 of 3 nodes" in laptop.raygpt("cluster", "up", file)
        laptop.connect()
        note("the head is back")
        again = laptop.submit("second", words)
        stack.callback(again.close)
        again.wait("Going on from step", PATIENCE)
        again.wait(lambda: again.trained_since("Going on from step"), PATIENCE)
        note(f"the same command goes on, step {again.step()}")
        again.stop()
        again.wait("checkpoint saved in", PATIENCE)
        note("stopped and saved")

        laptop.raygpt("cluster", "down", file)
        for n in (1, 2, 3):
            assert ray_processes("\n".join(hosts.commands(n))) == [], n
        note("down, and nothing is left")

    lines = store.client.get_object(Bucket="hosts", Key="runs/r/metrics.jsonl")["Body"].read().splitlines()
    rows = [json.loads(line) for line in lines]
    digest = digest_of_step(train)
    assert [row["step"] for row in rows] == list(range(1, rows[-1]["step"] + 1))
    assert [row["batch_digest"] for row in rows] == [digest(row["step"]) for row in rows]
    # what one host trained alone may have been trained again after the head was lost: the log has it
    assert {row["world_size"] for row in rows} >= {2, 3} and "\n1 worker on CPU" in job.text()
    assert cut <= CUT and killed <= KILLED
