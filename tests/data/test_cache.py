"""Shards on S3 through the local cache: right bytes whatever happens to the disk, and few requests."""

from __future__ import annotations

import gc
import os
import re
import resource
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from raygpt.data import cache as cache_module
from raygpt.data.cache import BLOCK_BYTES, ShardCache
from raygpt.data.reader import OPEN_MAPS, TokenReader
from raygpt.data.shards import Layout, ShardWriter, TokenizerInfo, load_manifest

CONTENT = np.random.default_rng(1).bytes(8 * BLOCK_BYTES)


def layout_of(name: str, shards: int = 1, size: int = len(CONTENT)) -> Layout:
    """A folder of shards of `size` bytes of uint16."""
    starts = np.arange(shards + 1, dtype=np.int64) * (size // 2)
    return Layout(f"s3://nowhere/{name}", "uint16", name, starts, tuple(f"{n}.bin" for n in range(shards)))


class Origin:
    """The bytes behind a cache, and the ranges that were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> bytes:
        self.asked.append((start, stop))
        return CONTENT[start:stop]


@pytest.fixture
def blocks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus as large ones are: fetched in blocks."""
    monkeypatch.setattr(cache_module, "SMALL_CORPUS_BYTES", 0)


def write_shards(uri: str, tokens: np.ndarray, shard_tokens: int) -> Layout:
    writer = ShardWriter(uri, "uint16", shard_tokens)
    writer.append(tokens.astype("<u2"))
    writer.finish(TokenizerInfo("bytes", 60_000, 0, "0" * 64), b"{}", 1, tokens.size, ["memory"])
    return load_manifest(uri).layout(uri)


@pytest.mark.usefixtures("blocks_alone")
def test_the_cache_stops_growing_at_its_limit_and_drops_data_sets_that_nobody_uses(tmp_path: Path) -> None:
    origin = Origin()
    cache = ShardCache(layout_of("a"), 3 * BLOCK_BYTES, tmp_path)
    for _ in range(2):
        for start in range(0, len(CONTENT) - 999, BLOCK_BYTES // 2):
            assert cache.read(0, start, start + 999, origin) == CONTENT[start : start + 999]
    assert cache.used_bytes() == 3 * BLOCK_BYTES
    assert sum(path.stat().st_blocks * 512 for path in cache.folder.iterdir()) < 4 * BLOCK_BYTES
    # 16 reads each time: the first brings 3 blocks, and 6 of the second time are there
    assert len(origin.asked) == 2 * 16 - 3 - 6
    folder = cache.folder
    del cache
    gc.collect()
    other = ShardCache(layout_of("b"), 3 * BLOCK_BYTES, tmp_path)
    assert other.read(0, 0, 5, origin) == CONTENT[:5]
    assert not folder.exists() and other.used_bytes() == BLOCK_BYTES


@pytest.mark.usefixtures("blocks_alone")
def test_a_second_job_leaves_the_folder_of_the_first_alone_and_keeps_within_what_is_left(tmp_path: Path) -> None:
    origin = Origin()
    first = ShardCache(layout_of("a"), 4 * BLOCK_BYTES, tmp_path)
    first.read(0, 0, 3 * BLOCK_BYTES, origin)
    second = ShardCache(layout_of("b"), 4 * BLOCK_BYTES, tmp_path)
    for block in range(8):
        second.read(0, block * BLOCK_BYTES, block * BLOCK_BYTES + 9, origin)
    assert (first.used_bytes(), second.used_bytes()) == (3 * BLOCK_BYTES, BLOCK_BYTES)
    origin.asked.clear()
    assert first.read(0, 7, 3 * BLOCK_BYTES, origin) == CONTENT[7 : 3 * BLOCK_BYTES] and not origin.asked


@pytest.mark.usefixtures("blocks_alone")
def test_processes_share_a_folder(tmp_path: Path) -> None:
    origin = Origin()
    one, two = (ShardCache(layout_of("a"), 10**9, tmp_path) for _ in range(2))
    one.read(0, 0, 2 * BLOCK_BYTES, origin)
    two.read(0, 0, 3 * BLOCK_BYTES, origin)
    one.read(0, 0, 3 * BLOCK_BYTES, origin)
    assert origin.asked == [(0, 2 * BLOCK_BYTES), (2 * BLOCK_BYTES, 3 * BLOCK_BYTES)]
    assert one.used_bytes() == two.used_bytes() == 3 * BLOCK_BYTES


@pytest.mark.usefixtures("blocks_alone")
def test_blocks_torn_by_a_crash_are_fetched_again(tmp_path: Path) -> None:
    origin = Origin()
    cache = ShardCache(layout_of("a"), 10**9, tmp_path)
    cache.read(0, 0, len(CONTENT), origin)
    # marks reached the disk, the bytes of two blocks did not
    with open(cache.folder / "00000", "r+b") as file:
        file.write(bytes(BLOCK_BYTES))
        file.seek(3 * BLOCK_BYTES + 5)
        file.write(bytes(7))
    again = ShardCache(layout_of("a"), 10**9, tmp_path)
    origin.asked.clear()
    for start in range(0, len(CONTENT), BLOCK_BYTES):
        assert again.read(0, start, start + BLOCK_BYTES, origin) == CONTENT[start : start + BLOCK_BYTES]
    assert origin.asked == [(0, BLOCK_BYTES), (3 * BLOCK_BYTES, 4 * BLOCK_BYTES)]


@pytest.mark.usefixtures("blocks_alone")
def test_a_deleted_cache_folder_costs_requests_and_nothing_else(tmp_path: Path) -> None:
    origin = Origin()
    cache = ShardCache(layout_of("a", shards=2), 10**9, tmp_path)
    cache.read(0, 0, BLOCK_BYTES, origin)
    shutil.rmtree(cache.folder)
    for index in (0, 1):
        assert cache.read(index, 0, len(CONTENT), origin) == CONTENT
    shutil.rmtree(cache.folder)
    cache._open.cache_clear()  # as if many other shards had been read
    assert cache.read(0, 0, len(CONTENT), origin) == CONTENT


@pytest.mark.usefixtures("blocks_alone")
def test_a_disk_that_takes_no_more_costs_one_warning(tmp_path: Path) -> None:
    origin = Origin()
    cache = ShardCache(layout_of("a"), 10**9, tmp_path)
    cache.read(0, 0, BLOCK_BYTES, origin)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # the kernel refuses what goes beyond, as a full disk does
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BLOCK_BYTES, hard))
    try:
        with pytest.warns(UserWarning, match="Nothing more goes into the shard cache") as warned:
            for start in range(0, len(CONTENT), BLOCK_BYTES):
                assert cache.read(0, start, start + 9, origin) == CONTENT[start : start + 9]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(warned) == 1
    origin.asked.clear()
    assert cache.read(0, 5, 2 * BLOCK_BYTES, origin) == CONTENT[5 : 2 * BLOCK_BYTES] and not origin.asked


def test_a_cache_folder_that_cannot_be_made_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the cache should be")
    with pytest.warns(UserWarning, match="is not used, reads go on without it") as warned:
        cache = ShardCache(layout_of("a"), 10**9, tmp_path / "file")
        for start in range(0, len(CONTENT), BLOCK_BYTES):
            assert cache.read(0, start, start + 9, Origin()) == CONTENT[start : start + 9]
    assert sum(issubclass(each.category, UserWarning) for each in warned) == 1


@pytest.mark.usefixtures("blocks_alone")
def test_threads_that_miss_the_same_block_fetch_it_once(tmp_path: Path) -> None:
    origin, entered = Origin(), threading.Barrier(8)
    cache = ShardCache(layout_of("a"), 10**9, tmp_path)

    def slowly(start: int, stop: int) -> bytes:
        time.sleep(0.05)
        return origin(start, stop)

    def read(_: int) -> bytes:
        entered.wait()
        return cache.read(0, 10, BLOCK_BYTES + 10, slowly)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {CONTENT[10 : BLOCK_BYTES + 10]}
    assert origin.asked == [(0, 2 * BLOCK_BYTES)]


LISTED: list[str] = []
sys.addaudithook(lambda event, _: LISTED.append(event) if event in ("os.listdir", "os.scandir") else None)


@pytest.mark.usefixtures("blocks_alone")
def test_a_miss_lists_no_folder(tmp_path: Path) -> None:
    origin = Origin()
    cache = ShardCache(layout_of("a", shards=50), 10**9, tmp_path)
    LISTED.clear()
    for index in range(50):
        cache.read(index, 0, 9, origin)
    assert len(origin.asked) == 50 and len(LISTED) <= 1


@pytest.mark.usefixtures("blocks_alone")
def test_open_files_and_maps_stay_bounded(tmp_path: Path) -> None:
    origin = Origin()
    cache = ShardCache(layout_of("a", shards=1000, size=100), 10**9, tmp_path / "cache")
    for index in range(1000):
        assert cache.read(index, 3, 9, origin) == CONTENT[3:9]
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert sum(str(tmp_path) in path for path in opened) <= cache_module.OPEN_SHARDS + 2

    tokens = np.arange(10_000)
    layout = write_shards(str(tmp_path / "local"), tokens, 10)
    reader = TokenReader(layout)
    for start in range(0, 10_000, 10):
        assert reader.read(start, start + 10).tolist() == list(range(start, start + 10))
    maps = Path("/proc/self/maps").read_text().count(str(tmp_path / "local"))
    assert maps <= OPEN_MAPS


class Relay:
    """A TCP relay before the S3 server; `requests` are (method, target) of what passed."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self.server = (host, int(port))
        self.requests: list[tuple[str, str]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.server)
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, count: bool) -> None:
        # a reader's requests have no body and come one by one: each begins a packet
        try:
            while data := source.recv(2**16):
                if count and (line := re.match(rb"([A-Z]+) (\S+) HTTP/1", data)):
                    self.requests.append((line[1].decode(), line[2].decode()))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def taken(self) -> list[tuple[str, str]]:
        seen, self.requests = self.requests, []
        return seen


@pytest.fixture
def relay(s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Relay]:
    relay = Relay(s3.endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", relay.endpoint)
    yield relay
    relay.listener.close()


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, 2_000_003).astype("<u2")


def test_a_reader_of_a_small_corpus_asks_s3_for_each_piece_once(relay: Relay, bucket: str, tokens: np.ndarray) -> None:
    layout = write_shards(f"{bucket}/train", tokens, 700_000)
    relay.taken()
    reader = TokenReader(layout, cache_bytes=10**8)
    assert relay.taken() == []
    starts = np.random.default_rng(2).integers(0, tokens.size - 129, 500)
    rows = reader.read_rows(starts, 129)
    assert np.array_equal(rows, np.stack([tokens[start : start + 129] for start in starts]))
    methods = [method for method, target in relay.taken()]
    assert sorted(methods) == ["GET"] * 3 + ["HEAD"] * 3  # three shards, one piece each
    # a second epoch, and a second process
    for again in (reader, TokenReader(layout, cache_bytes=10**8)):
        assert np.array_equal(again.read(5, 2_000_000), tokens[5:2_000_000])
    assert relay.taken() == []


@pytest.mark.usefixtures("blocks_alone")
def test_a_reader_of_a_large_corpus_asks_s3_for_each_block_once(relay: Relay, bucket: str, tokens: np.ndarray) -> None:
    layout = write_shards(f"{bucket}/train", tokens, 700_000)
    relay.taken()
    reader = TokenReader(layout, cache_bytes=10**8)
    starts = np.random.default_rng(2).integers(0, tokens.size - 129, 40)
    for _ in range(2):
        reader.read_rows(starts, 129)
    ends = np.append(starts, starts + 128)
    blocks = {(token // 700_000, token % 700_000 * 2 // BLOCK_BYTES) for token in ends}
    requests = relay.taken()
    assert len(requests) <= 3 + len(blocks)
    assert not [target for _, target in requests if "list-type" in target or "prefix" in target]


def test_without_a_cache_each_run_of_rows_is_one_request(relay: Relay, bucket: str, tokens: np.ndarray) -> None:
    layout = write_shards(f"{bucket}/train", tokens, 700_000)
    reader = TokenReader(layout)
    relay.taken()
    # ten runs of 64 neighbouring rows
    starts = (np.arange(10)[:, None] * 60_000 + np.arange(64) * 128).ravel()
    assert np.array_equal(reader.read_rows(starts, 129)[77], tokens[starts[77] : starts[77] + 129])
    assert sorted(method for method, _ in relay.taken()) == ["GET"] * 10 + ["HEAD"]
