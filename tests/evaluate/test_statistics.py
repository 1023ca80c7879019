"""Intervals against formulas and against draws made one by one."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import f1_score

from raygpt.evaluate.statistics import PairedBootstrap, compare


def by_seed(rows: np.ndarray, *, without: tuple[int, ...] = ()) -> dict[int, np.ndarray]:
    return {seed: row for seed, row in enumerate(rows) if seed not in without}


def drawn_one_by_one(labels: np.ndarray, *rows: np.ndarray) -> tuple[float, float]:
    """Ends of the accuracy of (seeds, N) guesses, or of the first's less the second's, whose rows are pairs."""
    random, found = np.random.default_rng(99), []
    for _ in range(4000):
        examples = random.integers(len(labels), size=len(labels))
        seeds = random.integers(len(rows[0]), size=len(rows[0]))
        scores = [np.mean([(row[seed][examples] == labels[examples]).mean() for seed in seeds]) for row in rows]
        found.append(scores[0] - (scores[1] if len(scores) > 1 else 0))
    return tuple(np.quantile(found, [0.025, 0.975]))


def test_the_interval_of_an_accuracy_is_about_the_binomial_one() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    guesses = np.where(random.random(400) < 0.8, labels, 1 - labels)
    score = PairedBootstrap(labels, 2, {"ours": guesses}, resamples=4000).score("ours", "accuracy")
    rate = (guesses == labels).mean()
    half = 1.96 * np.sqrt(rate * (1 - rate) / 400)
    assert score.mean == pytest.approx(rate)
    assert (score.low, score.high) == (pytest.approx(rate - half, abs=0.006), pytest.approx(rate + half, abs=0.006))


def test_weighted_f1_is_scikit_learns_on_the_drawn_rows() -> None:
    random = np.random.default_rng(1)
    for classes, average in ((2, "binary"), (3, "macro")):
        labels, guesses = random.integers(0, classes, (2, 50))
        counts = random.multinomial(50, np.full(50, 1 / 50), size=20)
        values = PairedBootstrap(labels, classes, {"ours": guesses})._values(counts, guesses[None], "f1")[:, 0]
        for count, value in zip(counts, values):
            rows = np.repeat(np.arange(50), count)
            assert value == pytest.approx(f1_score(labels[rows], guesses[rows], average=average), abs=1e-6)


def test_a_pair_differs_less_than_its_parts_vary() -> None:
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, 300)
    theirs = np.where(random.random((5, 300)) < 0.7, labels, 1 - labels)
    ours = theirs.copy()
    wrong = [np.flatnonzero(row != labels)[:30] for row in theirs]
    for row, fixed in zip(ours, wrong):
        row[fixed] = labels[fixed]  # 30 of 300 mended in every seed
    draws = PairedBootstrap(labels, 2, {"ours": by_seed(ours), "theirs": by_seed(theirs)}, resamples=2000)
    difference = draws.difference("ours", "theirs", "accuracy")
    score = draws.score("ours", "accuracy")
    assert difference.mean == pytest.approx(0.1)
    assert difference.low > 0 and difference.better > 0.99
    assert difference.high - difference.low < score.high - score.low


def test_no_difference_is_no_gain_and_spread_over_seeds_widens_the_interval() -> None:
    random = np.random.default_rng(3)
    labels = np.ones(200, dtype=int)
    same = (random.random((4, 200)) < 0.75).astype(int)
    rates = np.array([0.5, 0.7, 0.8, 1.0])
    spread = (np.arange(200)[None] < rates[:, None] * 200).astype(int)
    given = {"same": by_seed(same), "again": by_seed(same), "spread": by_seed(spread)}
    draws = PairedBootstrap(labels, 2, given, resamples=1000)
    assert draws.difference("same", "again", "accuracy").low <= 0
    narrow, wide = draws.score("same", "accuracy"), draws.score("spread", "accuracy")
    assert wide.sd == pytest.approx(np.std(rates, ddof=1)) and wide.high - wide.low > narrow.high - narrow.low


def test_the_majority_class_of_mrpc_scores_what_is_published() -> None:
    labels = np.array([1] * 279 + [0] * 129)
    train = np.array([1] * 2474 + [0] * 1194)
    found = compare(labels, 2, train, {0: labels}, {0: labels * 0}, resamples=100)
    assert found["accuracy"]["majority"] == pytest.approx(0.684, abs=5e-4)
    assert found["f1"]["majority"] == pytest.approx(0.812, abs=5e-4)
    assert found["accuracy"]["best"]["mean"] == 1 and found["f1"]["baseline"]["mean"] == 0


def test_a_seed_that_failed_leaves_the_spread_of_the_others_in_the_interval() -> None:
    random = np.random.default_rng(4)
    labels = random.integers(0, 2, 2000)
    rates = np.array([0.68, 0.86, 0.72, 0.84, 0.76])
    theirs = np.where(random.random((5, 2000)) < rates[:, None], labels, 1 - labels)
    ours = np.where(random.random((5, 2000)) < rates[::-1, None], labels, 1 - labels)
    given = {"ours": by_seed(ours), "theirs": by_seed(theirs, without=(2,))}
    draws = PairedBootstrap(labels, 2, given, resamples=4000)
    score, expected = draws.score("theirs", "accuracy"), drawn_one_by_one(labels, theirs[[0, 1, 3, 4]])
    assert score.mean == pytest.approx((theirs[[0, 1, 3, 4]] == labels).mean())
    assert (score.low, score.high) == pytest.approx(expected, abs=0.006)
    assert score.high - score.low > 0.1  # over examples alone: 0.04
    # ours and theirs are paired by the seed's number, not by their place in the list
    change = draws.difference("ours", "theirs", "accuracy")
    expected = drawn_one_by_one(labels, ours[[0, 1, 3, 4]], theirs[[0, 1, 3, 4]])
    assert (change.low, change.high) == pytest.approx(expected, abs=0.012)
    of_all = (ours[[0, 1, 3, 4]] == labels).mean() - (theirs[[0, 1, 3, 4]] == labels).mean()
    assert change.mean == pytest.approx(of_all)


def test_without_two_seeds_in_common_each_draws_its_own() -> None:
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 1000)
    rows = np.where(random.random((4, 1000)) < np.array([[0.6], [0.9], [0.6], [0.9]]), labels, 1 - labels)
    given = {"ours": by_seed(rows, without=(2, 3)), "theirs": by_seed(rows, without=(0, 1))}
    change = PairedBootstrap(labels, 2, given, resamples=1000).difference("ours", "theirs", "accuracy")
    assert change.low < -0.2 and change.high > 0.2


def test_memory_does_not_grow_with_examples_times_resamples() -> None:
    random = np.random.default_rng(6)
    labels = random.integers(0, 2, 40_000)
    guesses = {seed: random.integers(0, 2, 40_000) for seed in range(3)}
    tracemalloc.start()
    try:
        compare(labels, 2, labels, guesses, guesses, resamples=600)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6  # the counts of all 600 draws at once: 96 MB as float32 alone
