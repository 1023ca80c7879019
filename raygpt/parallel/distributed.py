"""PURE. The few collectives training needs, the same for one process, torchrun and Ray Train."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raygpt.data.order import lanes_of
from raygpt.hardware import indexed

SIOCGIFADDR = 0x8915  # ioctl of Linux: IPv4 address of an interface


@dataclass(frozen=True)
class World:
    """This process among its peers. `control` is a gloo group on the CPU: small facts never wait for a GPU queue."""

    rank: int
    size: int
    device: torch.device
    control: Any = None

    @classmethod
    def join(cls, device: torch.device) -> World:
        """World of the initialised default process group, or of one process without any."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls(0, 1, device)
        name_gloo_interface()
        control = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device, control)

    def sum(self, *values: float) -> list[float]:
        """Sums over ranks in float64, the same on every rank."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def minimum(self, value: int) -> int:
        """Smallest value over ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value])
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=self.control)
        return int(tensor)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value, group=self.control)
        return out

    def agree(self, *values: int) -> Agreement:
        """Start agreeing on the largest of each value over ranks, without waiting: they travel while the step
        computes."""
        return Agreement(self, values)

    def batch_digest(self, tokens: np.ndarray, global_rows: int | None = None) -> str:
        """Hex digest of the global batch from every rank's rows, independent of how many ranks share it.

        `global_rows` are shared out as `lanes_of` does; without it every rank has as many as this one.
        """
        rows = np.stack([_row_digest(row) for row in tokens])
        if self.size > 1:
            shares = [lanes_of(rank, self.size, global_rows or len(rows) * self.size) for rank in range(self.size)]
            counts = [share.stop - share.start for share in shares]
            mine = np.zeros((max(counts), rows.shape[1]), np.uint8)  # a collective takes one size
            mine[: len(rows)] = rows
            parts = [torch.empty(mine.shape, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(parts, torch.from_numpy(mine), group=self.control)
            rows = torch.cat([part[:count] for part, count in zip(parts, counts)]).numpy()
        return hashlib.sha256(rows.tobytes()).hexdigest()[:32]


class Agreement:
    """Small maxima over ranks in flight."""

    def __init__(self, world: World, values: tuple[int, ...]) -> None:
        self._values = torch.tensor(values)
        self._work = None
        if world.size > 1:
            self._work = dist.all_reduce(self._values, op=dist.ReduceOp.MAX, group=world.control, async_op=True)

    def wait(self) -> list[int]:
        """The agreed values."""
        if self._work is not None:
            self._work.wait()
        return self._values.tolist()


def name_gloo_interface() -> str | None:
    """Where a world spans several hosts, tell gloo which network interface leads to them; returns its name.

    By itself gloo takes the address that the host's own name resolves to, which on Ubuntu's cloud images is 127.0.1.1:
    then ranks of different hosts wait for each other for ever. Left alone: GLOO_SOCKET_IFNAME where it is set, and
    worlds on one host (torchrun and Ray Train say so by LOCAL_WORLD_SIZE).
    """
    master, local = os.environ.get("MASTER_ADDR"), os.environ.get("LOCAL_WORLD_SIZE")
    if "GLOO_SOCKET_IFNAME" in os.environ or not master or not local or int(local) == dist.get_world_size():
        return None
    name = interface_of(address_towards(master))
    if name is not None and name != "lo":
        os.environ["GLOO_SOCKET_IFNAME"] = name
        return name
    return None


def address_towards(host: str) -> str | None:
    """This machine's own IPv4 address on the way to `host`, None where there is no way. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return probe.getsockname()[0]
    except OSError:
        return None


def interface_of(address: str | None) -> str | None:
    """Name of the network interface that carries an IPv4 address, None where none does or the system cannot say."""
    try:
        import fcntl
    except ImportError:
        return None
    for _, name in socket.if_nameindex() if address else ():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
        if socket.inet_ntoa(found[20:24]) == address:
            return name
    return None


def parallel(model: nn.Module, world: World, *, always: bool = False) -> nn.Module:
    """The model under DDP, or itself where there is one worker, unless `always`; that takes a process group."""
    if world.size == 1 and not always:
        return model
    ids = [indexed(world.device).index] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def _row_digest(row: np.ndarray) -> np.ndarray:
    # ids as int64 so that a uint16 and a uint32 folder of the same text agree
    digest = hashlib.blake2b(np.ascontiguousarray(row, dtype="<i8").tobytes(), digest_size=16).digest()
    return np.frombuffer(digest, np.uint8)
