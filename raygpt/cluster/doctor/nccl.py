"""PURE. Which way NCCL really goes, by what it says of itself with NCCL_DEBUG=INFO.

NCCL takes the fastest network that it finds and, where it finds none, goes over sockets without a word: on machines
with EFA that costs most of what they are rented for.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from raygpt.cluster.doctor.finding import Finding, fail, ok, warn

# `Channel 00/0 : 0[0] -> 8[0] [receive] via NET/AWS Libfabric/0/GDRDMA`, `via P2P/CUMEM/read`, `via SHM/direct/direct`
VIA = re.compile(r"\bvia (?:NET/(?P<net>[^/\n]+)/\S*|(?P<local>P2P|SHM|C2C|NVLS|DIRECT)\b)")
DIRECT = re.compile(r"\bvia NET/[^\n]*GDRDMA")
NETWORK = re.compile(r"NCCL INFO Using network (?P<name>\S[^\n]*)")
PROVIDER = re.compile(r"NET/OFI Selected [Pp]rovider is (?P<name>[\w;-]+)")
TROUBLE = re.compile(r"NCCL WARN (?P<text>NET/[^\n]*)")
FABRICS = {"efa": "EFA", "ib": "InfiniBand"}


@dataclass(frozen=True)
class Transport:
    """What was seen: {kind: channels} between machines (EFA, libfabric, InfiniBand, sockets) and within one (P2P, SHM),
    whether the network reads GPU memory itself, and what the plugin complained of."""

    between: dict[str, int] = field(default_factory=dict)
    within: dict[str, int] = field(default_factory=dict)
    gpu_direct: bool = False
    chosen: str | None = None  # the network that was chosen, used or not
    warnings: tuple[str, ...] = ()


def parse_nccl(log: str) -> Transport:
    """The transports of all ranks whose lines are in `log`."""
    provider = PROVIDER.search(log)
    between: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for match in VIA.finditer(log):
        if match["net"]:
            between[_network(match["net"], provider["name"] if provider else None)] += 1
        else:
            within[match["local"]] += 1
    network = NETWORK.search(log)
    chosen = _network(network["name"].strip(), provider["name"] if provider else None) if network else None
    warnings = tuple(dict.fromkeys(match["text"].strip()[:200] for match in TROUBLE.finditer(log)))
    return Transport(dict(between), dict(within), bool(DIRECT.search(log)), chosen, warnings)


def _network(name: str, provider: str | None) -> str:
    """A network's name as people know it; NCCL calls the OFI plugin `AWS Libfabric`, `Libfabric` or `OFI`."""
    if "libfabric" in name.lower() or name.upper() == "OFI":
        return "EFA" if provider and provider.startswith("efa") else f"libfabric ({provider or 'provider unknown'})"
    return {"IB": "InfiniBand", "Socket": "sockets"}.get(name, name)


def transport_finding(seen: Transport, fabric: str | None, machines: int) -> Finding:
    """A judgement; `fabric` is what the machines have (EFA, InfiniBand; None: Ethernet alone)."""
    if machines < 2:
        used = ", ".join(sorted(seen.within)) or "no channel"
        if "SHM" in seen.within and "P2P" not in seen.within:
            return warn(
                "nccl transport", f"{used}: GPUs of this machine talk by way of its memory, not to each other",
                "see `nvidia-smi topo -m`; unset NCCL_P2P_DISABLE; in a virtual machine ACS or the IOMMU may forbid it",
            )  # fmt: skip
        return ok("nccl transport", f"{used} within the machine")
    used = ", ".join(sorted(seen.between)) or seen.chosen or "unknown"
    direct = ", with GPU memory read by the network" if seen.gpu_direct else ""
    if fabric and (not seen.between or any("sockets" in name for name in seen.between)):
        why = f"; NCCL says: {seen.warnings[0]}" if seen.warnings else ""
        return fail("nccl transport", f"{used} between machines, although they have {fabric}{why}", _fix(fabric))
    return ok("nccl transport", f"{used} between machines{direct}")


def _fix(fabric: str) -> str:
    if fabric == "EFA":
        return (
            "install aws-ofi-nccl and libfabric (Deep Learning AMI has both) and put /opt/amazon/ofi-nccl/lib and "
            "/opt/amazon/efa/lib on LD_LIBRARY_PATH; give a container /dev/infiniband, on Kubernetes "
            "vpc.amazonaws.com/efa; let the security group pass all traffic to itself; unset NCCL_NET"
        )
    return "install rdma-core (libibverbs), give a container /dev/infiniband, and unset NCCL_IB_DISABLE and NCCL_NET"
