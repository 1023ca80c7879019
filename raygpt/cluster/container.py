"""What a container grants its processes: control groups, version 2 and then 1."""

from __future__ import annotations

import contextlib
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def memory(root: Path = ROOT) -> tuple[int | None, int]:
    """(bytes granted, None without a limit; bytes taken, 0 where it does not say)."""
    for limit, taken in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError):
            text = (root / limit).read_text().strip()
            if text.isdigit():
                used = 0
                with contextlib.suppress(OSError, ValueError):
                    used = int((root / taken).read_text())
                return int(text), used
    return None, 0


def cpus(root: Path = ROOT) -> float | None:
    """CPUs granted; None without a limit."""
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):
        try:
            words = (root / name).read_text().split()
            if name == "cpu.max":
                return None if words[0] == "max" else int(words[0]) / int(words[1])
            period = int((root / "cpu/cpu.cfs_period_us").read_text())
            return None if int(words[0]) <= 0 else int(words[0]) / period
        except (OSError, ValueError, IndexError):
            continue
    return None
