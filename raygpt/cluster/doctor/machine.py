"""Disk, memory and /dev/shm of the machine this runs on."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

from raygpt.cluster import container
from raygpt.cluster.doctor.finding import Finding, fail, ok, warn
from raygpt.storage import Location

GIB = 2**30
DISK_FAIL, DISK_WARN = 1 * GIB, 20 * GIB  # GPT-2 XL's checkpoint takes 18 GiB, one of 124M 1.4
RAY_FULL = 0.95  # Ray's local_fs_capacity_threshold: objects that do not fit are refused from here on
MEMORY_FAIL, MEMORY_WARN = 1 * GIB, 4 * GIB
SHM_WARN = 1 * GIB  # what a cluster of raygpt's own puts there


def machine_checks(storage: Location) -> list[Finding]:
    found = [disk("temp", Path(tempfile.gettempdir()), spills=True)]
    if storage.is_local:
        found.insert(0, disk("run.storage", Path(storage.path)))
    return [*found, memory(), shared_memory()]


def disk(name: str, path: Path, spills: bool = False) -> Finding:
    """Room where a folder is or will be. `spills` where Ray keeps what its object store has no room for."""
    while not path.exists() and path != path.parent:
        path = path.parent
    usage = shutil.disk_usage(path)
    full = usage.used / (usage.used + usage.free) if usage.used + usage.free else 1.0
    text = f"{usage.free / GIB:.1f} of {usage.total / GIB:.0f} GiB free at {path}"
    if usage.free < DISK_FAIL:
        return fail(f"disk {name}", text, "free some, or name another place (run.storage, TMPDIR)")
    if spills and full >= RAY_FULL:
        return fail(
            f"disk {name}", f"{text}: {full:.0%} full, and Ray spills nothing from {RAY_FULL:.0%} on",
            "free some, or start Ray with another --temp-dir",
        )  # fmt: skip
    if usage.free < DISK_WARN:
        return warn(f"disk {name}", text, "`raygpt plan` says what a run takes; train.keep_checkpoints makes it less")
    return ok(f"disk {name}", text)


def memory() -> Finding:
    total, free = memory_here()
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free, {os.cpu_count()} cores"
    if free < MEMORY_FAIL:
        return fail("memory", text, "end what takes it: Ray kills workers on a machine that is 95 % full")
    if free < MEMORY_WARN:
        return warn("memory", text, "end what takes it, or train a smaller model; `raygpt plan` says what a run takes")
    return ok("memory", text)


def memory_here() -> tuple[int, int]:
    """(bytes that processes here may use, how many are free); a container's limit counts."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    granted, taken = container.memory()
    if granted is not None and granted < total:
        total, free = granted, min(free, granted - taken)
    return total, free


def shared_memory(path: str = "/dev/shm") -> Finding:
    if not os.path.isdir(path):
        return ok("/dev/shm", "none on this system: Ray keeps objects in its temporary folder")
    usage = shutil.disk_usage(path)
    text = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free < SHM_WARN:
        return warn(
            "/dev/shm",
            f"{text}: Ray's object store goes to a disk, and NCCL within a machine may fail",
            "docker run --shm-size=8g; on Kubernetes an emptyDir of medium Memory at /dev/shm",
        )
    return ok("/dev/shm", text)
