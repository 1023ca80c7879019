"""Pairs of models on the same items, against SciPy and against counting every outcome by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from raygpt.evaluate.significance import mcnemar, pair_answers, pair_losses
from raygpt.evaluate.task_compare import Compared


def test_mcnemar_counts_the_outcomes_of_fair_coins() -> None:
    for only_first, only_second in ((0, 0), (0, 5), (2, 6), (4, 4), (7, 1)):
        n, fewer = only_first + only_second, min(only_first, only_second)
        as_uneven = sum(min(sum(sides), n - sum(sides)) <= fewer for sides in product((0, 1), repeat=n))
        assert mcnemar(only_first, only_second) == pytest.approx(min(1.0, as_uneven / 2**n))


def test_mcnemar_is_scipy_s_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for only_first, only_second in ((0, 1), (10, 25), (300, 371), (2000, 2100), (5000, 4999)):
        expected = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
        assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_answers_are_paired_and_not_compared_as_averages() -> None:
    draw = np.random.default_rng(1)
    first = draw.random(2000) < 0.4
    second = first.copy()
    second[np.flatnonzero(~first)[:30]] = True  # right wherever the first is, and 30 times more
    pair = pair_answers(first, second, resamples=2000)
    assert (pair.only_first, pair.only_second, pair.items) == (0, 30, 2000)
    assert pair.difference.value == pytest.approx(0.015) and pair.p == pytest.approx(2 / 2**30)
    assert pair.significant and pair.difference.significant
    # the models' own intervals overlap by far: ±2.1 points each
    assert pair.difference.high - pair.difference.low < 0.012
    swapped = pair_answers(second, first, resamples=2000)
    assert swapped.difference.value == -pair.difference.value and swapped.p == pair.p
    same = pair_answers(first, first, resamples=200)
    assert same.p == 1.0 and not same.significant and same.to_dict()["only_second"] == 0


def test_the_interval_of_a_difference_is_the_normal_one_of_many_items() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(2)
    first, second = draw.random(3000) < 0.5, draw.random(3000) < 0.53
    pair = pair_answers(first, second, resamples=4000)
    change = second.astype(float) - first
    low, high = stats.norm.interval(0.95, change.mean(), stats.sem(change))
    assert pair.difference.low == pytest.approx(low, abs=0.002) and pair.difference.high == pytest.approx(
        high, abs=0.002
    )


def test_losses_are_paired_per_byte() -> None:
    draw = np.random.default_rng(3)
    size = draw.integers(50, 500, 60)
    hard = draw.gamma(2.0, 1.0, 60) * size
    pair = pair_losses(hard, hard * 0.99, size, resamples=2000)
    assert pair.difference.value == pytest.approx(-0.01 * hard.sum() / size.sum())
    assert pair.significant and pair.p is None and "p" not in pair.to_dict()
    assert not pair_losses(hard[:1], hard[:1] * 0.9, size[:1], resamples=100).significant


def test_two_texts_are_no_verdict() -> None:
    worse = pair_losses(np.array([1.0, 2.0]), np.array([3.0, 4.1]), np.array([2.0, 3.0]), resamples=100)
    assert worse.difference.low > 0 and not worse.significant
    assert "2 texts are too few to say" in Compared("wikitext", "lm_eval bits_per_byte", "a", "b", worse).sentence()
    five = pair_losses(np.arange(1.0, 6), np.arange(2.0, 7), np.ones(5), resamples=100)
    assert five.significant and "differ" in Compared("wikitext", "x", "a", "b", five).sentence()
