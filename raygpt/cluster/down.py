"""`raygpt cluster down`: `ray down`, and a look whether anything is left that runs or is paid for."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raygpt.cluster.up import environment, ray_program, read_cluster
from raygpt.errors import UserError

# Command lines of Ray's processes: the raylet, the GCS, their agents and monitors, workers.
RAY_PROCESS = re.compile(r"/raylet/raylet |gcs_server|/ray/_private/|/ray/dashboard/|/ray/autoscaler/|(^|\s)ray::")
GONE_WAIT = 180  # seconds: AWS takes up to two minutes to end a machine
SSH = (
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "LogLevel=ERROR",
    "ConnectTimeout=8",
    "BatchMode=yes",
)


def down(path: str) -> int:
    """End the cluster of the file; the exit status: 0 once nothing is left, 1 with a sentence for each that is.

    A local cluster's hosts are asked over ssh, because `ray down` ends Ray on the head alone; a cloud is asked for the
    machines that bear the cluster's name.
    """
    cluster = read_cluster(path)
    kind = cluster["provider"].get("type")
    done = subprocess.run(
        [ray_program(), "down", "-y", "--log-style=pretty", "--log-color=false", path], env=environment(cluster)
    )
    faults = end_hosts(cluster) if kind == "local" else _machines_left(cluster, path)
    for sentence in faults:
        print(sentence, file=sys.stderr)
    if faults:
        return 1
    if done.returncode:  # it complains of a head that is gone already: nothing is left all the same
        print(f"`ray down` ended with exit status {done.returncode}.")
    nothing = "no process of Ray" if kind == "local" else "no machine"
    print(f"Cluster {cluster['cluster_name']} has ended: {nothing} is left.")
    return 0


def end_hosts(cluster: dict[str, Any]) -> list[str]:
    """End Ray on every host of a local cluster at once; a sentence for each host where it may still run."""
    provider = cluster["provider"]
    hosts = [provider["head_ip"], *(provider.get("worker_ips") or [])]
    with ThreadPoolExecutor(len(hosts)) as pool:
        return [fault for fault in pool.map(lambda host: _end_host(cluster, host), hosts) if fault]


def _end_host(cluster: dict[str, Any], host: str) -> str | None:
    try:
        # as Ray's own commands: the program may be on no path but that of ~/.bashrc, which a login shell does not read
        _ssh(cluster, host, "bash --login -c -i 'source ~/.bashrc; ray stop --force' >/dev/null 2>&1; true")
        left: list[str] = []
        for _ in range(20):
            left = ray_processes(_ssh(cluster, host, "ps -eo args"))
            if not left:
                return None
            time.sleep(0.5)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        words = str(getattr(error, "stderr", "") or error).strip().splitlines()
        return (
            f"Host {host} cannot be asked ({words[-1][:160] if words else 'no answer'}): if it runs, Ray there ends a "
            "minute after it lost the head; run this again once it can be reached."
        )
    return f"Host {host} still runs {len(left)} processes of Ray, such as {left[0][:100]!r}: end them there."


def ray_processes(listing: str) -> list[str]:
    """The lines of `ps -eo args` that are Ray's."""
    return [line for line in listing.splitlines() if RAY_PROCESS.search(line)]


def _ssh(cluster: dict[str, Any], host: str, command: str) -> str:
    auth = cluster["auth"]
    words = ["ssh", "-n", *(word for option in SSH for word in ("-o", option))]
    if auth.get("ssh_private_key"):
        words += ["-i", str(Path(auth["ssh_private_key"]).expanduser())]
    words += [f"{auth['ssh_user']}@{host}", command]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=90).stdout


def _machines_left(cluster: dict[str, Any], path: str) -> list[str]:
    listed = {"aws": _aws_machines, "external": _external_machines}.get(cluster["provider"].get("type"))
    if listed is None:
        return []
    left = wait_until_gone(lambda: listed(cluster))
    if not left:
        return []
    return [
        f"{len(left)} machines of cluster {cluster['cluster_name']} are still there and cost money "
        f"({', '.join(left)}): run `raygpt cluster down {path}` again, or end them in the cloud's console."
    ]


def wait_until_gone(listed: Callable[[], list[str]], limit: float = GONE_WAIT, pause: float = 5) -> list[str]:
    """What `listed` still gives after at most `limit` seconds."""
    end = time.monotonic() + limit
    while (left := listed()) and time.monotonic() < end:
        time.sleep(pause)
    return left


def _aws_machines(cluster: dict[str, Any]) -> list[str]:
    """Ids of the cluster's machines by their tag, stopped ones among them: their disks are paid for."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    tag = {"Name": "tag:ray-cluster-name", "Values": [cluster["cluster_name"]]}
    states = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
    try:
        ec2 = boto3.client("ec2", region_name=cluster["provider"].get("region"))
        pages = ec2.get_paginator("describe_instances").paginate(Filters=[tag, states])
        return [each["InstanceId"] for page in pages for group in page["Reservations"] for each in group["Instances"]]
    except (BotoCoreError, ClientError) as error:
        raise UserError(
            f"AWS cannot be asked whether machines of cluster {cluster['cluster_name']} are left ({error}): look into "
            "the EC2 console."
        ) from error


def _external_machines(cluster: dict[str, Any]) -> list[str]:
    """What the cluster's own node provider lists from its cloud."""
    from ray.autoscaler._private.providers import _get_node_provider

    provider = _get_node_provider(cluster["provider"], cluster["cluster_name"], use_cache=False)
    return [str(each) for each in provider.non_terminated_nodes({})]
