"""Reads a shard folder as one stream of tokens: memory-mapped locally, exact ranged reads from S3."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa

from raygpt import storage
from raygpt.data.cache import ShardCache
from raygpt.data.shards import AnyLayout, JoinedLayout, Layout, Manifest, load_manifest, read_manifest
from raygpt.storage import Location

READ_THREADS = 16  # a ranged GET waits 20-100 ms: parallel ones hide it
OPEN_MAPS = 256  # each is an open file too: 1,024 is many a system's limit, and train and val have a reader each
# Opening an object is a request (HEAD) of its own, an open one is 0.9 KB of memory and no file of the system.
OPEN_OBJECTS = 2**16
ATTEMPTS = 4  # on top of the SDK's own retries


class TokenReader:
    """Tokens [0, total_tokens) of a shard folder in manifest order.

    Opened by its location, the manifest is read and every shard seen to be there; opened by a `Layout`, nothing is
    asked of storage until the first read. `cache_bytes` > 0 keeps what S3 gave on local disk. Reads return arrays of
    the manifest's dtype.
    """

    def __init__(self, location: str | Location | Layout, cache_bytes: int = 0) -> None:
        if isinstance(location, Layout):
            self.folder, self.layout = storage.locate(location.uri), location
        else:
            self.folder = storage.locate(location)
            self.manifest = load_manifest(self.folder)
            self.layout = self.manifest.layout(self.folder.uri)
        self.total_tokens = self.layout.tokens
        self.dtype = self.layout.numpy_dtype
        self._starts = self.layout.starts
        # both are bounded: an operating system allows 65,530 maps to a process
        self._map = lru_cache(OPEN_MAPS)(self._map_shard)
        self._open = lru_cache(OPEN_OBJECTS)(self._open_object)
        self._opening = [threading.Lock() for _ in range(64)]  # of two threads at one shard, one asks S3 for it
        self._pool: ThreadPoolExecutor | None = None
        remote = not self.folder.is_local
        self._cache = ShardCache(self.layout, cache_bytes) if remote and cache_bytes > 0 else None

    @cached_property
    def manifest(self) -> Manifest:
        """The folder's manifest, read when it is asked for. Raises UserError as `load_manifest`."""
        return read_manifest(self.folder)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop): (stop - start,). Raises IndexError outside the stream."""
        if not 0 <= start <= stop <= self.total_tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.total_tokens}")
        parts = []
        index = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        while start < stop:
            low, high = int(self._starts[index]), int(self._starts[index + 1])
            end = min(stop, high)
            if end > start:
                parts.append(self._read_shard(index, start - low, end - low))
            start, index = end, index + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def read_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """One row of `length` tokens from each of `starts` (n,): (n, length). Neighbouring rows become one read."""
        out = np.empty((len(starts), length), self.dtype)
        if len(starts) == 0:
            return out
        # neighbours share one token: start[i + 1] == start[i] + length - 1
        cuts = np.flatnonzero(np.diff(starts) != length - 1) + 1
        groups = np.split(np.arange(len(starts)), cuts)

        def read_group(group: np.ndarray) -> None:
            first = int(starts[group[0]])
            tokens = self.read(first, int(starts[group[-1]]) + length)
            for index in group:
                begin = int(starts[index]) - first
                out[index] = tokens[begin : begin + length]

        if self.folder.is_local or len(groups) == 1:
            for group in groups:
                read_group(group)
        else:
            self._pool = self._pool or ThreadPoolExecutor(READ_THREADS)
            list(self._pool.map(read_group, groups))
        return out

    def _read_shard(self, index: int, start: int, stop: int) -> np.ndarray:
        if self.folder.is_local:
            return self._map(index)[start:stop]
        width = self.dtype.itemsize
        begin, end = start * width, stop * width
        if self._cache is not None:
            data = self._cache.read(index, begin, end, lambda low, high: self._fetch(index, low, high))
        else:
            data = self._fetch(index, begin, end)
        return np.frombuffer(data, self.dtype)

    def _where(self, index: int) -> Location:
        return self.folder / self.layout.names[index]

    def _map_shard(self, index: int) -> np.ndarray:
        return np.memmap(self._where(index).path, dtype=self.dtype, mode="r")

    def _open_object(self, index: int) -> pa.NativeFile:
        where = self._where(index)
        return where.fs.open_input_file(where.path)

    def _fetch(self, index: int, begin: int, end: int) -> bytes:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._opening[index % len(self._opening)]:
                    file = self._open(index)
                data = file.read_at(end - begin, begin)
                if len(data) != end - begin:
                    raise OSError(f"{self._where(index).uri}: {len(data)} of {end - begin} bytes at {begin}")
                return data
            except OSError as error:
                if attempt == ATTEMPTS:
                    raise storage.explain(error, self._where(index)) from error
                time.sleep(2.0**attempt / 4)
        raise AssertionError("unreachable")


class JoinedReader:
    """Tokens of two shard folders as one stream, each read in its own way."""

    def __init__(self, layout: JoinedLayout, cache_bytes: int = 0) -> None:
        self.layout, self.dtype, self.total_tokens = layout, layout.numpy_dtype, layout.tokens
        self._readers = [TokenReader(folder, cache_bytes) for folder in layout.folders]

    def read_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """As `TokenReader.read_rows`. No row may run from one folder into the other (IndexError).

        Rows are asked for in the order of their places: lanes of a mixture move on, and rows that are neighbours in a
        folder seldom stand beside each other in `starts`.
        """
        out = np.empty((len(starts), length), self.dtype)
        border = self.layout.first.tokens
        for reader, base, here in zip(self._readers, (0, border), (starts < border, starts >= border)):
            index = np.flatnonzero(here)
            index = index[np.argsort(starts[index], kind="stable")]
            out[index] = reader.read_rows(starts[index] - base, length)
        return out


def open_reader(layout: AnyLayout, cache_bytes: int = 0) -> TokenReader | JoinedReader:
    """Reader of one folder, or of two as one."""
    return JoinedReader(layout, cache_bytes) if isinstance(layout, JoinedLayout) else TokenReader(layout, cache_bytes)
