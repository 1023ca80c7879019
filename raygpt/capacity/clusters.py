"""What a file of `ray up` can give: its node types as machines with a price."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from raygpt import prices
from raygpt.errors import UserError, one_line
from raygpt.prices import ON_DEMAND, SPOT, Machine

LABEL, MARKET = "raygpt.io/instance-type", "raygpt.io/market"
RAYS_MAX_WORKERS = 2  # of a file that says nothing
TYPE_KEYS = ("InstanceType", "instance_type_name", "instance_type", "InstanceTypeName")


@dataclass(frozen=True)
class NodeType:
    """One of a cluster's node types: what it is, on which market, how many there always are and can be."""

    machine: Machine
    market: str
    least: int
    most: int
    is_head: bool = False


@dataclass(frozen=True)
class ClusterFile:
    """A cluster as its file has it. `most_workers` are nodes beside the head."""

    path: str
    provider: Mapping[str, Any]
    node_types: tuple[NodeType, ...]
    most_workers: int

    @property
    def machine_names(self) -> set[str]:
        return {each.machine.name for each in self.node_types}


@dataclass(frozen=True)
class Offer:
    """One way to run on a cluster: `least` to `most` machines of one type, `markets` on which the file asks for them,
    and the head beside them where it is another machine. Prices are US dollars per hour, None where not known."""

    cluster: str
    machine: Machine
    least: int
    most: int
    markets: frozenset[str]
    head: NodeType | None = None

    def usd_per_hour(self, nodes: int, market: str) -> float | None:
        """All machines together; None too where the file has none of that market."""
        each = self.machine.spot if market == SPOT else self.machine.price
        head = self.head.machine.hourly(self.head.market) if self.head is not None else 0.0
        if each is None or head is None or (market == SPOT and SPOT not in self.markets):
            return None
        return head + nodes * each


def read_cluster(path: str, live: Mapping[str, float] | None = None) -> ClusterFile:
    """The cluster of a file for `ray up`. `live` are prices read just now, {machine: US dollars per hour}.

    Raises UserError for a file that is not there or is none, and for a machine that the table of prices lacks.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"plan.cluster={path} does not exist: name a file such as cluster/aws-g5.yaml.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"plan.cluster={path} cannot be read: {one_line(error)}.") from None
    types = tree.get("available_node_types") if isinstance(tree, dict) else None
    if not isinstance(types, dict) or not types:
        raise UserError(
            f"plan.cluster={path} has no available_node_types with machine types: name a file for `ray up` on a cloud, "
            "or describe the machine with plan.gpu, plan.gpus_per_host and plan.host_memory_gb."
        )
    head = tree.get("head_node_type") or next(iter(types))
    most = _count(tree.get("max_workers"), RAYS_MAX_WORKERS)
    found = tuple(_node_type(path, name, entry or {}, name == head, most, live or {}) for name, entry in types.items())
    return ClusterFile(path, tree.get("provider") or {}, found, most)


def offers(cluster: ClusterFile) -> list[Offer]:
    """The ways to run: one per machine type with GPUs; on a cluster without any, one per machine type."""
    head = next(each for each in cluster.node_types if each.is_head)
    gpus = [each for each in cluster.node_types if each.machine.gpus]
    found = []
    for machine in _distinct(gpus or cluster.node_types):
        same = [each for each in cluster.node_types if each.machine == machine]
        workers = min(cluster.most_workers, sum(each.most for each in same if not each.is_head))
        is_head = head.machine == machine
        least = sum(each.least for each in same if not each.is_head) + is_head
        if most := workers + is_head:
            markets = frozenset(each.market for each in same)
            found.append(Offer(cluster.path, machine, least, most, markets, None if is_head else head))
    return found


def _distinct(types: Iterable[NodeType]) -> list[Machine]:
    return list(dict.fromkeys(each.machine for each in types))


def _node_type(
    path: str, name: str, entry: Mapping[str, Any], is_head: bool, most: int, live: Mapping[str, float]
) -> NodeType:
    labels, config = entry.get("labels") or {}, entry.get("node_config") or {}
    what = labels.get(LABEL) or next((config[key] for key in TYPE_KEYS if config.get(key)), None)
    if what is None:
        raise UserError(
            f"plan.cluster={path}: node type {name} does not say what machine it is: set its label {LABEL}."
        )
    machine = prices.machine(str(what))
    if machine.name in live:
        machine = replace(machine, price=live[machine.name], read="now", source="the cloud's API")
    market = labels.get(MARKET) or (config.get("InstanceMarketOptions") or {}).get("MarketType")
    least, top = _count(entry.get("min_workers"), 0), _count(entry.get("max_workers"), 0 if is_head else most)
    return NodeType(machine, SPOT if market == SPOT else ON_DEMAND, least, top, is_head)


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default
