"""The provider under 200 random schedules of faults, by a virtual clock: nothing leaked, nothing launched twice, the
pace never broken."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raygpt.cluster.lambda_cloud import orphans
from raygpt.cluster.lambda_cloud.api import LambdaCloud
from raygpt.cluster.lambda_cloud.pacing import Pacing
from raygpt.cluster.lambda_cloud.provider import LambdaNodeProvider
from raygpt.errors import UserError
from tests.cluster.lambda_server import KEY, Clock, Cloud, Faults

PROVIDER = {
    "ssh_public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA other comment",
    "ssh_from": ["0.0.0.0/0"],
    "boot_timeout_minutes": 5,
    "instance_types": ["gpu_8x_a100"],
}
HEAD = {"ray-node-type": "head", "ray-user-node-type": "head", "ray-node-status": "uninitialized"}
WORKER = {"ray-node-type": "worker", "ray-user-node-type": "worker", "ray-node-status": "uninitialized"}
NODE = {"instance_type": "gpu_8x_a100"}


class Killed(BaseException):
    """SIGKILL: nothing of the process runs after it."""


class World:
    """One account, one clock, and processes that may be killed before a request leaves or before its answer is read."""

    def __init__(self, folder: Path, seed: int, faults: Faults) -> None:
        self.rng, self.clock = random.Random(seed), Clock()
        self.cloud = Cloud(self.clock, faults=faults, check_answers=100)
        self.folder, self.kills = folder, 0.0
        self.times_killed = 0

    def provider(self) -> LambdaNodeProvider:
        """As a new process would make it: it remembers nothing."""
        return LambdaNodeProvider(dict(PROVIDER), "a100", self.api())

    def api(self) -> LambdaCloud:
        pacing = Pacing(self.folder / "pace", clock=self.clock)
        return LambdaCloud("http://cloud", KEY, pacing=pacing, clock=self.clock, send=self.send)

    def send(self, method: str, path: str, body: object) -> tuple[int, dict[str, str], bytes]:
        kill = self.rng.random() < self.kills and self.rng.choice(("before", "after"))
        if kill == "before":
            raise Killed
        # the way to the API is not always as long
        self.clock.sleep(self.rng.uniform(0, 2) if self.rng.random() < 0.3 else 0.0)
        answer = self.cloud.send(method, path, body)
        if kill:
            raise Killed
        return answer

    def alive(self, step):  # type: ignore[no-untyped-def]
        """Do a step of a process; a new provider where it was killed."""
        try:
            step()
        except UserError:
            self.clock.sleep(5)
        except Killed:
            self.times_killed += 1
            self.clock.sleep(self.rng.uniform(0, 60))
            return self.provider()
        return None


def heads_and_workers(provider: LambdaNodeProvider) -> tuple[list[str], list[str]]:
    nodes = provider.non_terminated_nodes({})
    kinds = {node: provider.node_tags(node)["ray-node-type"] for node in nodes}
    return [n for n in nodes if kinds[n] == "head"], [n for n in nodes if kinds[n] == "worker"]


def drive(world: World, workers: int) -> Counter[str]:
    """What Ray does with a provider: `ray up`, grow, hold, shrink, `ray down`; returns what was seen."""
    provider = world.provider()
    seen: Counter[str] = Counter()

    def up() -> None:
        heads, _ = heads_and_workers(provider)
        assert len(heads) <= 1
        if not heads:
            provider.create_node(NODE, HEAD, 1)
        elif provider.is_running(heads[0]):
            provider.set_node_tags(heads[0], {"ray-node-status": "up-to-date"})

    def tick(wanted: int) -> None:
        _, there = heads_and_workers(provider)
        up()
        if len(there) < wanted:
            provider.create_node(NODE, WORKER, wanted - len(there))
        elif len(there) > wanted:
            provider.terminate_nodes(there[: len(there) - wanted])
        for node in there:
            if provider.is_running(node) and provider.internal_ip(node):
                seen["running"] += 1

    def down() -> None:
        heads, there = heads_and_workers(provider)
        if there or heads:
            provider.terminate_nodes(there or heads)
        else:
            seen["down"] += 1

    for step, times in ((up, 12), (lambda: tick(workers), 25), (lambda: tick(1), 8), (down, 0)):
        count = 0
        while count < times or (step is down and not seen["down"]):
            provider = world.alive(step) or provider
            world.clock.sleep(5)
            count += 1
            assert count < 400, "it does not come to an end"
            live = Counter(
                tag["value"] for m in world.cloud.live() for tag in m.request["tags"] if "launch" in tag["key"]
            )
            seen["most of one launch"] = max([seen["most of one launch"], *live.values()])
    return seen


@pytest.mark.parametrize("block", range(10))
def test_200_random_fault_schedules_leak_nothing_and_launch_nothing_twice(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    for seed in range(20 * block, 20 * block + 20):
        rng = random.Random(seed)
        rate: dict[str, Any] = {
            name: rng.choice((0.0, 0.0, 0.05, 0.25)) for name in ("storm", "error", "lost", "late", "no_capacity")
        }
        rate |= {name: rng.choice((0.0, 0.1, 0.3)) for name in ("never_active", "preempted", "vanished")}
        rate |= {name: rng.choice((0.0, 0.2)) for name in ("unhealthy", "no_private_ip")}
        world = World(tmp_path / str(seed), seed, Faults(random.Random(seed), **rate))
        world.kills = rng.choice((0.0, 0.0, 0.02, 0.1))
        happened = drive(world, rng.randint(1, 4))
        seen += happened
        seen["killed"] += world.times_killed
        # one that comes a minute after its answer was lost is asked for again, and ended when it is listed
        assert happened["most of one launch"] <= (3 if rate["late"] else 1), f"schedule {seed} launches twice"
        world.kills = 0.0
        world.cloud.faults = Faults()
        world.clock.sleep(120)  # whatever is still on its way arrives
        left = world.cloud.live()
        seen["left for orphans"] += len(left)
        assert orphans.orphans(None, end=True, cloud=world.api()) == 0
        assert world.cloud.live() == [], f"schedule {seed} leaks"
        assert world.cloud.violations == [], f"schedule {seed} breaks the pace"
    assert seen["running"] > 100 and seen["killed"] > 0
