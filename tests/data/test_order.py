"""The order is arithmetic: every row once, the same set for every worker count, in any place one asks."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from raygpt.data.order import Chunk, Order, lanes_of
from raygpt.errors import UserError


def plan(**changes) -> Order:
    options = dict(fingerprint="f" * 64, seed=7, seq_len=8, global_batch_rows=12, total_tokens=40_003)
    return Order(**{**options, **changes})


PLANS = [
    plan(),
    plan(total_tokens=12 * 8 + 1),  # exactly one batch
    plan(seq_len=4, total_tokens=260_011, global_batch_rows=6),  # runs of several rows
    plan(seq_len=4, total_tokens=1_000_003, global_batch_rows=30),
]


@pytest.mark.parametrize("order", PLANS)
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_visits_every_row_at_most_once_and_counts_the_rest(order: Order, epoch: int) -> None:
    rows = order.chunk_rows(Chunk(epoch, 0, order.steps_per_epoch)).ravel()
    assert len(np.unique(rows)) == len(rows) == order.steps_per_epoch * order.global_batch_rows
    starts = order.starts(epoch, rows)
    assert starts.min() >= 0 and starts.max() + order.seq_len + 1 <= order.total_tokens
    account = order.account(epoch)
    assert account.head + account.trained + account.dropped + account.tail == order.total_tokens
    assert account.trained == len(rows) * order.seq_len + 1
    assert 0 <= account.head < order.seq_len and 0 <= account.tail < order.seq_len
    assert account.dropped < order.global_batch_rows * order.seq_len


@pytest.mark.parametrize("order", PLANS)
def test_the_global_batch_is_the_same_for_every_worker_count(order: Order) -> None:
    for step in (0, order.steps_per_epoch // 2, order.steps_per_epoch - 1):
        whole = order.rows(0, step)
        for world in range(1, order.global_batch_rows + 1):
            parts = [order.rows(0, step, lanes_of(rank, world, order.global_batch_rows)) for rank in range(world)]
            assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("order", PLANS)
@pytest.mark.parametrize("size", [1, 5, 64])
def test_chunks_read_together_hold_the_rows_of_their_steps(order: Order, size: int) -> None:
    lanes = lanes_of(1, 2, order.global_batch_rows)
    for first in (0, order.steps_per_epoch - 1, order.steps_per_epoch + order.steps_per_epoch // 3):
        step = first
        while step < first + 70:
            chunk = order.chunk(step, size)
            block = order.chunk_rows(chunk, lanes)
            assert 1 <= chunk.steps <= size and block.shape[0] == chunk.steps
            for k in range(chunk.steps):
                epoch, inside = order.position(step)
                assert (epoch, inside) == (chunk.epoch, chunk.first_step + k)
                assert np.array_equal(block[k], order.rows(epoch, inside, lanes))
                step += 1


def test_runs_stay_short_on_a_small_corpus_and_grow_with_it() -> None:
    assert plan(total_tokens=60_000).run_rows == 1
    large = plan(seq_len=1024, global_batch_rows=480, total_tokens=10_000_000_000)
    assert 8 <= large.run_rows <= 64 and large.run_rows * 1024 * 2 <= 128 * 1024
    assert large.steps_per_epoch * large.global_batch_rows / large.run_rows >= 100_000


def test_the_global_batch_does_not_shorten_runs() -> None:
    sizes = {plan(seq_len=1024, global_batch_rows=rows, total_tokens=5 * 10**12).run_rows for rows in (8, 512, 4096)}
    assert sizes == {64}


def test_the_first_rows_of_five_trillion_tokens_are_known_at_once_in_no_memory() -> None:
    tracemalloc.start()
    began = time.perf_counter()
    order = plan(seq_len=1024, global_batch_rows=4096, total_tokens=5 * 10**12)
    rows = order.chunk_rows(order.chunk(order.steps_per_epoch // 2, 1))
    seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(rows)) == 4096 and seconds < 1 and peak < 100e6


def test_rows_of_one_run_land_in_different_steps_and_are_contiguous_reads() -> None:
    order = plan(seq_len=4, total_tokens=4 * 200_000 + 7, global_batch_rows=10)
    assert order.run_rows > 1
    rows = order.chunk_rows(Chunk(2, 0, order.steps_per_epoch))
    for step in range(order.steps_per_epoch):
        assert len(np.unique(rows[step] // order.run_rows)) == order.global_batch_rows
    window = rows[: order.run_rows]
    assert (np.diff(window, axis=0) == 1).all()


def test_the_last_short_run_of_the_corpus_has_its_turn_anywhere_in_the_epoch() -> None:
    order = plan(seq_len=4, total_tokens=4 * 200_003 + 1, global_batch_rows=1)
    assert order.run_rows == 2
    last = (order.total_tokens - 1 - order.offset(0)) // 4 - 1
    places = []
    for epoch in range(8):
        order_rows = order.chunk_rows(order.chunk(epoch * order.steps_per_epoch, order.steps_per_epoch))[:, 0]
        places.append(int(np.flatnonzero(order_rows >= last - 1)[0]))
    assert np.ptp(places) > order.steps_per_epoch // 4


def test_epochs_and_seeds_differ_and_repeat_exactly() -> None:
    first, again = plan(total_tokens=100_000), plan(total_tokens=100_000)
    assert np.array_equal(first.rows(3, 5), again.rows(3, 5))
    assert not np.array_equal(first.rows(0, 0), first.rows(1, 0))
    assert not np.array_equal(first.rows(0, 0), plan(total_tokens=100_000, seed=8).rows(0, 0))
    assert not np.array_equal(first.rows(0, 0), plan(total_tokens=100_000, fingerprint="e" * 64).rows(0, 0))
    assert len({first.offset(epoch) for epoch in range(50)}) == first.seq_len


def test_the_order_is_pinned_for_ever() -> None:
    """Golden rows: a change here breaks the resume of every run trained before it."""
    order = plan()
    assert order.offset(0) == GOLDEN_OFFSET
    assert order.rows(0, 0).tolist() == GOLDEN_ROWS


def test_a_corpus_shorter_than_one_batch_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="data.train holds 50 tokens but one batch needs 97.*global_batch_tokens"):
        plan(total_tokens=50)


def test_more_workers_than_rows_are_refused() -> None:
    with pytest.raises(UserError, match="13 workers cannot share a global batch of 12 rows.*global_batch_tokens"):
        lanes_of(12, 13, 12)


def test_any_number_of_workers_covers_the_batch_once_and_as_evenly_as_can_be() -> None:
    """Against dealing the lanes out by hand: everybody the floor, the rest one more, in order of the lanes."""
    random = np.random.default_rng(0)
    for _ in range(300):
        rows = int(random.integers(1, 400))
        world = int(random.integers(1, rows + 1))
        lanes = np.arange(rows)
        parts = [lanes[lanes_of(rank, world, rows)] for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), lanes)
        sizes = sorted(len(part) for part in parts)
        assert sizes == [rows // world] * (world - rows % world) + [rows // world + 1] * (rows % world)
        if rows % world == 0:  # runs that began when only such counts were allowed go on with the same lanes
            assert [part[0] for part in parts] == [rank * (rows // world) for rank in range(world)]


GOLDEN_OFFSET = 4
GOLDEN_ROWS = [3231, 1551, 1152, 4776, 4035, 4422, 3530, 150, 732, 3857, 3743, 663]
