"""Elastic training counts only hosts that can be reached.

Ray calls a host alive until its health checks have failed for a while, and Ray Train would grow onto such a host, or
begin again with it: training then stood still for 2 min 13 s, two start time-outs, after a partition of three hosts.
So before a size is chosen, the raylet of every host in question is connected to. A host that does not answer, or that
has just died, is not counted when training begins again, and a group that trains is not resized while there is one: it
may be back in a moment, and a resize is a restart.

The methods overridden are no part of Ray's interface; in a Ray that has others its own policy decides.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

ANSWER_SECONDS = 2.0  # for a connection on a network of one cluster; a cut link never answers


def unreachable(nodes: Iterable[Mapping[str, Any]], timeout: float = ANSWER_SECONDS) -> set[str]:
    """Ids of the living ones among Ray's nodes whose raylets cannot be connected to in `timeout` seconds."""
    asked = [node for node in nodes if node["Alive"]]
    with ThreadPoolExecutor(max(1, min(64, len(asked)))) as pool:
        answers = pool.map(lambda node: _answers(node["NodeManagerAddress"], node["NodeManagerPort"], timeout), asked)
        return {node["NodeID"] for node, answer in zip(asked, answers) if not answer}


def _answers(address: str, port: int, timeout: float) -> bool:
    try:
        with socket.create_connection((address, port), timeout):
            return True
    except OSError:
        return False


def with_reachable_hosts(policy: Any, nodes: Callable[[], list[Any]] = ray.nodes) -> Any:
    """The same for a fixed number of workers; for an elastic one, a policy that counts reachable hosts."""
    try:
        from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
        from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

        ElasticScalingPolicy._count_possible_workers, ElasticScalingPolicy.make_decision_for_running_worker_group  # noqa: B018
    except (ImportError, AttributeError):
        return policy
    if type(policy) is not ElasticScalingPolicy:
        return policy

    class ReachablePolicy(ElasticScalingPolicy):
        def _count_possible_workers(self, reserved_resources: Any) -> int:
            table = nodes()
            # a host that is known to be dead may still stand among the reserved ones for some seconds
            gone = unreachable(table) | {node["NodeID"] for node in table if not node["Alive"]}
            return super()._count_possible_workers({k: v for k, v in reserved_resources.items() if k not in gone})

        def make_decision_for_running_worker_group(self, *arguments: Any, **options: Any) -> Any:
            decision = super().make_decision_for_running_worker_group(*arguments, **options)
            if isinstance(decision, ResizeDecision) and unreachable(nodes()):
                return NoopDecision()
            return decision

    return ReachablePolicy(policy.scaling_config)
