"""The nodes of the connected Ray cluster as those who pay see them: machine type, market, from when to when."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from raygpt.prices import ON_DEMAND, SPOT
from raygpt.track.cost import Node

# Labels of a node, set by the cluster's file. `booted` are seconds since 1970 UTC at which the machine came up: it is
# paid for from then, some minutes before Ray runs on it.
INSTANCE_TYPE, MARKET, BOOTED = "raygpt.io/instance-type", "raygpt.io/market", "raygpt.io/booted"

_asked: float | None = None


def asked_now() -> None:
    """Note that this process asks for its cluster: waiting for nodes is part of the run that it then begins."""
    global _asked
    _asked = time.time()


def take_asked() -> float | None:
    """When that was, once: a later run of this process does not pay for it again."""
    global _asked
    asked, _asked = _asked, None
    return asked


def nodes() -> list[Node] | None:
    """Nodes that are there and those that Ray remembers; None where this process has no cluster or it cannot be
    asked."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    try:
        table = ray.nodes()
    except Exception:  # whatever Ray raises while its head is away
        return None
    times = _times()
    return [_node(entry, *times.get(entry["NodeID"], (None, None))) for entry in table]


def _node(entry: dict[str, Any], started: float | None, ended: float | None) -> Node:
    labels = entry.get("Labels") or {}
    with contextlib.suppress(KeyError, ValueError):
        booted = float(labels[BOOTED])
        started = booted if started is None else min(started, booted)
    return Node(
        entry["NodeID"],
        labels.get(INSTANCE_TYPE),
        SPOT if labels.get(MARKET) == SPOT else ON_DEMAND,
        started,
        None if entry["Alive"] else ended or time.time(),
        entry.get("NodeManagerAddress", ""),
    )


def _times() -> dict[str, tuple[float | None, float | None]]:
    """{node: (when Ray started on it, when it ended)}, as far as Ray tells it: this is no part of its interface."""
    try:
        from ray._private import worker

        process: Any = worker.global_worker
        table = process.gcs_client.get_all_node_info(timeout=10)
        return {
            node.hex(): (info.start_time_ms / 1000 or None, info.end_time_ms / 1000 or None)
            for node, info in table.items()
        }
    except Exception:
        return {}
