"""PURE. What a Lambda instance is to a cluster: whose it is, what it is for, how far it has come, what it costs.

The API takes tags at launch and never again; only an instance's name can change. So what is fixed about a machine
(cluster, kind, node type, the launch it belongs to, when) is in its tags, and the one state that other computers need
to see, whether Ray is set up on it, ends its name: `raygpt a10 head up-to-date`. Ray's tag names are valid keys as
they are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CLUSTER, LAUNCH, LAUNCHED, OWNER = "raygpt-cluster", "raygpt-launch", "raygpt-launched", "raygpt-owner"
KIND, STATUS = "ray-node-type", "ray-node-status"  # ray.autoscaler.tags.TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS
# The states of a node that are worth a request, of ray.autoscaler.tags.
UP_TO_DATE, UPDATE_FAILED = "up-to-date", "update-failed"

TAG_KEY = re.compile(r"[a-z][a-z0-9-:]+")
TAG_KEY_LENGTH, TAG_VALUE_LENGTH, NAME_LENGTH = 55, 128, 64
CLUSTER_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
# A head launched later than that in the place of one that was just ended is no second one of the same launch.
SAME_LAUNCH_SECONDS = 600.0

LIVE = ("booting", "active", "unhealthy")  # unhealthy ones are paid for and may come back


@dataclass(frozen=True)
class Machine:
    """One instance. `price` is US dollars per hour, `launched` seconds since 1970 (None: not told)."""

    id: str
    name: str
    status: str
    region: str
    type: str
    price: float
    ip: str | None
    private_ip: str | None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether it runs, or will. A preempted machine does not come back."""
        return self.status in LIVE

    @property
    def ended(self) -> bool:
        """Whether nobody needs to end it any more."""
        return self.status in ("terminating", "terminated")

    @property
    def cluster(self) -> str | None:
        """The raygpt cluster that it was launched for; None for others' machines, whatever they are called."""
        return self.tags.get(CLUSTER)

    @property
    def kind(self) -> str | None:
        """head or worker."""
        return self.tags.get(KIND)

    @property
    def launched(self) -> float | None:
        try:
            return float(self.tags[LAUNCHED])
        except (KeyError, ValueError):
            return None

    def age(self, now: float | None = None) -> float | None:
        """Seconds since its launch."""
        since = self.launched
        return None if since is None else max(0.0, (time.time() if now is None else now) - since)

    @property
    def node_tags(self) -> dict[str, str]:
        """Ray's tags, with the state that the name tells."""
        state = self.name.split()[-1:]
        told = {STATUS: state[0]} if state and state[0] in (UP_TO_DATE, UPDATE_FAILED) else {}
        return {**self.tags, **told}


def machine(entry: Mapping[str, Any]) -> Machine:
    """What the API says about an instance. `ip` and `private_ip` may be missing or empty while it boots, and some
    machines never have a private one."""
    return Machine(
        id=str(entry["id"]),
        name=str(entry.get("name") or ""),
        status=str(entry["status"]),
        region=str(entry["region"]["name"]),
        type=str(entry["instance_type"]["name"]),
        price=float(entry["instance_type"]["price_cents_per_hour"]) / 100,
        ip=entry.get("ip") or None,
        private_ip=entry.get("private_ip") or None,
        tags={str(tag["key"]): str(tag["value"]) for tag in entry.get("tags") or ()},
    )


def name_of(cluster: str, kind: str, state: str = "") -> str:
    return f"raygpt {cluster} {kind} {state}".strip()[:NAME_LENGTH]


def tag_entries(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as a launch wants them. Raises ValueError for what the API would refuse."""
    for key, value in tags.items():
        if not TAG_KEY.fullmatch(key) or len(key) > TAG_KEY_LENGTH or len(value) > TAG_VALUE_LENGTH:
            raise ValueError(f"Lambda takes no tag {key}={value!r}")
    return [{"key": key, "value": value} for key, value in tags.items()]


def surplus(machines: Iterable[Machine]) -> list[Machine]:
    """Live machines beyond the first of the same launch: an answer was lost, it was asked again, and both came.

    The one that stays is chosen alike by whoever looks: the furthest, then the smallest id.
    """
    first: dict[str, Machine] = {}
    extra = []
    for one in sorted((m for m in machines if m.live and LAUNCH in m.tags), key=_keep_first):
        stays = first.setdefault(one.tags[LAUNCH], one)
        if stays is not one and abs((stays.launched or 0) - (one.launched or 0)) < SAME_LAUNCH_SECONDS:
            extra.append(one)
    return extra


def _keep_first(one: Machine) -> tuple[bool, bool, str]:
    return (one.node_tags.get(STATUS) != UP_TO_DATE, one.status != "active", one.id)
