"""Lambda end to end without Lambda: `ray up` through the provider, at a stand-in whose machines are hosts here.

The head's own autoscaler launches workers for a load and ends them when they idle; `ray down` ends the head. Meanwhile
the first region has no room, the answer to a worker's launch is lost, the API answers 429 and 500 and nothing at all,
and laptop and head ask it at once.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.lambda_server import KEY, Cloud, Faults, serve
from tests.conftest import ROOT
from tests.hosts.conftest import need_hosts
from tests.hosts.hosts import Hosts

pytestmark = pytest.mark.timeout(600)

BIN = Path(sys.executable).parent
LOAD = """
import ray, socket, time
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_gpus=8)
def where():
    while sum(node["Alive"] for node in ray.nodes()) < 3:  # the one worker waits for the other
        time.sleep(0.5)
    time.sleep(2)
    return socket.gethostname()
print("LOAD", len(set(ray.get([where.remote() for _ in range(6)], timeout=240))))
"""


class Machines:
    """The hosts as the stand-in's pool: started when a machine boots, killed when it ends."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts, self.lock = hosts, threading.Lock()
        for n in range(1, hosts.count + 1):
            hosts.kill(n)
        self.free = list(range(1, hosts.count + 1))

    def start(self) -> str:
        with self.lock:
            n = self.free.pop(0)
        self.hosts.start(n, fresh=True)
        return self.hosts.address(n)

    def end(self, address: str) -> None:
        n = self.hosts.addresses.index(address) + 1
        self.hosts.kill(n)
        with self.lock:
            self.free.append(n)


def cluster_file(hosts: Hosts) -> Path:
    """cluster/lambda-8xa100.yaml, with what differs on hosts that have no internet, no GPU and little memory."""
    cluster: dict[str, Any] = yaml.safe_load((ROOT / "cluster/lambda-8xa100.yaml").read_text())
    cluster |= {"idle_timeout_minutes": 0.25, "initialization_commands": [], "setup_commands": []}
    cluster["provider"]["regions"] = ["us-east-1", "us-west-1"]
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    for kind in ("head", "worker"):
        cluster["available_node_types"][kind]["resources"] |= {"CPU": 1, "memory": 2_000_000_000}
        key = f"{kind}_start_ray_commands"
        words = [word for command in cluster[key] for word in command.split(" ") if "object-store-memory" in word]
        # three hosts on two cores: nobody looks at the dashboard, and a host may be slow to answer
        changes = {
            words[0]: "--object-store-memory=100000000",
            "--dashboard-host=127.0.0.1": "--include-dashboard=false",
        }
        changes |= {"RAY_health_check_timeout_ms=5000": "RAY_health_check_timeout_ms=30000"}
        for old, new in changes.items():
            cluster[key] = [command.replace(old, new) for command in cluster[key]]
    path = hosts.root / "lambda-8xa100.yaml"
    path.write_text(yaml.safe_dump(cluster, sort_keys=False))
    return path


def wait(what: Callable[[], bool], seconds: float, told: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, told()
        time.sleep(0.2)


@pytest.mark.long
def test_up_grow_idle_and_down_leave_no_machine(tmp_path: Path) -> None:
    need_hosts()
    own = "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_agent_register_timeout_ms=120000"
    shell = f"export PATH={BIN}:$PATH {own} PYTHONPATH=$HOME/raygpt"
    with Hosts(tmp_path, 3, shell=(shell,)) as hosts:
        machines = Machines(hosts)
        faults = Faults(
            script={
                # head: taken elsewhere; first worker: the answer is lost, it is found by its tag
                "launch": ["", "lost"],
                "instances": ["", "storm", "", "", "error", "", "", "lost"],
            }
        )
        cloud = Cloud(
            faults=faults, capacity={"us-east-1": 0, "us-west-1": 9}, boot_seconds=1.0,
            start_host=machines.start, end_host=machines.end,
        )  # fmt: skip
        home = hosts.laptop
        (home / ".config/raygpt/lambda").mkdir(parents=True)
        (home / ".config/raygpt/lambda/key").write_text(KEY)
        (home / ".config/raygpt/lambda/key").chmod(0o600)
        file = str(cluster_file(hosts))
        with serve(cloud, hosts.gateway) as url:
            env = {**hosts.environment, "PYTHONPATH": str(ROOT), "LAMBDA_API_URL": url, "RAY_AUTH_MODE": "token"}
            env |= {"RAY_USAGE_STATS_ENABLED": "0", "XDG_CACHE_HOME": str(home / ".cache")}

            def logs() -> str:
                found = list(tmp_path.glob("rg*/tmp/ray/session_2*/logs/monitor.log"))
                lines = found[0].read_text().splitlines() if found else []
                return "\n".join(line for line in lines if "legacy field" not in line)[-8000:]

            def ray(*words: str, seconds: float = 300) -> str:
                done = subprocess.run(
                    [str(BIN / "ray"), *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds
                )
                assert done.returncode == 0, (
                    words,
                    done.stdout[-4000:],
                    done.stderr[-4000:],
                    cloud.requests[-20:],
                    logs(),
                )
                return done.stdout

            ray("get-auth-token", "--generate")
            ray("up", "-y", "--no-config-cache", file)
            (head,) = cloud.live()
            assert head.name == "raygpt raygpt-8xa100 head up-to-date"
            assert head.request["region_name"] == "us-west-1" and head.request["instance_type_name"] == "cpu_4x_general"

            n = hosts.addresses.index(head.address) + 1
            assert any("lambda_cloud.watchdog 60" in command for command in hosts.commands(n))
            (hosts.folder(n) / "root/load.py").write_text(LOAD)
            assert "LOAD 2" in ray("exec", "--no-config-cache", file, "python load.py"), logs()
            workers = [m for m in cloud.machines.values() if m is not head]
            assert {m.request["region_name"] for m in workers} == {"us-west-1"} and len(
                workers
            ) == 2 == cloud.launches - 1
            for one in workers:  # the key of the account is on the head alone
                folder = hosts.folder(hosts.addresses.index(one.address) + 1)
                assert (folder / "root/raygpt/raygpt/cli.py").exists()
                assert not (folder / "root/.config/raygpt/lambda/key").exists()
            wait(lambda: cloud.live() == [head], 120, logs)

            ray("down", "-y", file)
            assert cloud.live() == []
            assert [hosts.pids(n) for n in (1, 2, 3)] == [[], [], []]
            assert cloud.violations == [] and faults.script == {"launch": [], "instances": []}
            texts = [file.read_text(errors="replace") for file in tmp_path.glob("rg*/tmp/ray/session_2*/logs/*.log")]
            assert texts and not any(KEY in text for text in texts)
