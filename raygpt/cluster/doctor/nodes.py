"""A function on every node of the connected cluster: a task that needs no resources, pinned to each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygpt.errors import one_line

ANSWER_SECONDS = 60.0  # for all nodes together: each may have to start a process


def node_names() -> dict[str, str]:
    """{node id: a name for people}, of the nodes that live: host name and address, or the id where several share them
    (a cluster of one machine)."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        if node["NodeManagerHostname"] != node["NodeManagerAddress"]
        else node["NodeManagerAddress"]
        for node in nodes
    }
    several = len(set(names.values())) < len(names)
    return {key: f"{name} {key[-6:]}" if several else name for key, name in names.items()}


def on_every_node(function: Callable[..., Any], *arguments: Any, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """{node's name: what the function returned there, or the exception}; TimeoutError for one that did not answer."""
    names = node_names()
    asked = {
        ray.remote(_call)
        .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(function, *arguments): name
        for node, name in names.items()
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    answers: dict[str, Any] = {}
    for reference in done:
        try:
            answers[asked[reference]] = ray.get(reference)
        except Exception as error:
            cause = getattr(error, "cause", None)
            answers[asked[reference]] = cause if isinstance(cause, Exception) else RuntimeError(one_line(error))
    for reference in late:
        ray.cancel(reference, force=True)
        answers[asked[reference]] = TimeoutError(f"no answer within {seconds:g} s")
    return dict(sorted(answers.items()))


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
