"""Both backends give the plan's tokens, for any worker count, from any step, over shards cut anywhere."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raygpt.data.order import Order
from raygpt.data.reader import TokenReader
from raygpt.data.service import Group, served_blocks, start_service
from raygpt.data.shards import ShardWriter, TokenizerInfo
from raygpt.data.stream import Block, Source, batches, mapped_blocks

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


def global_batches(folder: str, backend: str, world: int, first: int, last: int) -> np.ndarray:
    """Tokens of every step, (steps, rows, seq_len + 1), as `world` ranks of one node read them."""
    order, layout = order_of(folder), TokenReader(folder).layout
    sources = [Source(layout, order, rank, world) for rank in range(world)]
    if backend == "mmap":
        blocks = [mapped_blocks(source, first, last) for source in sources]
    else:
        group = Group(uuid.uuid4().hex, tuple(range(world)), last)
        service = start_service(f"test-{group.name}", world)
        blocks = [served_blocks(service, group, source, first) for source in sources]
    ranks = [batches(source, own, first, last) for source, own in zip(sources, blocks)]
    out = []
    for step in range(first, last):
        parts = [next(rank) for rank in ranks]
        assert {part.step for part in parts} == {step}
        out.append(np.concatenate([part.tokens for part in parts]))
    assert [next(rank, None) for rank in ranks] == [None] * world
    return np.stack(out)


def test_the_reader_gives_any_range_across_shard_borders(folder: str, tokens: np.ndarray) -> None:
    reader = TokenReader(folder)
    assert len(reader.layout.names) == 3
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


@pytest.mark.parametrize("world", [3, 5, 7, 12])
def test_any_number_of_workers_reads_the_same_global_batch(folder: str, world: int) -> None:
    want = global_batches(folder, "mmap", 1, 301, 341)
    assert np.array_equal(global_batches(folder, "mmap", world, 301, 341), want)


@pytest.mark.parametrize("world", [1, 2, 5])
def test_ray_and_mmap_give_the_same_tokens_for_every_worker_count(ray_cluster: object, folder: str, world: int) -> None:
    first = 0 if world == 2 else 301  # from the start, and from the middle of a chunk across the epoch's end
    want = global_batches(folder, "mmap", 1, first, first + 40)
    assert np.array_equal(global_batches(folder, "ray", world, first, first + 40), want)


def test_shards_on_s3_give_the_same_tokens(ray_cluster: object, s3, folder: str, tokens: np.ndarray) -> None:
    uri = write_shards(f"{s3.make_bucket('stream')}/train", tokens)
    want = global_batches(folder, "mmap", 1, 290, 330)
    assert np.array_equal(global_batches(uri, "mmap", 2, 290, 330), want)
    assert np.array_equal(global_batches(uri, "ray", 2, 290, 330), want)


def test_a_lost_repeated_or_misplaced_row_ends_the_job(folder: str) -> None:
    source = Source(TokenReader(folder).layout, order_of(folder), 0, 1)
    blocks = list(mapped_blocks(source, 0, 130))
    assert len(blocks) > 2
    for wrong in (
        [replace(blocks[0], positions=blocks[0].positions[::-1])],
        [blocks[0], blocks[2]],
        [blocks[0], blocks[0]],
        blocks[:1],
    ):
        with pytest.raises(RuntimeError, match="bug in the reader"):
            list(batches(source, wrong, 0, 130))


def test_batches_begin_and_end_inside_blocks(folder: str) -> None:
    source = Source(TokenReader(folder).layout, order_of(folder), 1, 2)
    whole = [batch.tokens for batch in batches(source, mapped_blocks(source, 0, 128), 0, 128)]
    part = [batch.tokens for batch in batches(source, mapped_blocks(source, 0, 128), 5, 71)]
    assert np.array_equal(part, whole[5:71])


def test_blocks_of_another_process_are_no_copies_of_the_plan(folder: str) -> None:
    """Blocks say where their rows stand in the run: epoch, step and lane, by hand."""
    order = order_of(folder)
    source = Source(TokenReader(folder).layout, order, 1, 3)
    block: Block = next(mapped_blocks(source, order.steps_per_epoch + 2, order.steps_per_epoch + 4))
    first = (order.steps_per_epoch + 2) * 12 + 4
    assert block.positions.tolist() == [first, first + 1, first + 2, first + 3, *(first + 12 + k for k in range(4))]
