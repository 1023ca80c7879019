"""Two corpora in every batch: against a list of rows dealt out one by one, for any worker count, from any step."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from raygpt.data.mixture import Mixture, Share
from raygpt.data.order import Order, lanes_of
from raygpt.data.reader import TokenReader
from raygpt.data.shards import JoinedLayout
from raygpt.data.stream import Source, batches, mapped_blocks
from tests.data.test_stream import write_shards

SEQ, ROWS = 4, 6
SHARES = [
    Share(0.5, 0.5),
    Share(0.1, 0.1),  # no whole row of it in most steps
    Share(0.9, 0.0, 99),
    Share(0.0, 1.0, 40),  # the end is reached on the way, and stays
    Share(0.25, 0.75, 299),
    Share(0.3, 0.7, 0),  # a run of one step has no line to go along
]


def mixture(share: Share, train_tokens: int = 403, real_tokens: int = 121, rows: int = ROWS) -> Mixture:
    train = Order("a" * 64, 7, SEQ, rows, train_tokens)
    return Mixture(train, Order("b" * 64, 7, SEQ, rows, real_tokens), share)


def dealt(order: Order) -> Iterator[int]:
    """First tokens of a corpus's rows in its own order, epoch after epoch."""
    for epoch in itertools.count():
        for step in range(order.steps_per_epoch):
            yield from order.starts(epoch, order.rows(epoch, step)).tolist()


def share_at(share: Share, step: int) -> Fraction:
    start, end = Fraction(str(share.start)), Fraction(str(share.end))
    if share.last_step == 0:
        return start
    return start + (end - start) * min(step, share.last_step) / share.last_step


def by_hand(mixed: Mixture, steps: int) -> list[Counter[tuple[str, int]]]:
    """Rows of every step as a multiset of (corpus, first token): the share added up step by step, rows dealt out."""
    train, real = dealt(mixed.train), dealt(mixed.real)
    asked, given, out = Fraction(0), 0, []
    for step in range(steps):
        asked += share_at(mixed.share, step) * mixed.global_batch_rows
        count = int(asked) - given
        given += count
        rows = [("real", next(real)) for _ in range(count)]
        rows += [("train", next(train)) for _ in range(mixed.global_batch_rows - count)]
        out.append(Counter(rows))
    return out


def named(mixed: Mixture, starts: np.ndarray) -> list[tuple[str, int]]:
    border = mixed.train.total_tokens
    return [("train", start) if start < border else ("real", start - border) for start in starts.tolist()]


@pytest.mark.parametrize("share", SHARES, ids=Share.describe)
def test_every_step_has_the_rows_that_dealing_them_out_gives(share: Share) -> None:
    mixed = mixture(share)
    for step, want in enumerate(by_hand(mixed, 300)):
        assert Counter(named(mixed, mixed.chunk_starts(mixed.chunk(step, 1))[0])) == want, step


@pytest.mark.parametrize("share", SHARES, ids=Share.describe)
@pytest.mark.parametrize("tokens", [(403, 121), (121, 403), (25, 9_001)])
def test_every_row_comes_once_in_each_pass_over_its_corpus(share: Share, tokens: tuple[int, int]) -> None:
    mixed = mixture(share, *tokens)
    taken: dict[str, list[int]] = {"train": [], "real": []}
    for step in range(300):
        rows = named(mixed, mixed.chunk_starts(mixed.chunk(step, 1))[0])
        for corpus in taken:
            # within a step rows stand by lanes: a pass that ends in it ends somewhere among them
            taken[corpus] += [start for name, start in rows if name == corpus]
    for corpus, order in (("train", mixed.train), ("real", mixed.real)):
        size = order.steps_per_epoch * ROWS
        for epoch in range(len(taken[corpus]) // size):
            rows = taken[corpus][epoch * size : (epoch + 1) * size]
            whole = order.starts(epoch, np.concatenate([order.rows(epoch, s) for s in range(order.steps_per_epoch)]))
            assert sorted(rows) == sorted(whole.tolist())


@pytest.mark.parametrize("share", SHARES, ids=Share.describe)
def test_positions_are_passes_over_train_and_lead_back_to_the_step(share: Share) -> None:
    mixed = mixture(share)
    taken, first, last_epoch = 0, 0, 0
    pass_rows = mixed.train.steps_per_epoch * ROWS
    for step in range(300):
        epoch = taken // pass_rows
        first = step if epoch > last_epoch else first
        last_epoch = epoch
        assert mixed.position(step) == (epoch, step - first)
        assert mixed.run_step(epoch, step - first) == step
        assert mixed.epochs(step) == pytest.approx(taken / pass_rows)
        taken += sum(start < mixed.train.total_tokens for start in mixed.chunk_starts(mixed.chunk(step, 1))[0])


@pytest.mark.parametrize("share", SHARES, ids=Share.describe)
@pytest.mark.parametrize("size", [2, 64])
def test_chunks_hold_the_rows_of_their_steps_and_end_with_the_pass(share: Share, size: int) -> None:
    mixed = mixture(share)
    step = 17
    while step < 250:
        chunk = mixed.chunk(step, size)
        block = mixed.chunk_starts(chunk)
        assert 1 <= chunk.steps <= size and len(block) == chunk.steps
        for k in range(chunk.steps):
            assert mixed.position(step) == (chunk.epoch, chunk.first_step + k)
            assert np.array_equal(block[k], mixed.chunk_starts(mixed.chunk(step, 1))[0])
            step += 1
        assert chunk.steps == size or mixed.position(step)[0] == chunk.epoch + 1


@pytest.mark.parametrize("share", SHARES[:3], ids=Share.describe)
@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
def test_every_rank_gets_its_part_of_the_real_text(share: Share, world: int) -> None:
    mixed = mixture(share)
    for step in range(100):
        chunk = mixed.chunk(step, 1)
        whole = mixed.chunk_starts(chunk)[0]
        parts = [mixed.chunk_starts(chunk, lanes_of(rank, world, ROWS))[0] for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)
        real = [sum(name == "real" for name, _ in named(mixed, part)) / len(part) for part in parts]
        fewest = min(map(len, parts))
        assert max(real) - min(real) <= 1 / fewest + 1e-9


def test_the_share_goes_in_a_straight_line_from_the_first_step_to_the_last() -> None:
    mixed = mixture(Share(0.9, 0.2, 999), 500_000, 300_000, rows=100)
    counts = np.diff([mixed.real_rows_before(step) for step in range(1201)])
    assert np.abs(counts[:1000] - (90 - 70 * np.arange(1000) / 999)).max() < 1 + 1e-9
    assert (np.abs(counts[999:] - 20) <= 1).all() and mixed.real_rows_before(1000) == 55_000


def test_a_share_of_decimals_is_taken_as_it_was_typed() -> None:
    """0.1 + 0.2 and its like: a million steps at a share of 0.3 hold 30 rows of 100 each, no row more or less."""
    assert all(Share(0.3, 0.3).rows_before(step, 100) == 30 * step for step in (1, 999_999, 10**9))
    assert Share(0.1, 0.7, 10**6).rows_before(10**6 + 1, 4096) == 4096 * (10**6 + 1) * 4 // 10


def test_a_mixture_of_trillions_is_known_at_once() -> None:
    train, real = (Order(c * 64, 1, 1024, 4096, 5 * 10**12) for c in "ab")
    mixed = Mixture(train, real, Share(0.5, 0.1, 10**6))
    starts = mixed.chunk_starts(mixed.chunk(700_000, 8), slice(0, 512))
    assert starts.shape == (8, 512) and len(np.unique(starts)) == 8 * 512


# --- the tokens -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray, JoinedLayout]:
    """Tokens of two corpora of several shards, told apart by their size, and where they lie."""
    home = tmp_path_factory.mktemp("corpora")
    random = np.random.default_rng(0)
    train, real = random.integers(0, 30_000, 4_003), random.integers(30_000, 60_000, 1_501)
    uris = [write_shards(home / name, tokens, 997) for name, tokens in (("train", train), ("real", real))]
    return train, real, JoinedLayout(*(TokenReader(uri).layout for uri in uris))


def mixed_of(layout: JoinedLayout, share: Share) -> Mixture:
    first, second = (Order(part.fingerprint, 3, SEQ, 12, part.tokens) for part in layout.folders)
    return Mixture(first, second, share)


def read_all(layout: JoinedLayout, mixed: Mixture, world: int, first: int, last: int) -> np.ndarray:
    """Tokens of steps [first, last): (steps, rows, SEQ + 1), as `world` ranks read them."""
    sources = [Source(layout, mixed, rank, world) for rank in range(world)]
    ranks = [batches(source, mapped_blocks(source, first, last), first, last) for source in sources]
    return np.stack([np.concatenate([next(rank).tokens for rank in ranks]) for _ in range(first, last)])


def test_rows_are_the_tokens_the_plan_names(corpora) -> None:
    train, real, layout = corpora
    mixed = mixed_of(layout, Share(0.7, 0.2, 150))
    whole = np.concatenate([train, real])
    got = read_all(layout, mixed, 1, 0, 200)
    for step in range(200):
        starts = mixed.chunk_starts(mixed.chunk(step, 1))[0]
        assert np.array_equal(got[step], np.stack([whole[start : start + SEQ + 1] for start in starts]))
    # no row runs from one corpus into the other
    assert ((got >= 30_000).all(axis=2) | (got < 30_000).all(axis=2)).all()


@pytest.mark.parametrize("world", [2, 4, 5])
@pytest.mark.parametrize("first", [0, 93])
def test_any_number_of_workers_reads_the_same_from_any_step(corpora, world: int, first: int) -> None:
    _, _, layout = corpora
    mixed = mixed_of(layout, Share(0.7, 0.2, 150))
    want = read_all(layout, mixed, 1, 0, 160)
    assert np.array_equal(read_all(layout, mixed, world, first, 160), want[first:])


def test_the_reader_service_gives_the_same_tokens(ray_cluster: object, corpora) -> None:
    from raygpt.data.service import Group, served_blocks, start_service

    _, _, layout = corpora
    mixed = mixed_of(layout, Share(0.7, 0.2, 150))
    want = read_all(layout, mixed, 1, 40, 160)
    group = Group("mixture", (0, 1), 160)
    service = start_service("test-mixture", 2)
    sources = [Source(layout, mixed, rank, 2) for rank in range(2)]
    ranks = [batches(source, served_blocks(service, group, source, 40), 40, 160) for source in sources]
    got = np.stack([np.concatenate([next(rank).tokens for rank in ranks]) for _ in range(40, 160)])
    assert np.array_equal(got, want)


def test_shards_of_another_width_are_read_as_the_wider_ids(tmp_path: Path) -> None:
    narrow = write_shards(tmp_path / "narrow", np.arange(100), 30)
    from raygpt.data.shards import ShardWriter, TokenizerInfo

    writer = ShardWriter(str(tmp_path / "wide"), "uint32", 30)
    writer.append(np.arange(70_000, 70_100))
    writer.finish(TokenizerInfo("bytes", 80_000, 0, "0" * 64), b"{}", 1, 100, ["memory"])
    layout = JoinedLayout(TokenReader(narrow).layout, TokenReader(str(tmp_path / "wide")).layout)
    from raygpt.data.reader import open_reader

    rows = open_reader(layout).read_rows(np.array([150, 3, 100, 154]), 5)
    assert rows.tolist() == [[k, k + 1, k + 2, k + 3, k + 4] for k in (70_050, 3, 70_000, 70_054)]
