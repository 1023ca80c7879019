"""What the machine has that this runs on: memory (a container's limit counts), GPU, room on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

import torch

from raygpt.capacity.fit import Hardware
from raygpt.cluster import container
from raygpt.storage import Location


def probe(run: Location | None = None, use_gpu: bool = True) -> Hardware:
    """This machine, all its GPUs sharing it. `run` is where checkpoints go: S3 has no limit."""
    memory = host_memory()
    disk = free_disk(run) if run is not None and run.is_local else None
    if not use_gpu or not torch.cuda.is_available():
        return Hardware(memory, disk=disk)
    properties = torch.cuda.get_device_properties(0)
    return Hardware(memory, properties.name, properties.total_memory, torch.cuda.device_count(), disk)


def host_memory() -> int:
    """Bytes of memory that processes here may use: the machine's, or the container's if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    granted, _ = container.memory()
    return total if granted is None else min(total, granted)


def free_disk(run: Location) -> int:
    """Bytes that a run's checkpoints may take: what is free where its folder is or will be, and what they take now."""
    path = Path(run.path)
    there = 0
    for file in (path / "checkpoints").rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a worker that is being ended may still delete
            found = file.stat()
            there += found.st_size if stat.S_ISREG(found.st_mode) else 0
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free + there
