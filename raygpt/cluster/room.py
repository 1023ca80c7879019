"""PURE. Is there room for a job's workers on a cluster, could it grow to have it, and what would fit: plain arithmetic.

Resources are Ray's: {"CPU": 8.0, "GPU": 1.0}, of a node or of one worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Resources = Mapping[str, float]

SPARE = 1e-6  # Ray counts in steps of 1/10,000


@dataclass(frozen=True)
class Need:
    """Workers that a job cannot start without, and the settings that say so: (how many, their CPUs, whether GPUs).

    A setting that is "" has no say: one trial of a search is always one.
    """

    count: int
    cpus: float
    use_gpu: bool | Literal["auto"] = "auto"
    settings: tuple[str, str, str] = ("scale.num_workers", "scale.cpus_per_worker", "scale.use_gpu")
    gpus: float = 1  # of each, where they have any

    def each(self, gpu: bool) -> dict[str, float]:
        """What one worker takes."""
        asked = {"CPU": self.cpus, "GPU": self.gpus if gpu else 0}
        return {name: amount for name, amount in asked.items() if amount > 0}


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the cluster may start: at most `most` of them."""

    name: str
    resources: Resources
    most: int


@dataclass(frozen=True)
class Growth:
    """How a cluster can grow: not at all, by these types up to `most` nodes beside the head, or (`types` None) by some
    that only its autoscaler knows, as on Kubernetes."""

    grows: bool
    types: tuple[NodeType, ...] | None = ()
    most: int = 0

    @property
    def gpus(self) -> bool:
        """Whether a node that it may start has a GPU."""
        return any(each.resources.get("GPU", 0) >= 1 and each.most > 0 for each in self.types or ())


FIXED = Growth(False)


def growth_of(config: Mapping[str, Any]) -> Growth:
    """The growth that a cluster's file allows, as `ray up` leaves it on the head node."""
    limit = int(config.get("max_workers") or 0)
    head = config.get("head_node_type")
    types = []
    for name, entry in (config.get("available_node_types") or {}).items():
        most = entry.get("max_workers")
        most = (0 if name == head else limit) if most is None else int(most)
        if most > 0 and entry.get("resources"):
            types.append(NodeType(name, {key: float(value) for key, value in entry["resources"].items()}, most))
    return Growth(limit > 0 and bool(types), tuple(types), limit)


def per_node(each: Resources, node: Resources) -> int:
    """How many workers fit on a node."""
    return min((math.floor(node.get(name, 0) / amount + SPARE) for name, amount in each.items()), default=0)


def room(each: Resources, nodes: Iterable[Resources]) -> int:
    """How many workers fit on all nodes together."""
    return sum(per_node(each, node) for node in nodes)


def grown_room(each: Resources, fixed: Iterable[Resources], growth: Growth) -> int | None:
    """How many would fit at most if nothing else ran: on the nodes that stay and as many new ones as may be started;
    None where nobody says which those are. `fixed` are the nodes that no type starts, such as the head."""
    if growth.grows and growth.types is None:
        return None
    there, left = room(each, fixed), growth.most
    for one in sorted(growth.types or (), key=lambda kind: -per_node(each, kind.resources)):
        started = min(one.most, left)
        there, left = there + started * per_node(each, one.resources), left - started
    return there


def amounts(resources: Resources) -> str:
    """`8 CPUs and 1 GPU`; Ray's own marks and memory left out."""
    parts = [
        f"{resources[name]:g} {name}{'s' * (resources[name] != 1)}"
        for name in ("CPU", "GPU")
        if resources.get(name, 0) > 0
    ]
    return " and ".join(parts) or "no CPU"


def workers(count: int, each: Resources) -> str:
    return f"{count} worker{'s' * (count != 1)} of {amounts(each)}"


def shapes(nodes: Sequence[Resources]) -> str:
    """`2 nodes of 4 CPUs, 1 of 8 CPUs and 1 GPU`, the most frequent first."""
    counted: dict[str, int] = {}
    for node in nodes:
        counted[amounts(node)] = counted.get(amounts(node), 0) + 1
    parts = [f"{number} of {text}" for text, number in sorted(counted.items(), key=lambda item: -item[1])]
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4} other kinds" if len(parts) > 4 else "")


def never_fits(need: Need, each: Resources, nodes: Sequence[Resources], growth: Growth) -> str | None:
    """The sentence that refuses a need which the whole cluster, idle and fully grown, has no room for; else None.

    `nodes` are the nodes' whole resources.
    """
    # what is there may be started again after it is gone, so nodes of a type count once: in the type
    fixed = [node for node in nodes if not _of_type(node, growth)]
    most = grown_room(each, fixed, growth)
    if most is None:
        return None
    most = max(most, room(each, nodes))
    if most >= need.count:
        return None
    listed = ", ".join(f"{kind.name} ({amounts(kind.resources)}, {kind.most} at most)" for kind in growth.types or ())
    has = f"it has {shapes(nodes)}" + (f" and may start {listed}" if growth.grows else "")
    if most:
        count = need.settings[0]
        return (
            f"{_asked(need)} asks for {workers(need.count, each)} but the cluster has room for {most}: {has}; "
            f"{f'lower {count} to {most}, or ' if count else ''}{_more(growth)}."
        )
    shapes_there = [*nodes, *(kind.resources for kind in growth.types or ())]
    return (
        f"{need.settings[1]}={need.cpus:g} is more than any node of the cluster has"
        f"{' beside a GPU' * ('GPU' in each)}: {has}; {_smaller(need, each, shapes_there)}"
        f"{'give the cluster a larger node type' if growth.grows else 'add a larger node'}."
    )


def _asked(need: Need) -> str:
    count, cpus, _ = need.settings
    named = f"{cpus}={need.cpus:g}"
    return f"{count}={need.count} x {named}" if count else named


def _more(growth: Growth) -> str:
    return "let the cluster's file start more (max_workers)" if growth.grows else "add nodes"


def _smaller(need: Need, each: Resources, nodes: Sequence[Resources]) -> str:
    """`lower scale.cpus_per_worker to 4, or ` where that would do, `set scale.use_gpu=false, or ` where no GPU is."""
    able = [node.get("CPU", 0) for node in nodes if node.get("GPU", 0) >= each.get("GPU", 0)]
    if able and 0 < max(able) < need.cpus:
        return f"lower {need.settings[1]} to {max(able):g}, or "
    if each.get("GPU") and need.settings[2]:
        return f"set {need.settings[2]}=false, or "
    return ""


def _of_type(node: Resources, growth: Growth) -> bool:
    if "node:__internal_head__" in node:
        return False
    return any(
        all(node.get(name, 0) == kind.resources.get(name, 0) for name in ("CPU", "GPU")) for kind in growth.types or ()
    )


def missing(need: Need, each: Resources, free: Sequence[Resources]) -> str:
    """What is missing, as one part of a sentence: `1 worker of 4 CPUs and 1 GPU: 3 GPUs are free, of 4 wanted`.

    `free` is what each node has left.
    """
    lacking = need.count - room(each, free)
    total = {name: sum(max(node.get(name, 0), 0) for node in free) for name in each}
    short = [name for name, amount in each.items() if total[name] + SPARE < amount * need.count]
    if short:
        wanted = {name: each[name] * need.count for name in short}
        why = " and ".join(f"{total[name]:g} of {wanted[name]:g} {name}s are free" for name in short)
    else:
        most = max((node.get("CPU", 0) for node in free), default=0)
        why = f"enough is free in all but not in one place (at most {most:g} CPUs on a node)"
    return f"{workers(lacking, each)} ({why})"


def nearest(need: Need, each: Resources, free: Sequence[Resources]) -> str:
    """What would fit at once: fewer workers, or the same with fewer CPUs; "" where nothing would."""
    count, cpus, _ = need.settings
    now = room(each, free)
    if now and count:
        return f"{count}={now} would fit now"
    for fewer in (step for step in _steps(need.cpus) if step < need.cpus):
        if room({**each, "CPU": fewer}, free) >= need.count:
            return f"{cpus}={fewer:g} would fit now"
    return "nothing of this kind fits now"


def _steps(cpus: float) -> list[float]:
    """Whole CPUs downwards, then a half."""
    return [*(float(number) for number in range(math.ceil(cpus) - 1, 0, -1)), 0.5]
