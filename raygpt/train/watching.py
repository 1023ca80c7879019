"""What a training run's driver has beside it on a cluster that others see: a watch for nodes that will go, and its
figures for Prometheus."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray

from raygpt.cluster.connect import is_own
from raygpt.cluster.preemption import PreemptionWatch, nodes_of_this_job
from raygpt.run.frame import Run
from raygpt.run.stop import PREEMPTED
from raygpt.track.metrics_export import MetricsExport

UNHEARD_SECONDS = 20.0


def is_watched() -> bool:
    """Whether the cluster is one that others see. No trial's training has views of its own: it is an actor's, and the
    cluster may be its sweep's private one."""
    return not is_own() and ray.get_runtime_context().get_actor_id() is None


class Unheard:
    """Whether a wish to stop reaches nobody: no group of workers has had room for UNHEARD_SECONDS. Ray Train goes on
    asking for one for ever, and machines that are left are paid for meanwhile."""

    def __init__(self) -> None:
        self._since: float | None = None

    def is_so(self, stop_requested: bool) -> bool:
        if not stop_requested or nodes_of_this_job():
            self._since = None
            return False
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since > UNHEARD_SECONDS


def preemption_watch(run: Run, control: Any) -> contextlib.AbstractContextManager[object]:
    """What notices that a node will be taken away; it speaks through the run's mailbox."""
    if not is_watched() or run.config.scale.watch_preemption == "off":
        return contextlib.nullcontext()

    def say(text: str) -> None:
        control.exchange.remote([("note", text)])

    return PreemptionWatch(say, lambda: run.stop.request(PREEMPTED), run.config.scale.preemption_file)


def metrics_export(run: Run) -> MetricsExport | None:
    """The run's figures for Prometheus."""
    if not is_watched():
        return None
    started, limit = run.lock.started, run.config.track.max_cost_usd
    return MetricsExport(run.config.run.name, started=started, restarts=run.lock.restarts, max_cost_usd=limit)
