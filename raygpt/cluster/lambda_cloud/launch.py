"""PURE. One machine from a wish: which region, which key and firewall, and never two for one wish."""

from __future__ import annotations

import getpass
import hashlib
import ipaddress
import socket
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from raygpt.cluster.lambda_cloud.api import LambdaCloud
from raygpt.cluster.lambda_cloud.errors import Action, LambdaError, Unanswered
from raygpt.cluster.lambda_cloud.machines import (
    CLUSTER,
    KIND,
    LAUNCH,
    LAUNCHED,
    OWNER,
    Machine,
    machine,
    name_of,
    surplus,
    tag_entries,
)
from raygpt.errors import UserError

TRIES = 3  # launches without an answer, each looked for before the next
LOOKS, LOOK_SECONDS = 4, 10.0  # at the list of machines after a launch without an answer: a second one costs more


class NoCapacity(UserError):
    """No region that would do has such a machine now."""


def owner() -> str:
    """Who launches, as others of the account may see it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = "?"
    return f"{user}@{socket.gethostname()}"[:128]


def launch(
    cloud: LambdaCloud,
    cluster: str,
    instance_type: str,
    tags: Mapping[str, str],
    *,
    regions: Sequence[str],
    beside: Sequence[str] = (),
    provider: Mapping[str, Any],
) -> Machine:
    """Launch one machine of `cluster` and return it as it was asked for.

    `regions` are those it may be in, best first (empty: any); of these, regions that have all types of `beside` as well
    come first. What was asked for is told by a tag of its own, so that a launch whose answer was lost is found and not
    repeated; where it comes late and was repeated, the surplus is ended. A head's tag is its cluster's, so that even a
    second `ray up` after a killed one makes no second head. Raises NoCapacity, LambdaError, UserError.
    """
    kind = tags[KIND]
    wish = f"{cluster}/head" if kind == "head" else uuid.uuid4().hex
    key = ssh_key(cloud, provider)
    filesystem = str(provider.get("filesystem") or "")
    homes = _homes(cloud, filesystem) if filesystem else []
    if homes:
        regions = [region for region in regions or homes if region in homes]
        if not regions:
            raise UserError(
                f"provider.filesystem={filesystem} is in {', '.join(homes)}, where the cluster may not be: add it to "
                "provider.regions, or name another filesystem."
            )
    last: LambdaError | None = None
    for region in _with_capacity(cloud, instance_type, regions, beside):
        request: dict[str, Any] = {
            "region_name": region,
            "instance_type_name": instance_type,
            "ssh_key_names": [key],
            "name": name_of(cluster, kind),
            "tags": tag_entries(
                {
                    **tags,
                    CLUSTER: cluster,
                    LAUNCH: wish,
                    LAUNCHED: f"{cloud.clock.time():.0f}",
                    OWNER: str(provider.get("owner") or owner()),
                }
            ),
        }
        if rules := firewall_rules(provider):
            request["firewall_rulesets"] = [{"id": firewall(cloud, region, rules)}]
        if filesystem:
            if region not in homes:
                if homes:  # made a moment ago for a region that then had no machine
                    continue
                cloud.create_filesystem(filesystem, region)
                homes = [region]
            request["file_system_names"] = [filesystem]
        if image := provider.get("image_family"):
            request["image"] = {"family": str(image)}
        try:
            return _once(cloud, request, wish)
        except LambdaError as error:
            if error.action is not Action.OTHER_REGION:
                raise
            last = error
    where = ", ".join(regions) or "any region"
    raise NoCapacity(
        f"Lambda has no {instance_type} free in {where} now: name more regions in provider.regions, take another type, "
        "or try again later."
    ) from last


def _once(cloud: LambdaCloud, request: dict[str, Any], wish: str) -> Machine:
    """The machine of this wish, asked for again only when the list of machines has not shown it for a while."""
    for attempt in range(TRIES):
        try:
            return _asked(request, cloud.launch(request))
        except Unanswered:
            for look in range(LOOKS):
                if look:
                    cloud.clock.sleep(LOOK_SECONDS)
                if found := with_wish(cloud, wish):
                    return found
            if attempt + 1 == TRIES:
                raise
    raise AssertionError("unreachable")


def with_wish(cloud: LambdaCloud, wish: str) -> Machine | None:
    """The live machine that a launch with this tag made; what it made too many is ended."""
    machines = [one for one in map(machine, cloud.instances()) if one.live and one.tags.get(LAUNCH) == wish]
    extra = surplus(machines)
    cloud.terminate([one.id for one in extra])
    return next((one for one in machines if one not in extra), None)


def _asked(request: Mapping[str, Any], instance: str) -> Machine:
    tags = {tag["key"]: tag["value"] for tag in request["tags"]}
    region, type_name = request["region_name"], request["instance_type_name"]
    return Machine(instance, request["name"], "booting", region, type_name, 0.0, None, None, tags)


def _with_capacity(cloud: LambdaCloud, instance_type: str, regions: Sequence[str], beside: Sequence[str]) -> list[str]:
    types = cloud.instance_types()
    if instance_type not in types:
        raise UserError(
            f"Lambda has no type of machine named {instance_type}: node_config.instance_type is one of "
            f"{', '.join(sorted(types))}."
        )

    def free(name: str) -> list[str]:
        entry = types.get(name, {"regions_with_capacity_available": []})
        return [region["name"] for region in entry["regions_with_capacity_available"]]

    there = free(instance_type)
    order = [region for region in regions if region in there] if regions else sorted(there)
    return sorted(order, key=lambda region: any(region not in free(other) for other in beside))


def ssh_key(cloud: LambdaCloud, provider: Mapping[str, Any]) -> str:
    """The name of the registered key that opens machines: `provider.ssh_key_name`, else the one whose text is
    `provider.ssh_public_key`, registered here if nobody has."""
    if name := provider.get("ssh_key_name"):
        return str(name)
    public = str(provider.get("ssh_public_key") or "")
    if not public:
        raise UserError(
            "no SSH key for Lambda's machines: set provider.ssh_key_name to one that is registered, or "
            "auth.ssh_private_key to one with a .pub file beside it."
        )
    for entry in cloud.ssh_keys():
        if _same_key(entry["public_key"], public):
            return str(entry["name"])
    name = f"raygpt-{hashlib.sha256(' '.join(public.split()[:2]).encode()).hexdigest()[:12]}"
    cloud.add_ssh_key(name, public)
    return name


def _same_key(one: str, other: str) -> bool:
    """Whether two lines of an authorized_keys file are one key, whatever their comments."""
    return one.split()[:2] == other.split()[:2]


def firewall_rules(provider: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What may come in from outside: SSH, from the networks of `provider.ssh_from`; none where that is not set (the
    account's own rules hold then). Machines of a region reach each other through their private network."""
    networks = provider.get("ssh_from") or []
    try:
        named = [str(ipaddress.IPv4Network(str(network))) for network in networks]
    except ValueError as error:
        raise UserError(f"provider.ssh_from is a list of networks such as 203.0.113.7/32 ({error}).") from None
    return [
        {"protocol": "tcp", "port_range": [22, 22], "source_network": network, "description": "raygpt: SSH"}
        for network in named
    ]


def firewall(cloud: LambdaCloud, region: str, rules: list[dict[str, Any]]) -> str:
    """The id of the region's ruleset with exactly these rules, which its name tells."""
    name = f"raygpt-{hashlib.sha256(repr(rules).encode()).hexdigest()[:12]}"
    for entry in cloud.firewall_rulesets():
        if entry["name"] == name and entry["region"]["name"] == region:
            return str(entry["id"])
    return cloud.create_firewall_ruleset(name, region, rules)


def _homes(cloud: LambdaCloud, filesystem: str) -> list[str]:
    """The regions that have a persistent filesystem of that name. It is mounted at /lambda/nfs/NAME and outlives every
    cluster; one that exists is never made a second time somewhere else, where it would be empty."""
    return [entry["region"]["name"] for entry in cloud.filesystems() if entry["name"] == filesystem]
