"""Leaving a machine before it is taken away: a watcher on every node, and the drain that Ray Train acts upon.

Ray has the machinery and nobody who starts it: a node that is drained gets no new work, and Ray Train tells every
worker of a group that has a rank there; but nothing in Ray asks a cloud. So each node that works for a run on a joined
cluster has a small actor that does, every few seconds. On a notice it drains its node; workers then save and go on
elsewhere (`raygpt.train.leaving`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Set
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygpt.cluster.notices import GRACE_SECONDS, InstanceMetadata, Notice, file_notice, preempted
from raygpt.errors import UserError

ASK_SECONDS = 2.0  # of the 120 that AWS gives
LOOK_SECONDS = 2.0  # how often the driver looks for new nodes and for notices
REPLACE_SECONDS = 60.0  # after which a watcher that died is replaced
CLOUD_SECONDS = 30.0  # how often it asks an API that allows one request a second to all of an account
SIGNAL = signal.SIGUSR1
PREEMPTION = 2  # ray's autoscaler.proto, DrainNodeReason


class NodeWatcher:
    """Asks the sources of its own node. SIGUSR1 to its process (`ray::NodeWatcher`) is a notice too."""

    def __init__(self, file: str | None) -> None:
        self._asked = threading.Event()
        self._advised = False
        self._sources: list[Callable[[], Notice | None]] = [InstanceMetadata()]
        if file:
            self._sources.append(file_notice(file))
        signal.signal(SIGNAL, lambda *_: self._asked.set())

    def wait(self) -> Notice:
        """The next thing there is to tell. Blocks the process's main thread, which so hears its signals."""
        while True:
            for source in self._sources:
                notice = source()
                if notice is not None and (notice.certain or not self._advised):
                    self._advised = self._advised or not notice.certain
                    return notice
            if self._asked.wait(ASK_SECONDS):
                return Notice(f"process {os.getpid()} got {SIGNAL.name}", time.time() + GRACE_SECONDS)


class PreemptionWatch:
    """Holds a watcher on each node that works for this job, and on the driver's own, from `__enter__` to `__exit__`.

    `say` gets a sentence for every notice, from a thread. A node with a certain notice is drained; the driver's own is
    not, for nothing would outlive it there: `leave` is called instead, and the run is to save and end.
    """

    def __init__(self, say: Callable[[str], Any], leave: Callable[[], Any], file: str | None = None) -> None:
        self._say, self._leave, self._file = say, leave, file
        self._here = ray.get_runtime_context().get_node_id()
        self._watchers: dict[str, Any] = {}
        self._waiting: dict[Any, str] = {}  # reference to what a watcher will tell -> its node
        self._not_before: dict[str, float] = {}  # when a node whose watcher died may have another
        self._heard: dict[str, Notice] = {}  # by watchers, by node
        self._told: dict[str, Notice] = {}  # by the cloud's API, by address
        self._done: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="preemption-watch")

    def __enter__(self) -> PreemptionWatch:
        self._thread.start()
        machines = lambda_machines()
        if machines is not None:  # in a thread of its own: it may wait minutes for an answer
            threading.Thread(target=self._ask, args=(machines,), daemon=True, name="lambda-watch").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(2 * LOOK_SECONDS)
        for watcher in self._watchers.values():
            with contextlib.suppress(Exception):
                ray.kill(watcher)

    def _run(self) -> None:
        while not self._ended.is_set() and ray.is_initialized():  # any question would start a cluster
            # a cluster that does not answer for a moment must not end the watch
            with contextlib.suppress(ray.exceptions.RayError, OSError, RuntimeError):
                alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
                self._watch(({self._here} | nodes_of_this_job()) & alive.keys())
                self._collect()
                for node in alive.keys() - self._done:
                    notice = self._heard.get(node) or self._told.get(alive[node])
                    if notice is not None:
                        self._act(node, alive[node], notice)
            self._ended.wait(LOOK_SECONDS)

    def _ask(self, machines: Callable[[], list[dict[str, Any]]]) -> None:
        while not self._ended.wait(CLOUD_SECONDS):
            with contextlib.suppress(Exception):  # an API that is away says nothing of the machines
                self._told = preempted(machines())

    def _watch(self, wanted: Set[str]) -> None:
        """Have a watcher on each of these nodes and on no other: an actor, though it takes no CPU, keeps its node from
        being idle, and so from being ended by the autoscaler."""
        for node in self._watchers.keys() - wanted - self._done:
            self._waiting = {reference: where for reference, where in self._waiting.items() if where != node}
            with contextlib.suppress(Exception):
                ray.kill(self._watchers.pop(node))
        for node in wanted - self._watchers.keys() - self._done:
            if time.monotonic() < self._not_before.get(node, 0.0):
                continue
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            self._watchers[node] = (
                ray.remote(num_cpus=0)(NodeWatcher).options(scheduling_strategy=here).remote(self._file)
            )
            self._wait_for(node)

    def _wait_for(self, node: str) -> None:
        self._waiting[self._watchers[node].wait.remote()] = node

    def _collect(self) -> None:
        ready, _ = ray.wait(list(self._waiting), timeout=0) if self._waiting else ([], None)
        for reference in ready:
            node = self._waiting.pop(reference)
            try:
                self._heard[node] = ray.get(reference)
            except ray.exceptions.RayError:  # the node is gone, or the watcher is: a living node gets a new one
                self._watchers.pop(node, None)
                self._not_before[node] = time.monotonic() + REPLACE_SECONDS

    def _act(self, node: str, address: str, notice: Notice) -> None:
        if not notice.certain:
            self._say(f"Node {address}: {notice.why}; training goes on, for nothing may come of it.")
            self._heard.pop(node)
            self._wait_for(node)
            return
        left = f"{notice.why}, {notice.seconds_left:.0f} s from now"
        if node == self._here:
            self._say(f"Node {address}, which this job's driver runs on, will go ({left}): saving, to be resubmitted.")
            self._leave()
        else:
            accepted, problem = drain(node, notice)
            then = "saving, then on without it" if accepted else f"but Ray does not drain it: {problem}"
            self._say(f"Node {address} will go ({left}): {then}.")
        self._done.add(node)


def nodes_of_this_job() -> set[str]:
    """Ids of the nodes that hold room for this job's workers."""
    job = ray.get_runtime_context().get_job_id()
    groups = ray.util.placement_group_table().values()
    mine = [g for g in groups if g["state"] == "CREATED" and str(g["placement_group_id"]).endswith(job)]
    return {node for group in mine for node in group["bundles_to_node_id"].values()}


def lambda_machines() -> Callable[[], list[dict[str, Any]]] | None:
    """What lists the machines of a Lambda account, where this machine has its key, as the head of a cluster there."""
    try:
        from raygpt.cluster.lambda_cloud.api import LambdaCloud

        return LambdaCloud.of({}).instances
    except (ImportError, UserError):
        return None


def drain(node: str, notice: Notice) -> tuple[bool, str]:
    """Ask Ray to give the node (hex id) no more work until the notice's deadline; (accepted, why not)."""
    client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)  # type: ignore[attr-defined]
    return client.drain_node(node, PREEMPTION, notice.why, int(notice.deadline * 1000))


def draining_nodes() -> set[str]:
    """Ids of the nodes that are being left."""
    return set(ray._private.state.state.get_draining_nodes() or {})
