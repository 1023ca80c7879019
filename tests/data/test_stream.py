"""Both backends give the plan's tokens, for any worker count, from any step, over shards cut anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raygpt.data.order import Order
from raygpt.data.reader import TokenReader
from raygpt.data.shards import ShardWriter, TokenizerInfo
from raygpt.data.stream import Source, batches, started

SEQ = 8


def write_shards(folder: Path | str, tokens: np.ndarray, shard_tokens: int = 10_007) -> str:
    writer = ShardWriter(str(folder), "uint16", shard_tokens)
    writer.append(tokens.astype("<u2"))
    writer.finish(TokenizerInfo("bytes", 60_000, 0, "0" * 64), b"{}", 1, tokens.size, ["memory"])
    return str(folder)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, 30_011).astype("<u2")


@pytest.fixture(scope="module")
def folder(tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), tokens)


def order_of(folder: str, rows: int = 12) -> Order:
    manifest = TokenReader(folder).manifest
    return Order(manifest.fingerprint, 3, SEQ, rows, manifest.tokens)


def global_batches(folder: str, backend: str, world: int, first: int, last: int, uri: str | None = None) -> np.ndarray:
    order = order_of(folder)
    ranks = [batches(Source(uri or folder, order, rank, world), backend, first, last) for rank in range(world)]
    out = []
    for step in range(first, last):
        parts = [next(rank) for rank in ranks]
        assert {part.step for part in parts} == {step}
        out.append(np.concatenate([part.tokens for part in parts]))
    return np.stack(out)


def test_the_reader_gives_any_range_across_shard_borders(folder: str, tokens: np.ndarray) -> None:
    reader = TokenReader(folder)
    assert len(reader.manifest.shards) == 3
    for start, stop in [(0, 5), (10_000, 10_020), (9_999, 25_000), (30_000, 30_011), (7, 7)]:
        assert np.array_equal(reader.read(start, stop), tokens[start:stop])
    with pytest.raises(IndexError):
        reader.read(30_000, 30_012)


def test_rows_are_the_tokens_the_plan_names(folder: str, tokens: np.ndarray) -> None:
    order = order_of(folder)
    last = order.steps_per_epoch + 7
    got = global_batches(folder, "mmap", 2, 0, last)
    for step in range(last):
        epoch, inside = order.position(step)
        starts = order.offset(epoch) + order.rows(epoch, inside) * SEQ
        assert np.array_equal(got[step], np.stack([tokens[start : start + SEQ + 1] for start in starts]))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ray_and_mmap_give_the_same_tokens_for_every_worker_count(ray_cluster: object, folder: str, world: int) -> None:
    first = 0 if world == 2 else 301  # from the start, and from the middle of a chunk across the epoch's end
    want = global_batches(folder, "mmap", 1, first, first + 40)
    assert np.array_equal(global_batches(folder, "ray", world, first, first + 40), want)


def test_shards_on_s3_give_the_same_tokens(ray_cluster: object, s3, folder: str, tokens: np.ndarray) -> None:
    uri = write_shards(f"{s3.make_bucket('stream')}/train", tokens)
    want = global_batches(folder, "mmap", 1, 290, 330)
    assert np.array_equal(global_batches(folder, "mmap", 2, 290, 330, uri), want)
    assert np.array_equal(global_batches(folder, "ray", 2, 290, 330, uri), want)


def test_a_missing_row_ends_the_job(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(folder, order_of(folder), 0, 1)
    read = Source.read
    monkeypatch.setattr(Source, "read", lambda self, chunk: (read(self, chunk)[0][::-1], read(self, chunk)[1]))
    with pytest.raises(RuntimeError, match="lost, repeated or out of order"):
        next(batches(source, "mmap", 0, 5))


def test_a_stream_started_early_gives_the_same_batches_and_the_same_errors(folder: str) -> None:
    source = Source(folder, order_of(folder), 0, 2)
    early = [batch.tokens for batch in started(batches(source, "mmap", 3, 9))]
    assert np.array_equal(early, [batch.tokens for batch in batches(source, "mmap", 3, 9)])
    assert list(started(iter([]))) == []
    with pytest.raises(ZeroDivisionError):
        next(started(1 / 0 for _ in range(1)))
