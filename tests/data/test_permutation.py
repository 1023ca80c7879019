"""A permutation without a table: every value once, its own inverse, and as mixed as a shuffle."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from raygpt.data.permutation import Permutation


def seed(number: int) -> bytes:
    return hashlib.sha512(b"%d" % number).digest()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 1000, 1024, 1025, 100_003])
def test_every_value_comes_once_and_the_inverse_finds_its_place(size: int) -> None:
    permuted = Permutation(size, seed(size))
    values = permuted(np.arange(size))
    assert values.dtype == np.int64 and sorted(values) == list(range(size))
    assert np.array_equal(permuted.inverse(values), np.arange(size))


def test_a_place_gives_the_same_value_asked_alone_or_among_others_in_any_shape() -> None:
    permuted = Permutation(10_007, seed(1))
    whole = permuted(np.arange(10_007))
    assert permuted(np.array([[9, 3], [10_006, 0]])).tolist() == whole[[[9, 3], [10_006, 0]]].tolist()


def test_neighbours_are_as_far_apart_as_in_a_shuffle() -> None:
    """Correlation of a place with its value, and of a value with the next: within five deviations of independence."""
    size, seeds = 20_011, 30
    found = []
    for number in range(seeds):
        values = Permutation(size, seed(number))(np.arange(size)).astype(float)
        pairs = [(np.arange(size), values), *((values[:-lag], values[lag:]) for lag in (1, 2, 64))]
        found.append([np.corrcoef(a, b)[0, 1] for a, b in pairs])
    assert np.abs(np.mean(found, axis=0)).max() < 5 / np.sqrt(size * seeds)
    assert np.std(found, axis=0).max() < 1.5 / np.sqrt(size)


def test_all_orders_of_four_come_equally_often() -> None:
    orders = [tuple(Permutation(4, seed(number))(np.arange(4))) for number in range(4800)]
    counts = np.array(list(Counter(orders).values()))
    assert len(counts) == 24
    assert np.sum((counts - 200) ** 2 / 200) < 49.7  # chi-square of 23 degrees of freedom at 0.001


def test_five_trillion_tokens_take_no_memory_and_no_time() -> None:
    permuted = Permutation(5 * 10**12 // 1024, seed(0))
    assert len(np.unique(permuted(np.arange(4096) * 10**6))) == 4096


def test_what_lies_outside_is_refused() -> None:
    with pytest.raises(IndexError):
        Permutation(10, seed(0))(np.array([10]))
    with pytest.raises(ValueError, match="seed of 3 bytes"):
        Permutation(10, b"abc")
