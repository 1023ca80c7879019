"""Verbatim overlaps against a brute-force longest common run, over blocks, shards and loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raygpt.data.reader import TokenReader
from raygpt.evaluate import overlap
from raygpt.evaluate.overlap import BASE, longest_overlaps, window_hashes
from raygpt.train.evaluation import ArrayTokens


def longest_common_run(text: np.ndarray, stream: np.ndarray) -> int:
    """The textbook table, one row at a time."""
    best, before = 0, np.zeros(len(stream) + 1, int)
    for token in text:
        row = np.zeros(len(stream) + 1, int)
        row[1:] = np.where(stream == token, before[:-1] + 1, 0)
        best, before = max(best, int(row.max())), row
    return best


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 6])
def test_the_longest_overlap_is_that_of_the_table(vocabulary: int) -> None:
    generator = np.random.default_rng(vocabulary)
    for _ in range(40):
        stream = generator.integers(0, vocabulary, generator.integers(1, 300))
        texts = [generator.integers(0, vocabulary, generator.integers(0, 50)) for _ in range(3)]
        shortest = int(generator.integers(1, 7))
        found = longest_overlaps(texts, ArrayTokens(stream), shortest, block_tokens=int(generator.integers(1, 120)))
        for text, one in zip(texts, found):
            longest = longest_common_run(text, stream)
            assert one.tokens == (longest if longest >= shortest else 0)
            there = stream[one.position : one.position + one.tokens]
            assert np.array_equal(there, text[one.start : one.start + one.tokens])


def test_shards_are_searched_across_their_borders(make_shards: Callable[..., str]) -> None:
    stream = np.random.default_rng(0).integers(0, 250, 5000)
    reader = TokenReader(make_shards(stream, shard_tokens=700))
    copied, strange = stream[680:730], np.random.default_rng(9).integers(0, 250, 50)
    mixed = np.concatenate([strange[:10], stream[1390:1410], strange[:12], stream[90:100]])
    seen: list[tuple[int, int]] = []
    found = longest_overlaps(
        [copied, strange, mixed], reader, 8, block_tokens=512, on_progress=lambda *now: seen.append(now)
    )
    assert [(one.tokens, one.start) for one in found] == [(50, 0), (0, 0), (20, 10)]
    assert found[0].position == 680 and found[2].position == 1390
    assert [one.covered for one in found] == [50, 0, 30]
    assert seen[-1] == (5000, 5000) and len(seen) == 10


def test_only_long_runs_count_as_covered() -> None:
    stream = np.arange(1000)
    text = np.concatenate([stream[100:109], [5000], stream[300:330]])
    found = longest_overlaps([text], ArrayTokens(stream), 8, cover_tokens=16)[0]
    assert (found.tokens, found.covered) == (30, 30)


def test_a_text_that_loops_is_searched_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MOST_PAIRS", 1000)
    loop, stream = np.zeros(60, int), np.concatenate([np.zeros(40, int), [1], np.zeros(45, int)])
    assert longest_overlaps([loop, loop[:30]], ArrayTokens(stream), 4)[0].tokens == 45


def test_windows_hash_as_the_polynomial_says() -> None:
    tokens = np.random.default_rng(1).integers(0, 2**16, 40)
    for length in (1, 2, 3, 7, 8, 16, 40):
        expected = [
            sum((int(t) + 1) * int(BASE) ** (length - 1 - j) for j, t in enumerate(tokens[i : i + length])) % 2**64
            for i in range(len(tokens) - length + 1)
        ]
        assert window_hashes(tokens, length).tolist() == expected
    assert len(window_hashes(tokens, 41)) == 0


def test_equal_hashes_alone_are_no_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hash that is the same for everything the search is slow and still right."""
    monkeypatch.setattr(overlap, "window_hashes", lambda t, n: np.zeros(max(0, len(t) - n + 1), np.uint64))
    generator = np.random.default_rng(2)
    stream, text = generator.integers(0, 3, 200), generator.integers(0, 3, 30)
    assert longest_overlaps([text], ArrayTokens(stream), 3)[0].tokens == longest_common_run(text, stream)
