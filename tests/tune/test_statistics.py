"""Intervals against formulas and against draws made one by one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from raygpt.tune.statistics import PairedBootstrap, compare


def test_the_interval_of_an_accuracy_is_about_the_binomial_one() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    guesses = np.where(random.random(400) < 0.8, labels, 1 - labels)[None]
    score = PairedBootstrap(labels, 2, 1, resamples=4000).score(guesses, "accuracy")
    rate = (guesses[0] == labels).mean()
    half = 1.96 * np.sqrt(rate * (1 - rate) / 400)
    assert score.mean == pytest.approx(rate)
    assert (score.low, score.high) == (pytest.approx(rate - half, abs=0.006), pytest.approx(rate + half, abs=0.006))


def test_weighted_f1_is_scikit_learns_on_the_drawn_rows() -> None:
    random = np.random.default_rng(1)
    for classes, average in ((2, "binary"), (3, "macro")):
        labels, guesses = random.integers(0, classes, (2, 50))
        draws = PairedBootstrap(labels, classes, 1, resamples=20)
        values = draws._values(draws.weights, guesses[None], "f1")[:, 0]
        for weights, value in zip(draws.weights, values):
            rows = np.repeat(np.arange(50), weights.astype(int))
            assert value == pytest.approx(f1_score(labels[rows], guesses[rows], average=average), abs=1e-6)


def test_a_pair_differs_less_than_its_parts_vary() -> None:
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, 300)
    theirs = np.where(random.random((5, 300)) < 0.7, labels, 1 - labels)
    ours = theirs.copy()
    wrong = [np.flatnonzero(row != labels)[:30] for row in theirs]
    for row, fixed in zip(ours, wrong):
        row[fixed] = labels[fixed]  # 30 of 300 mended in every seed
    draws = PairedBootstrap(labels, 2, 5, resamples=2000)
    difference = draws.difference(ours, theirs, "accuracy")
    score = draws.score(ours, "accuracy")
    assert difference.mean == pytest.approx(0.1)
    assert difference.is_gain and difference.better > 0.99
    assert difference.high - difference.low < score.high - score.low


def test_no_difference_is_no_gain_and_spread_over_seeds_widens_the_interval() -> None:
    random = np.random.default_rng(3)
    labels = np.ones(200, dtype=int)
    same = (random.random((4, 200)) < 0.75).astype(int)
    draws = PairedBootstrap(labels, 2, 4, resamples=1000)
    assert not draws.difference(same, same, "accuracy").is_gain
    rates = np.array([0.5, 0.7, 0.8, 1.0])
    spread = (np.arange(200)[None] < rates[:, None] * 200).astype(int)
    narrow, wide = draws.score(same, "accuracy"), draws.score(spread, "accuracy")
    assert wide.sd == pytest.approx(np.std(rates, ddof=1)) and wide.high - wide.low > narrow.high - narrow.low


def test_the_majority_class_of_mrpc_scores_what_is_published() -> None:
    labels = np.array([1] * 279 + [0] * 129)
    train = np.array([1] * 2474 + [0] * 1194)
    found = compare(labels, 2, train, labels[None], labels[None] * 0, resamples=100)
    assert found["accuracy"]["majority"] == pytest.approx(0.684, abs=5e-4)
    assert found["f1"]["majority"] == pytest.approx(0.812, abs=5e-4)
    assert found["accuracy"]["best"]["mean"] == 1 and found["f1"]["baseline"]["mean"] == 0
