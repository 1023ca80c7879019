"""Ranks that are threads of one process, for what is about who reads and writes what."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from raygpt.parallel.distributed import World


class Meeting:
    """Where the ranks of one world exchange values."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.values: list[Any] = [None] * size


class ThreadWorld(World):
    """`World` with its broadcast and gather over shared memory."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        super().__init__(rank, size, torch.device("cpu"), meeting)

    def gather(self, value: Any) -> list[Any]:
        self.control.values[self.rank] = value
        self.control.barrier.wait(30)
        out = list(self.control.values)
        self.control.barrier.wait(30)
        return out

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


def on_ranks(size: int, act: Callable[[World], Any]) -> list[Any]:
    """What `act` returns on each of `size` ranks, or the error it raised there."""
    meeting = Meeting(size)
    out: list[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            out[rank] = act(ThreadWorld(rank, size, meeting))
        except Exception as error:
            out[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return out
