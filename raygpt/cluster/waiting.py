"""Room for a job's workers: asked for where the cluster can grow, waited for, and what is pending said meanwhile.

The request is a placement group of the workers' own shapes. An autoscaler (both of Ray's, and KubeRay's) starts nodes
for one that is pending; it counts what other jobs use; and it goes with the driver, so that a killed job asks for
nothing any more, where `request_resources` would keep nodes, and their price, until somebody takes it back. Once there
is room the group is given up and Ray Train places its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygpt.cluster.room import FIXED, Growth, Need, Resources, growth_of, missing, nearest, never_fits, room, workers
from raygpt.errors import UserError

HEAD = "node:__internal_head__"
LOOK_SECONDS = 1.0
SAY_SECONDS = 15.0  # between two lines while what is pending stays the same
LONG_SECONDS = 60.0  # after which a line says what is missing and what would fit
ASK_HEAD_SECONDS = 60.0


def refuse_what_never_fits(need: Need) -> None:
    """Raises UserError where the connected cluster, which does not grow, could not hold the need were it idle."""
    nodes = alive()
    if refusal := never_fits(need, need.each(asks_gpu(need, nodes, FIXED)), nodes, FIXED):
        raise UserError(refusal)


@contextmanager
def room_for(need: Need, minutes: float, say: Callable[[str], None]) -> Iterator[bool]:
    """Room on the connected cluster for the need, held meanwhile so that nobody takes it and no node counts as idle;
    gives whether that is with GPUs. The cluster grows for it where it can, else others are waited for.

    `say` is told every now and then what is pending. Raises UserError at once for what the cluster could never hold,
    and after `minutes` for what it did not hold until then.
    """
    nodes = alive()
    growth = growth_here() if _may_need_growth(need, nodes) else FIXED
    gpu = asks_gpu(need, nodes, growth)
    each = need.each(gpu)
    if refusal := never_fits(need, each, nodes, growth):
        raise UserError(refusal)
    group = placement_group([each] * need.count, strategy="PACK", name="raygpt-waits")
    try:
        _wait(group, Pending(need, each, growth.grows), minutes, say)
        yield gpu
    finally:
        remove_placement_group(group)


def has_gone(need: Need, gpu: bool) -> bool:
    """Whether nodes went since there was room: the cluster could not hold the need now, were it idle."""
    return room(need.each(gpu), alive()) < need.count


def _may_need_growth(need: Need, nodes: Sequence[Resources]) -> bool:
    """Whether it matters if the cluster can grow: there is no room now, or no GPU where one would be taken."""
    gpu = need.use_gpu is True or any(node.get("GPU", 0) >= 1 for node in nodes)
    return (need.use_gpu == "auto" and not gpu) or room(need.each(gpu), free_now()) < need.count


def asks_gpu(need: Need, nodes: Sequence[Resources], growth: Growth) -> bool:
    """Whether each worker gets a GPU: as set, or where a node has one or could be started with one."""
    if need.use_gpu != "auto":
        return need.use_gpu
    return growth.gpus or any(node.get("GPU", 0) >= 1 for node in nodes)


def _wait(group: Any, pending: Pending, minutes: float, say: Callable[[str], None]) -> None:
    began, said_at, said = time.monotonic(), 0.0, ""
    while not group.wait(LOOK_SECONDS):
        seconds = time.monotonic() - began
        line = pending.line(free_now(), launches(), seconds)
        if seconds >= 60 * minutes:
            raise UserError(
                f"no room within scale.wait_minutes={minutes:g}: {pending.reason(free_now())}. Lower "
                f"{pending.lower()}, wait longer, or add nodes."
            )
        if (line != said and seconds - said_at >= 2) or seconds - said_at >= SAY_SECONDS:
            say(f"{line} ({seconds:.0f} s)")
            said, said_at = line, seconds


@dataclass(frozen=True)
class Launches:
    """What the autoscaler says of itself: {type: nodes} it is starting, and why starts failed; PURE."""

    starting: dict[str, int]
    failed: tuple[str, ...] = ()
    infeasible: bool = False

    def text(self) -> str:
        parts = []
        if self.starting:
            listed = ", ".join(f"{count} x {name}" for name, count in sorted(self.starting.items()))
            parts.append(f"the cluster is starting {listed}")
        parts += [f"a start failed: {why}" for why in self.failed[-1:]]
        if self.infeasible:
            parts.append("its autoscaler has no node type, or no more nodes, for this")
        return "; ".join(parts)


@dataclass(frozen=True)
class Pending:
    """What is said while a need waits; PURE."""

    need: Need
    each: dict[str, float]
    grows: bool

    def line(self, free: Sequence[Resources], launches: Launches, seconds: float) -> str:
        """One line; after `LONG_SECONDS` with what is missing and what would fit."""
        now = room(self.each, free)
        text = f"Waiting for room: {now} of {workers(self.need.count, self.each)} fit{'s' * (now == 1)}"
        if said := launches.text():
            text += f"; {said}"
        elif not self.grows:
            text += "; the rest is in use by others and this cluster does not grow"
        if seconds >= LONG_SECONDS:
            text += f"; {self.reason(free)}"
        return text

    def reason(self, free: Sequence[Resources]) -> str:
        return f"missing: {missing(self.need, self.each, free)}; {nearest(self.need, self.each, free)}"

    def lower(self) -> str:
        return " or ".join(setting for setting in self.need.settings[:2] if setting)


class Stalled:
    """Says, while a job runs, which of its workers the cluster has had no room for in the last minute: at the start
    where somebody else was quicker, and after a host was lost whose place nothing takes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._looked_at = self._since = time.monotonic()
        self._said_at = -LONG_SECONDS

    def look(self) -> None:
        """To be called as often as one likes; asks the cluster four times a minute."""
        now = time.monotonic()
        if now - self._looked_at < SAY_SECONDS:
            return
        self._looked_at = now
        try:
            groups = list(ray.util.placement_group_table().values())
            line = stalled_line(groups, ray.get_runtime_context().get_job_id(), free_now())
        except Exception:  # a head that is away for a moment: words are not worth a run
            return
        if line is None:
            self._since = now
        elif now - self._since >= LONG_SECONDS and now - self._said_at >= LONG_SECONDS:
            self._say(f"{line} ({now - self._since:.0f} s)")
            self._said_at = now


def stalled_line(groups: Sequence[dict[str, Any]], job: str, free: Sequence[Resources]) -> str | None:
    """What the placement groups of a job (its id ends theirs) wait for; None where all have their places. PURE."""
    for group in groups:
        waits = group["state"] in ("PENDING", "RESCHEDULING") and group["placement_group_id"].endswith(job)
        bundles = list(group["bundles"].values())
        if waits and bundles:
            each = dict(bundles[0])
            need = Need(len(bundles), each.get("CPU", 0), "GPU" in each, gpus=each.get("GPU", 0))
            return f"Waiting for room: {Pending(need, each, True).reason(free)}"
    return None


def alive() -> list[dict[str, float]]:
    """All resources of each node that lives."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_now() -> list[dict[str, float]]:
    """What each node has left."""
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())


def launches() -> Launches:
    """What the autoscaler is doing; empty where this Ray or its older autoscaler does not say."""
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception:  # no part of Ray's stable interface, and only ever words
        return Launches({})
    starting: dict[str, int] = {}
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] = starting.get(launch.ray_node_type_name, 0) + launch.count
    for node in status.pending_nodes:
        starting[node.ray_node_type_name] = starting.get(node.ray_node_type_name, 0) + 1
    failed = tuple(f"{each.ray_node_type_name}, {each.details}"[:300] for each in status.failed_launches)
    return Launches(starting, failed)


def growth_here() -> Growth:
    """How the connected cluster can grow, as its head node's autoscaler was told."""
    head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]), None)
    address = ray.get_runtime_context().gcs_address
    if head is None:
        return FIXED
    if head == ray.get_runtime_context().get_node_id():
        found = autoscaling_config(address)
    else:
        where = NodeAffinitySchedulingStrategy(head, soft=False)
        ask = ray.remote(autoscaling_config).options(num_cpus=0, scheduling_strategy=where)
        try:
            found = ray.get(ask.remote(address), timeout=ASK_HEAD_SECONDS)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return FIXED
    if found is None:
        # no autoscaler's process beside the head's: on Kubernetes it has a container of its own
        return Growth(True, None) if _autoscaler_reports() else FIXED
    return growth_of(found)


def autoscaling_config(gcs_address: str) -> dict[str, Any] | None:
    """Node types and limits of the autoscaler that runs on this very node, {} for one that may start nothing; None
    where none runs. Nothing else of the file is read out: it may hold credentials."""
    port = gcs_address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if not any(word.endswith("monitor.py") and "autoscaler" in word for word in words):
            continue
        if options.get("gcs-address", "").rpartition(":")[2] != port:
            continue
        file = options.get("autoscaling-config")
        if not file:
            return {}
        try:
            config = yaml.safe_load(Path(file).expanduser().read_text()) or {}
        except (OSError, yaml.YAMLError):
            return None
        types = {
            name: {"resources": entry.get("resources"), "max_workers": entry.get("max_workers")}
            for name, entry in (config.get("available_node_types") or {}).items()
        }
        return {
            "available_node_types": types,
            "max_workers": config.get("max_workers"),
            "head_node_type": config.get("head_node_type"),
        }
    return None


def _autoscaler_reports() -> bool:
    try:
        from ray._private.worker import global_worker
        from ray.core.generated import autoscaler_pb2

        answer = global_worker.gcs_client.get_cluster_status(timeout_s=10)  # type: ignore[attr-defined]
        reply = autoscaler_pb2.GetClusterStatusReply.FromString(answer)  # type: ignore[attr-defined]
        return reply.autoscaling_state.autoscaler_state_version > 0
    except Exception:  # as in `launches`
        return False
