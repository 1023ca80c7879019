"""PURE. Tensors of a checkpoint or base model on every rank, while only one rank of each machine reads them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raygpt.parallel.distributed import World

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def machine() -> str:
    """Tells machines apart. Where two are taken for one, one of them gets its tensors over the network."""
    return _BOOT.read_text().strip() if _BOOT.exists() else socket.gethostname()


def once_per_node(
    world: World, items: Callable[[], Iterable[tuple[Any, ...]]], node: str | None = None
) -> Iterator[tuple[Any, ...]]:
    """What `items()` yields, (…, tensor) one after another on the CPU, on every rank; the first rank of each machine
    calls it and passes each tensor on to the others there. One tensor at a time is on its way.

    `node` names the machine of this rank, `machine()` by default. Every rank must take all items. What `items()` raises
    is raised on all ranks of the machine.
    """
    nodes = world.gather(machine() if node is None else node)
    ranks, group = [world.rank], None
    for name in dict.fromkeys(nodes):  # every rank makes all groups, in one order
        members = [rank for rank, other in enumerate(nodes) if other == name]
        made = dist.new_group(members, backend="gloo") if len(members) > 1 else None
        if world.rank in members:
            ranks, group = members, made
    if group is None:
        yield from items()
        return
    try:
        if ranks[0] == world.rank:
            yield from _pass_on(items, ranks[0], group)
        else:
            yield from _receive(ranks[0], group)
    finally:
        dist.destroy_process_group(group)


def _pass_on(items: Callable[[], Iterable[tuple[Any, ...]]], source: int, group: Any) -> Iterator[tuple[Any, ...]]:
    try:
        for *facts, value in items():
            value = value.detach().contiguous()
            dist.broadcast_object_list([(tuple(facts), value.shape, value.dtype)], src=source, group=group)
            dist.broadcast(value, src=source, group=group)
            yield (*facts, value)
    except Exception as error:
        dist.broadcast_object_list([error], src=source, group=group)
        raise
    dist.broadcast_object_list([None], src=source, group=group)


def _receive(source: int, group: Any) -> Iterator[tuple[Any, ...]]:
    while True:
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=source, group=group)
        if box[0] is None:
            return
        if isinstance(box[0], Exception):
            raise box[0]
        facts, shape, dtype = box[0]
        value: Tensor = torch.empty(shape, dtype=dtype)
        dist.broadcast(value, src=source, group=group)
        yield (*facts, value)
