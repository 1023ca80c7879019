"""Disk cache of token shards read from S3, so that later epochs do not read S3 again.

A shard becomes a sparse local file beside a map with one byte per block. A block's bytes are written before its mark,
so processes of one machine share the cache without a lock; two that fetch one block write the same bytes.
When the limit is reached nothing more is added: every epoch visits every block once, so evicting one block for another
would buy nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

BLOCK_BYTES = 256 * 1024


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/raygpt/shards`, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "raygpt" / "shards"


class ShardCache:
    """Cache of one shard folder, keyed by its fingerprint; `limit_bytes` bounds all folders together."""

    def __init__(self, fingerprint: str, limit_bytes: int, root: Path | None = None) -> None:
        self.folder = (root or cache_root()) / fingerprint
        self.limit_bytes = limit_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        os.utime(self.folder)
        self._make_room()
        self._maps: dict[str, tuple[int, np.memmap]] = {}

    def read(self, name: str, size: int, start: int, stop: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """Bytes [start, stop) of a shard of `size` bytes; `fetch(start, stop)` gets what is not here yet."""
        handle, have = self._open(name, size)
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        missing = [block for block in range(first, last + 1) if not have[block]]
        if missing and self.used_bytes() >= self.limit_bytes:
            return fetch(start, stop)
        if missing:  # one request for the whole gap: blocks of one read are neighbours
            begin, end = missing[0] * BLOCK_BYTES, min(size, (missing[-1] + 1) * BLOCK_BYTES)
            os.pwrite(handle, fetch(begin, end), begin)
            have[missing[0] : missing[-1] + 1] = 1
        return os.pread(handle, stop - start, start)

    def used_bytes(self) -> int:
        """Disk blocks taken by this folder."""
        return sum(entry.stat().st_blocks * 512 for entry in self.folder.iterdir())

    def _open(self, name: str, size: int) -> tuple[int, np.memmap]:
        if name not in self._maps:
            handle = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            if os.fstat(handle).st_size != size:
                os.truncate(handle, size)
            marks = self.folder / f"{name}.have"
            blocks = -(-size // BLOCK_BYTES)
            with open(marks, "ab") as file:
                if file.tell() < blocks:
                    file.truncate(blocks)
            self._maps[name] = handle, np.memmap(marks, dtype=np.uint8, mode="r+", shape=(blocks,))
        return self._maps[name]

    def _make_room(self) -> None:
        # other data sets go, the longest unused first, until all together fit the limit
        others = [path for path in self.folder.parent.iterdir() if path.is_dir() and path != self.folder]
        sizes = {path: sum(file.stat().st_blocks * 512 for file in path.iterdir()) for path in others}
        total = sum(sizes.values())
        for path in sorted(others, key=lambda path: path.stat().st_mtime):
            if total <= self.limit_bytes:
                break
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
