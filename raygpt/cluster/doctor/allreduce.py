"""How fast gradients can be summed: an all-reduce between the GPUs of a machine or a cluster, or between CPU nodes.

The figure is nccl-tests' bus bandwidth, 2 (n-1)/n x bytes/seconds, which does not fall with the number of ranks.
"""

from __future__ import annotations

import glob
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from raygpt.cluster.doctor.finding import Finding, fail, ok, skipped, warn
from raygpt.cluster.doctor.nccl import parse_nccl, transport_finding
from raygpt.errors import one_line

if TYPE_CHECKING:  # 2 s of a start
    import torch

GPU_BYTES, CPU_BYTES = 256 * 2**20, 16 * 2**20  # GPT-2 124M's gradients in fp16 are 249 MB
REPEATS = 5
MEET_SECONDS = 60.0
ROOM_SECONDS = 20.0  # for GPUs that somebody uses
WAY = "nccl"  # prefix of its log's files
LEAST_GBS = 0.05  # between machines: 124M parameters in fp32 take 20 s a step with that


@dataclass(frozen=True)
class Measured:
    """One rank's: GB/s on the bus, and what NCCL wrote."""

    gbs: float
    log: str = ""


def member(rank: int, size: int, address: str, port: int, gpu: int | None) -> Measured:
    """One rank of an all-reduce that meets at address:port; `gpu` is its index, None for the CPU and gloo."""
    with tempfile.TemporaryDirectory() as folder:
        if gpu is not None:
            os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": f"{folder}/{WAY}-%h-%p"}
        elif interface := interface_towards(address):
            # by itself gloo takes what the host's own name resolves to, on Ubuntu 127.0.1.1
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        import torch
        import torch.distributed as dist

        device = torch.device("cpu") if gpu is None else torch.device("cuda", gpu)
        if gpu is not None:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "gloo" if gpu is None else "nccl",
            init_method=f"tcp://{address}:{port}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=MEET_SECONDS),
        )
        try:
            gbs = _measure(device, size)
        finally:
            dist.destroy_process_group()
        log = "".join(Path(file).read_text(errors="replace") for file in glob.glob(f"{folder}/{WAY}-*"))
    return Measured(gbs, log)


def _measure(device: torch.device, size: int) -> float:
    import torch
    import torch.distributed as dist

    cuda = device.type == "cuda"
    nbytes = GPU_BYTES if cuda else CPU_BYTES
    values = torch.ones(nbytes // 4, device=device)
    seconds = []
    for _ in range(1 + REPEATS):  # the first one connects
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        dist.all_reduce(values)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        values.fill_(1.0)
    return bus_gbs(nbytes, sorted(seconds[1:])[REPEATS // 2], size)


def bus_gbs(nbytes: int, seconds: float, size: int) -> float:
    """GB/s of bus bandwidth of an all-reduce over `size` ranks."""
    return 2 * (size - 1) / size * nbytes / seconds / 1e9


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def interface_towards(host: str) -> str | None:
    """Name of the network interface on the way to `host`. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            mine = probe.getsockname()[0]
    except OSError:
        return None
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if any(each.address == mine for each in addresses)), None)


def fabric_here(root: str = "/sys/class/infiniband") -> str | None:
    """EFA or InfiniBand where this machine has a device of it, None for Ethernet alone."""
    found = None
    for device in sorted(glob.glob(f"{root}/*")):
        driver = os.path.basename(os.path.realpath(f"{device}/device/driver"))
        if driver == "efa" or os.path.basename(device).startswith("efa"):
            return "EFA"
        found = "InfiniBand"
    return found


def gpus_of_this_machine(count: int) -> list[Finding]:
    """An all-reduce between the GPUs here, each in a process of its own."""
    if count < 2:
        return []
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    port = free_port()
    try:
        with ProcessPoolExecutor(count, get_context("spawn")) as pool:
            asked = [pool.submit(member, rank, count, "127.0.0.1", port, rank) for rank in range(count)]
            return findings([each.result(timeout=4 * MEET_SECONDS) for each in asked], 1, fabric_here(), gpu=True)
    except Exception as error:
        return [
            fail("all-reduce", f"NCCL failed: {one_line(error)}", "run with NCCL_DEBUG=INFO; see `nvidia-smi topo`")
        ]


def findings(measured: Sequence[Measured], machines: int, fabric: str | None, *, gpu: bool) -> list[Finding]:
    """What the ranks' figures and logs say; the slowest rank's speed is that of all."""
    gbs = min(each.gbs for each in measured)
    what = f"{gbs:.2f} GB/s on the bus between {len(measured)} {'GPUs' if gpu else 'nodes (gloo)'}"
    if machines > 1 and gbs < LEAST_GBS:
        speed = warn("all-reduce", what, "put the nodes into one zone and placement group; see the transport")
    else:
        speed = ok("all-reduce", what)
    if not gpu:
        return [speed]
    return [speed, transport_finding(parse_nccl("\n".join(each.log for each in measured)), fabric, machines)]


class InUse(Exception):
    """GPUs that others have."""


def nodes_of_the_cluster() -> list[Finding]:
    """An all-reduce over all GPUs of the connected cluster, or between its nodes where it has none."""
    import ray

    from raygpt.cluster.doctor.nodes import on_every_node

    nodes = [node for node in ray.nodes() if node["Alive"]]
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus < 2 and len(nodes) < 2:
        return [skipped("all-reduce", "one node without two GPUs: nothing to sum between")]
    try:
        if gpus < 2:
            return findings(_between_nodes([node["NodeID"] for node in nodes]), len(nodes), None, gpu=False)
        measured, machines = _between_gpus(gpus)
        fabrics = [each for each in on_every_node(fabric_here).values() if isinstance(each, str)]
        return findings(measured, machines, fabrics[0] if fabrics else None, gpu=True)
    except InUse as error:
        return [skipped("all-reduce", str(error))]
    except Exception as error:
        return [
            fail(
                "all-reduce",
                f"nodes cannot sum between them: {one_line(getattr(error, 'cause', None) or error)}",
                "let every node reach every other on all ports (a security group that passes all traffic to itself)",
            )
        ]


def _between_nodes(nodes: Sequence[str]) -> list[Measured]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return _together(
        [{"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)} for node in nodes], None
    )


def _between_gpus(gpus: int) -> tuple[list[Measured], int]:
    """(figures, machines) of a rank on every GPU. InUse where they are."""
    from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"GPU": 1}] * gpus, strategy="PACK", name="raygpt-doctor")
    try:
        if not group.wait(ROOM_SECONDS):
            raise InUse(f"some of the {gpus} GPUs are in use: run it again when the cluster is idle")
        machines = len(set(placement_group_table(group)["bundles_to_node_id"].values()))
        where = [
            {"num_gpus": 1, "scheduling_strategy": PlacementGroupSchedulingStrategy(group, index)}
            for index in range(gpus)
        ]
        return _together(where, 0), machines
    finally:
        remove_placement_group(group)


def _together(where: Sequence[dict], gpu: int | None) -> list[Measured]:
    """`member` as one task at each place; they meet on the first one's node."""
    import ray

    # a process of their own: what NCCL and gloo are told by the environment shall not outlive them
    task = ray.remote(member).options(num_cpus=0, max_calls=1, max_retries=0)
    address, port = ray.get(
        ray.remote(_meeting_place).options(num_cpus=0, **{**where[0], "num_gpus": 0}).remote(), timeout=MEET_SECONDS
    )
    asked = [task.options(**options).remote(rank, len(where), address, port, gpu) for rank, options in enumerate(where)]
    try:
        return ray.get(asked, timeout=4 * MEET_SECONDS)
    finally:
        for each in asked:
            ray.cancel(each, force=True)


def _meeting_place() -> tuple[str, int]:
    import ray

    return ray.util.get_node_ip_address(), free_port()
