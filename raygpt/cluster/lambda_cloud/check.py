"""A Lambda cluster's file looked over before it costs anything: every problem in one sentence with the way out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raygpt.cluster.lambda_cloud.api import KEY_FILE, LambdaCloud
from raygpt.cluster.lambda_cloud.launch import firewall_rules, owner
from raygpt.cluster.lambda_cloud.machines import CLUSTER_NAME, OWNER, Machine, machine
from raygpt.cluster.lambda_cloud.orphans import reasons
from raygpt.cluster.lambda_cloud.provider import public_key
from raygpt.errors import UserError

# Ray asks them of every external provider's file, and gives none a default.
REQUIRED = (
    "auth",
    "available_node_types",
    "head_node_type",
    "file_mounts",
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
PROVIDER_KEYS = {
    "type",
    "module",
    "api",
    "key_file",
    "regions",
    "ssh_key_name",
    "ssh_from",
    "filesystem",
    "image_family",
    "boot_timeout_minutes",
}


def problems(config: Mapping[str, Any], cloud: LambdaCloud | None = None) -> list[str]:
    """What stands against `ray up` of this configuration, the file's own faults first; [] where nothing does. Asks the
    API, and starts nothing. Lambda tells no quota: that it is too small shows at the first launch."""
    found = _of_the_file(config)
    if "available_node_types" not in config or not isinstance(config.get("provider"), Mapping):
        return found
    try:
        cloud = cloud or LambdaCloud.of(config["provider"])
        return [*found, *_of_the_account(config, cloud)]
    except UserError as error:
        return [*found, str(error)]


def _types(config: Mapping[str, Any]) -> dict[str, str]:
    """node type -> type of machine"""
    nodes = config["available_node_types"]
    return {name: str((node.get("node_config") or {}).get("instance_type") or "") for name, node in nodes.items()}


def _of_the_file(config: Mapping[str, Any]) -> list[str]:
    found = []
    name = str(config.get("cluster_name", ""))
    if not CLUSTER_NAME.fullmatch(name):
        found.append(
            f"cluster_name={name} is no name for machines at Lambda: up to 40 small letters, digits and dashes, a "
            "letter first."
        )
    if missing := [key for key in REQUIRED if key not in config]:
        found.append(
            f"the file has no {', '.join(missing)}: Ray gives an external provider no defaults, write them out."
        )
    provider = config.get("provider") or {}
    if unknown := sorted(set(provider) - PROVIDER_KEYS - {"owner", "instance_types", "ssh_public_key"}):
        found.append(f"provider has no {', '.join(unknown)}: it takes {', '.join(sorted(PROVIDER_KEYS))}.")
    try:
        firewall_rules(provider)
    except UserError as error:
        found.append(str(error))
    named = str(provider.get("key_file") or KEY_FILE)
    if "file_mounts" in config and named not in (config["file_mounts"] or {}):
        found.append(
            f"file_mounts has no {named}: the head reads provider.key_file there, so mount it under that name."
        )
    removed = [str(command) for command in config.get("worker_setup_commands") or ()]
    if "worker_setup_commands" in config and not any(f"rm -f {named}" in command for command in removed):
        found.append(f"worker_setup_commands leave the key {named} on workers: add `rm -f {named}`.")
    key = Path(named).expanduser()
    if not key.is_file():
        found.append(
            f"provider.key_file={key} does not exist: the head launches workers with it, so put the API key there."
        )
    elif key.stat().st_mode & 0o077:
        found.append(f"provider.key_file={key} can be read by others: chmod 600 it.")
    private = Path(str((config.get("auth") or {}).get("ssh_private_key") or "")).expanduser()
    if not private.is_file():
        found.append(f"auth.ssh_private_key={private} does not exist: ssh-keygen makes one.")
    elif not provider.get("ssh_key_name") and not public_key(config["auth"]):
        found.append(f"auth.ssh_private_key={private} has no .pub file beside it: ssh-keygen -y makes it.")
    if "available_node_types" in config:
        head = config.get("head_node_type")
        types = _types(config)
        found += [
            f"available_node_types.{n} has no node_config.instance_type: name one." for n in types if not types[n]
        ]
        if head not in types:
            found.append(f"head_node_type={head} is not one of available_node_types ({', '.join(types)}): name one.")
        elif config["available_node_types"][head].get("max_workers", 0) != 0:
            found.append(f"available_node_types.{head}.max_workers is not 0: the head needs a node type of its own.")
    return found


def _of_the_account(config: Mapping[str, Any], cloud: LambdaCloud) -> list[str]:
    """Every request of it takes a second, so there are four at most."""
    provider = config["provider"]
    types = cloud.instance_types()  # the first request: a wrong key shows here
    found = []
    wanted = list(dict.fromkeys(name for name in _types(config).values() if name))
    regions = [str(region) for region in provider.get("regions") or ()]
    free: list[set[str]] = []
    machines = [one for one in map(machine, cloud.instances()) if one.cluster == config.get("cluster_name")]
    runs = any(one.kind == "head" and one.live for one in machines)  # room is no matter then: it may be its own
    for name in wanted:
        if name not in types:
            found.append(f"Lambda has no type of machine named {name}: it has {', '.join(sorted(types))}.")
            continue
        there = {entry["name"] for entry in types[name]["regions_with_capacity_available"]}
        free.append(there)
        if runs:
            continue
        if not there:
            found.append(f"no region has a {name} free now: try again later, or take another type.")
        elif regions and not there & set(regions):
            found.append(
                f"no {name} is free in provider.regions={', '.join(regions)}, but there is in "
                f"{', '.join(sorted(there))}: add one, or try again later."
            )
    if not runs and len(free) > 1 and all(free) and not set.intersection(*free):
        found.append(
            f"no region has {' and '.join(wanted)} free at once, and the machines of a cluster share one: try again "
            "later, or take the head's type from where the workers are."
        )
    if name := provider.get("ssh_key_name"):
        keys = {entry["name"]: entry["public_key"] for entry in cloud.ssh_keys()}
        if name not in keys:
            found.append(
                f"provider.ssh_key_name={name} is not registered at Lambda ({', '.join(sorted(keys)) or 'none is'}): "
                "leave it out, and auth.ssh_private_key's is registered."
            )
        else:
            own = public_key(config.get("auth") or {})
            if own and own.split()[:2] != keys[name].split()[:2]:
                found.append(
                    f"provider.ssh_key_name={name} is another key than auth.ssh_private_key: name the one that fits."
                )
    if (filesystem := provider.get("filesystem")) and regions:
        homes = {entry["region"]["name"] for entry in cloud.filesystems() if entry["name"] == filesystem}
        if homes and not homes & set(regions):
            found.append(
                f"provider.filesystem={filesystem} is in {', '.join(sorted(homes))} and provider.regions has "
                f"{', '.join(regions)}: add its region, or name another filesystem."
            )
    return found + _of_its_namesakes(str(config.get("cluster_name")), machines, cloud.clock.time())


def _of_its_namesakes(name: str, machines: list[Machine], now: float) -> list[str]:
    heads = [one for one in machines if one.kind == "head" and one.live]
    others = sorted({one.tags.get(OWNER, "?") for one in heads} - {owner()})
    found = []
    if others:
        found.append(
            f"cluster_name={name} is in use by {', '.join(others)}, and `ray up` would take that cluster over: choose "
            "another name."
        )
    orphaned = reasons(machines, now)
    if orphaned:
        found.append(
            f"{len(orphaned)} machines of an earlier {name} are paid for and have no head: raygpt cluster orphans FILE "
            "--end ends them."
        )
    return found
