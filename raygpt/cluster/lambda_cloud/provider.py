"""The nodes of a Ray cluster on Lambda Cloud: `provider: {type: external, module: <this>.LambdaNodeProvider}`.

Ray calls it from several threads, on the laptop (`ray up`, `ray down`) and on the head (its autoscaler, which since
2.50 is v2 and wraps this interface in NodeProviderAdapter). What is known of machines is what one listing said; a
listing is asked for at most once in LISTED_SECONDS. A machine that the API does not know is terminated: a provider that
raises for it keeps the autoscaler busy for ever (ray issue 29698).
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click import ClickException
from ray.autoscaler.node_provider import NodeProvider

from raygpt.cluster.lambda_cloud.api import LambdaCloud, api_url
from raygpt.cluster.lambda_cloud.errors import LambdaError
from raygpt.cluster.lambda_cloud.launch import NoCapacity, launch, owner
from raygpt.cluster.lambda_cloud.machines import (
    CLUSTER_NAME,
    KIND,
    STATUS,
    UP_TO_DATE,
    UPDATE_FAILED,
    Machine,
    machine,
    name_of,
    surplus,
)
from raygpt.errors import UserError, one_line

logger = logging.getLogger(__name__)

LISTED_SECONDS = 2.0  # a listing is not asked for again before, whoever asks
STALE_SECONDS = 600.0  # how long the last listing stands in for one that the API does not give
APPEARS_SECONDS = 60.0  # within that a launched machine is in the list
BOOT_MINUTES = 15.0  # a head took 210 s from launch to SSH (SkyPilot issue 3880)


class NotLaunched(ClickException, UserError):
    """A UserError that `ray up` shows as a sentence."""


class NoRoom(ClickException, NoCapacity):
    """The same, of a machine that no region has now."""


class LambdaNodeProvider(NodeProvider):
    """The machines of one cluster. Every method may be called from any thread."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str, cloud: LambdaCloud | None = None) -> None:
        super().__init__(provider_config, cluster_name)
        if not CLUSTER_NAME.fullmatch(cluster_name):
            raise UserError(
                f"cluster_name={cluster_name} is no name for machines at Lambda: up to 40 small letters, digits and "
                "dashes, a letter first."
            )
        self.cloud = cloud or LambdaCloud.of(provider_config)
        self.boot_seconds = 60 * float(provider_config.get("boot_timeout_minutes", BOOT_MINUTES))
        self._lock = threading.RLock()
        self._listing = threading.Lock()
        self._listed_at = -1e9
        self._machines: dict[str, Machine] = {}
        self._new: dict[str, tuple[float, Machine]] = {}  # launched here and not listed yet
        self._tags: dict[str, dict[str, str]] = {}  # set here, for as long as this process lives
        self._warned: set[str] = set()

    # What there is

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        self._list()
        with self._lock:
            return [one for one in self._machines if tag_filters.items() <= self._tags_of(one).items()]

    def is_running(self, node_id: str) -> bool:
        one = self._find(node_id)
        return one is not None and one.status == "active" and one.ip is not None

    def is_terminated(self, node_id: str) -> bool:
        return self._find(node_id) is None

    def node_tags(self, node_id: str) -> dict[str, str]:
        self._find(node_id)
        with self._lock:
            return self._tags_of(node_id)

    def external_ip(self, node_id: str) -> str | None:  # type: ignore[override]
        """None while it boots: Ray asks again."""
        one = self._find(node_id)
        if one is not None and one.ip is None:
            self._list()
            one = self._find(node_id)
        return one.ip if one else None

    def internal_ip(self, node_id: str) -> str | None:  # type: ignore[override]
        """The private address, by which the machines of a region reach each other. Some machines are never given one;
        theirs is the public one then, which serves a cluster of one machine."""
        address = self.external_ip(node_id)
        one = self._find(node_id)
        if one is None or one.private_ip or address is None or one.status != "active":
            return one.private_ip if one else None
        if node_id not in self._warned:
            self._warned.add(node_id)
            logger.warning(
                "Machine %s (%s) has no private address: its public one is used, and other machines reach it only "
                "where a firewall rule lets them.",
                node_id,
                one.type,
            )
        return address

    # What changes it

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch `count` machines, one after the other as the API has it. Where one fails the others stay: Ray finds
        them by their tags."""
        made: dict[str, Any] = {}
        kind = tags.get(KIND, "worker")
        for _ in range(count):
            try:
                one = launch(
                    self.cloud,
                    self.cluster_name,
                    str(node_config["instance_type"]),
                    {KIND: kind, **tags},
                    regions=self._regions(kind),
                    beside=self.provider_config.get("instance_types", ()) if kind == "head" else (),
                    provider=self.provider_config,
                )
            except (UserError, KeyError) as error:
                if not isinstance(error, NoCapacity):
                    logger.error("No machine was launched: %s", one_line(error, 400))
                # `ray up` shows it as a sentence; the autoscaler takes any error alike
                kind_of = NoRoom if isinstance(error, NoCapacity) else NotLaunched
                raise kind_of(one_line(error, 400)) from error
            logger.info("Launched %s (%s in %s) for %s.", one.id, one.type, one.region, self.cluster_name)
            with self._lock:
                if one.id not in self._machines:
                    self._new[one.id] = (self.cloud.clock.time(), one)
                    self._machines[one.id] = one
            made[one.id] = {"region": one.region, "instance_type": one.type}
        return made

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Tags of this process; the end of a set-up is told to everybody, in the machine's name."""
        with self._lock:
            before = self._tags_of(node_id).get(STATUS)
            self._tags.setdefault(node_id, {}).update(tags)
            kind = self._tags_of(node_id).get(KIND, "worker")
        state = tags.get(STATUS)
        if state in (UP_TO_DATE, UPDATE_FAILED) and state != before:
            try:
                self.cloud.rename(node_id, name_of(self.cluster_name, kind, state))
            except LambdaError as error:  # other computers see a machine that is not ready; this one knows
                logger.warning("%s", error)

    def terminate_node(self, node_id: str) -> None:
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> None:
        self.cloud.terminate(list(node_ids))
        with self._lock:
            for one in node_ids:
                self._machines.pop(one, None)
                self._new.pop(one, None)
                self._tags.pop(one, None)

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """What the head needs to launch workers by itself goes into the section `provider`: the endpoint, whose
        cluster it is, the public key of auth.ssh_private_key, the types of machines. Nothing secret."""
        provider = cluster_config["provider"]
        if os.environ.get("LAMBDA_API_URL"):
            provider["api"] = api_url()
        provider.setdefault("owner", owner())
        nodes = cluster_config.get("available_node_types", {}).values()
        provider["instance_types"] = sorted({str(node["node_config"]["instance_type"]) for node in nodes})
        if not provider.get("ssh_key_name"):
            provider["ssh_public_key"] = public_key(cluster_config.get("auth", {}))
        return cluster_config

    # Listing

    def _regions(self, kind: str) -> list[str]:
        """Workers are where the head is: private addresses end at a region."""
        if kind != "head":
            self._list()
            with self._lock:
                heads = [one.region for one in self._machines.values() if one.kind == "head"]
            if heads:
                return heads[:1]
        return [str(region) for region in self.provider_config.get("regions") or ()]

    def _find(self, node_id: str) -> Machine | None:
        with self._lock:
            known = self._machines.get(node_id)
        if known is None:
            self._list()
            with self._lock:
                known = self._machines.get(node_id)
        return known

    def _tags_of(self, node_id: str) -> dict[str, str]:
        one = self._machines.get(node_id)
        return {**(one.node_tags if one else {}), **(self._tags.get(node_id, {}) if one else {})}

    def _list(self) -> None:
        """Bring what is known up to date, and end what must not go on: a second machine of one launch, and one that
        does not come up. Raises LambdaError when there has been no listing for STALE_SECONDS."""
        with self._listing:  # one asks, the others take its answer
            now = self.cloud.clock.time()
            if now - self._listed_at < LISTED_SECONDS:
                return
            try:
                listed = [machine(entry) for entry in self.cloud.instances()]
            except LambdaError as error:
                if now - self._listed_at > STALE_SECONDS:
                    raise
                logger.warning("%s What was listed %.0f s ago stands.", error, now - self._listed_at)
                return
            now = self.cloud.clock.time()
            mine = [one for one in listed if one.cluster == self.cluster_name]
            end = surplus(mine)
            end += [one for one in mine if one.live and one not in end and self._overdue(one, now)]
            lost = [one.id for one in mine if one.status == "preempted"]
            with self._lock:
                self._listed_at = now
                there = {one.id for one in listed}
                new = {key: entry for key, entry in self._new.items() if key not in there}
                self._new = {key: entry for key, entry in new.items() if now - entry[0] < APPEARS_SECONDS}
                self._machines = {one.id: one for one in mine if one.live and one not in end}
                self._machines.update({key: one for key, (_, one) in self._new.items()})
                self._tags = {key: tags for key, tags in self._tags.items() if key in self._machines}
        if end or lost:
            for one in end:
                logger.warning(
                    "Ending machine %s (%s): %s", one.id, one.status, "it did not come up, or is one too many"
                )
            try:
                self.cloud.terminate([one.id for one in end] + lost)
            except LambdaError as error:  # the next listing shows it again
                logger.warning("%s", error)

    def _overdue(self, one: Machine, now: float) -> bool:
        """Whether it has not come up in time. What was set up once may be unhealthy for as long as it likes."""
        age = one.age(now)
        up = one.status == "active" or self._state(one) == UP_TO_DATE
        return not up and age is not None and age > self.boot_seconds

    def _state(self, one: Machine) -> str | None:
        return {**one.node_tags, **self._tags.get(one.id, {})}.get(STATUS)


def public_key(auth: Mapping[str, Any]) -> str:
    """The public half of auth.ssh_private_key: its .pub file, else what ssh-keygen makes of it; "" without either."""
    private = Path(str(auth.get("ssh_private_key") or "")).expanduser()
    if not auth.get("ssh_private_key") or not private.is_file():
        return ""
    beside = private.with_name(private.name + ".pub")
    if beside.is_file():
        return beside.read_text(encoding="utf-8").strip()
    told = subprocess.run(["ssh-keygen", "-y", "-P", "", "-f", str(private)], capture_output=True, text=True)
    return told.stdout.strip() if told.returncode == 0 else ""
