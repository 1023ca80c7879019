"""PURE. How a checkpoint's work is shared out over ranks, and what the files of a share are called."""

from __future__ import annotations

from collections.abc import Mapping


def file_of(kind: str, rank: int, world_size: int) -> str:
    """Name of the file of weights (`model`) or of the optimizer's tensors (`optimizer`) that a rank writes."""
    return f"{kind}.safetensors" if world_size == 1 else f"{kind}-{rank:05d}.safetensors"


def share_out(sizes: Mapping[str, int], ranks: int) -> list[list[str]]:
    """Names shared out by size, the same on every rank: the largest first, each to whom has least.

    No share exceeds 4/3 of the best possible largest one (Graham, 1969). Taking every ranks-th name instead would leave
    half of 4 ranks with nothing but biases: a block of GPT-2 has 12 parameters, 4 of them matrices, always at the same
    places.
    """
    shares: list[list[str]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(sizes, key=lambda each: (-sizes[each], each)):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += sizes[name]
    return shares
