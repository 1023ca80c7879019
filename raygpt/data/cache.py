"""Disk cache of token shards read from S3, so that later epochs do not read S3 again.

A shard becomes a sparse local file; one file beside them, `marks`, holds the CRC-32 of every block that is there.

- A block counts only when its bytes fit its checksum, looked at on its first read in each process: what a crash of the
  machine tore, or a hand deleted, is fetched again. (87 us for 256 KiB; an fdatasync before each mark took 1,350.)
- Processes of one machine share the cache without a lock: two that fetch one block write the same bytes.
- A folder in use is locked (shared flock on `<fingerprint>.lock`), and only folders that nobody holds make room.
- A full disk, or a folder that cannot be written, ends the caching with one warning and never the job.
- When the limit is reached nothing more is added: every epoch visits every block once, so evicting one block of a
  data set for another would buy nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from io import FileIO
from pathlib import Path

import numpy as np

from raygpt.data.shards import Layout

BLOCK_BYTES = 256 * 1024
# A corpus this small is read in single rows from all over it: larger pieces, 32 times fewer requests.
SMALL_CORPUS_BYTES = 2**30
PIECE_BYTES = 8 * 2**20
OPEN_SHARDS = 256  # as reader.OPEN_MAPS
LOOK_SECONDS = 10.0  # how often other folders are looked at: what they take, and whether they became free
STRIPES = 64
MARKS = "marks"
_HEADER = 8  # bytes at the beginning of `marks`: how many bytes of blocks were added, int64
_MARK = 4  # bytes of a mark: CRC-32, 0 for a block that is not there


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/raygpt/shards`, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "raygpt" / "shards"


class ShardCache:
    """Cache of one shard folder, keyed by its fingerprint; `limit_bytes` bounds all folders together.

    The bound is kept to a few blocks: processes add to one count without a lock.
    """

    def __init__(self, layout: Layout, limit_bytes: int, root: Path | None = None) -> None:
        root = root or cache_root()
        self.folder = root / f"{layout.fingerprint}.2"  # 2: the files' format
        self.limit_bytes = limit_bytes
        self._sizes = np.diff(layout.starts) * layout.numpy_dtype.itemsize
        blocks = -(-self._sizes // BLOCK_BYTES)
        # number of each shard's first block in the folder, and of all blocks
        self._first = np.concatenate([[0], np.cumsum(blocks)])
        small = int(self._sizes.sum()) <= min(SMALL_CORPUS_BYTES, limit_bytes)
        self._piece_blocks = (PIECE_BYTES if small else BLOCK_BYTES) // BLOCK_BYTES
        self._checked = np.zeros(int(self._first[-1]), np.bool_)
        self._inodes: dict[int, int] = {}
        self._open = lru_cache(OPEN_SHARDS)(self._open_shard)
        self._stripes = [threading.Lock() for _ in range(STRIPES)]
        self._counting = threading.Lock()
        self._others = 0
        self._looked = -LOOK_SECONDS
        self._ended = self._full = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _open_file(_lock_path(self.folder))
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits while somebody deletes this very folder
            os.utime(_lock_path(self.folder))
            self.folder.mkdir(exist_ok=True)
            self._marks = _open_file(self.folder / MARKS)
            size = _HEADER + _MARK * self._checked.size
            if os.fstat(self._marks.fileno()).st_size != size:
                os.truncate(self._marks.fileno(), size)
        except OSError as error:
            self._end(error)

    def read(self, index: int, start: int, stop: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """Bytes [start, stop) of shard number `index`; `fetch(start, stop)` gets what is not here yet."""
        if stop <= start:
            return b""
        blocks = range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        missing = self._missing(index, blocks)
        if missing and self._has_room(BLOCK_BYTES):
            with self._fetching(index, blocks):
                missing = self._missing(index, blocks)  # another thread may have fetched them meanwhile
                if missing:
                    missing = self._fill(index, missing, fetch)
        if not missing:
            try:
                data = os.pread(self._open(index).fileno(), stop - start, start)
                if len(data) == stop - start:
                    return data
            except OSError as error:
                self._end(error)
        return fetch(start, stop)

    def _fill(self, index: int, missing: list[int], fetch: Callable[[int, int], bytes]) -> list[int]:
        """Fetch and keep what is `missing`; what is missing then. One request: blocks of one read are neighbours."""
        piece = self._piece_blocks
        low = missing[0] // piece * piece * BLOCK_BYTES
        high = min((missing[-1] // piece + 1) * piece * BLOCK_BYTES, int(self._sizes[index]))
        if not self._has_room(high - low):
            return missing
        data = fetch(low, high)
        try:
            self._store(index, low, data)
        except OSError as error:
            self._stop_adding(error)
            return missing
        return []

    def used_bytes(self) -> int:
        """Bytes of blocks in this folder."""
        return 0 if self._ended else _used(self._marks)

    def _missing(self, index: int, blocks: range) -> list[int]:
        """Which of these blocks of a shard are not here, or are not what their marks say. All if the cache ended."""
        if self._ended:
            return list(blocks)
        first = int(self._first[index])
        try:
            file = self._open(index)
            marks = self._read_marks(first + blocks.start, len(blocks))
            for block, mark in zip(blocks, marks, strict=True):
                if mark and not self._checked[first + block]:
                    data = os.pread(file.fileno(), BLOCK_BYTES, block * BLOCK_BYTES)
                    self._checked[first + block] = _checksum(data) == mark
        except OSError as error:
            self._end(error)
            return list(blocks)
        return [
            block for block, mark in zip(blocks, marks, strict=True) if not mark or not self._checked[first + block]
        ]

    def _store(self, index: int, start: int, data: bytes) -> None:
        """Put `data`, whole blocks, at byte `start` of a shard; then mark it."""
        pieces = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
        number = int(self._first[index]) + start // BLOCK_BYTES
        new = int(np.count_nonzero(self._read_marks(number, len(pieces)) == 0)) * BLOCK_BYTES
        with self._counting:
            os.pwrite(self._marks.fileno(), np.int64(_used(self._marks) + new).tobytes(), 0)
        os.pwrite(self._open(index).fileno(), data, start)
        marks = np.array([_checksum(piece) for piece in pieces], np.uint32)
        # not through a map: where the disk is full that would be a SIGBUS instead of an error
        os.pwrite(self._marks.fileno(), marks.tobytes(), _HEADER + _MARK * number)
        self._checked[number : number + len(pieces)] = True

    def _read_marks(self, first: int, count: int) -> np.ndarray:
        data = os.pread(self._marks.fileno(), _MARK * count, _HEADER + _MARK * first)
        return np.frombuffer(data.ljust(_MARK * count, b"\0"), np.uint32)

    def _open_shard(self, index: int) -> FileIO:
        # closed by the last reader who lets go of it, not by the one who pushes it out
        path = self.folder / f"{index:05d}"
        try:
            file = _open_file(path)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = _open_file(path)
        state = os.fstat(file.fileno())
        if state.st_size != self._sizes[index]:
            os.truncate(file.fileno(), int(self._sizes[index]))
        if self._inodes.setdefault(index, state.st_ino) != state.st_ino:
            self._inodes[index] = state.st_ino
            self._checked[self._first[index] : self._first[index + 1]] = False
        return file

    @contextmanager
    def _fetching(self, index: int, blocks: range) -> Iterator[None]:
        """Threads that miss the same piece wait for the first of them."""
        piece, first = self._piece_blocks, int(self._first[index])
        pieces = range(blocks.start // piece, (blocks.stop - 1) // piece + 1)
        with ExitStack() as stack:
            for stripe in sorted({(first + number) % STRIPES for number in pieces}):
                stack.enter_context(self._stripes[stripe])
            yield

    def _has_room(self, size: int) -> bool:
        """Whether `size` more bytes fit the limit, other folders that nobody uses deleted if need be."""
        if self._full or self._ended:
            return False
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            try:
                self._others = _make_room(self.folder, self.limit_bytes - self.used_bytes() - size)
            except OSError as error:
                self._stop_adding(error)
                return False
        return size <= self.limit_bytes - self._others - self.used_bytes()

    def _stop_adding(self, error: OSError) -> None:
        if not self._full:
            self._full = True
            warnings.warn(f"Nothing more goes into the shard cache {self.folder}: {error}.", stacklevel=2)

    def _end(self, error: OSError) -> None:
        if not self._ended:
            self._ended = True
            warnings.warn(f"The shard cache {self.folder} is not used, reads go on without it: {error}.", stacklevel=2)


def _open_file(path: Path) -> FileIO:
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")


def _lock_path(folder: Path) -> Path:
    # beside the folder and never deleted: a lock on a deleted file would hold nothing
    return folder.with_name(f"{folder.name}.lock")


def _checksum(data: bytes) -> int:
    return zlib.crc32(data) or 1


def _used(marks: FileIO) -> int:
    return int.from_bytes(os.pread(marks.fileno(), _HEADER, 0), "little")


def _size(folder: Path) -> int:
    """Bytes of blocks a folder holds; 0 for one in an older format, which nobody reads."""
    try:
        with open(folder / MARKS, "rb") as file:
            return int.from_bytes(file.read(_HEADER), "little")
    except FileNotFoundError:
        return 0


def _make_room(own: Path, room: int) -> int:
    """Delete folders beside `own`, the longest unused first, until they take at most `room` bytes; what they take then.

    Folders that a process holds stay.
    """
    others = [path for path in own.parent.iterdir() if path.is_dir() and path != own]
    sizes = {path: _size(path) for path in others}
    total = sum(sizes.values())
    for path in sorted(others, key=_last_used):
        if total <= room and sizes[path]:
            continue
        with _open_file(_lock_path(path)) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
    return total


def _last_used(folder: Path) -> float:
    lock = _lock_path(folder)
    return (lock if lock.exists() else folder).stat().st_mtime
