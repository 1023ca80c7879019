"""The bootstrap over documents, against the theory of large samples and on data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raygpt.evaluate.bootstrap import Interval, ratio_intervals


def corpus(generator: np.random.Generator, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """(nats, tokens) of documents of very different lengths; their mean loss is 3 in the long run."""
    tokens = generator.integers(20, 400, documents).astype(float)
    return tokens * (3 + generator.normal(0, 0.4, documents)), tokens


def test_the_interval_is_that_of_normal_theory_where_there_are_many_documents() -> None:
    nats, tokens = corpus(np.random.default_rng(0), 2000)
    found = ratio_intervals([nats], [tokens], resamples=4000, seed=1)[0]
    ratio = nats.sum() / tokens.sum()
    # the standard error of a ratio of sums (Cochran, Sampling Techniques, 6.4)
    error = math.sqrt(np.sum((nats - ratio * tokens) ** 2)) / tokens.sum()
    assert found.value == pytest.approx(ratio, rel=1e-12)
    assert found.low == pytest.approx(ratio - 1.96 * error, abs=0.12 * error)
    assert found.high == pytest.approx(ratio + 1.96 * error, abs=0.12 * error)


def test_95_of_100_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for trial in range(500):
        nats, tokens = corpus(generator, 80)
        found = ratio_intervals([nats], [tokens], resamples=400, seed=trial)[0]
        held += found.low <= 3 <= found.high
    # 500 trials of 95 % have a standard deviation of 1 %; a percentile interval of 80 documents is a little narrow
    assert 0.91 <= held / 500 <= 0.98


def test_a_difference_is_judged_on_the_same_documents() -> None:
    generator = np.random.default_rng(3)
    tokens = generator.integers(20, 400, 200).astype(float)
    hard = generator.normal(3, 1.0, 200)  # documents differ far more than the models do
    base = tokens * hard
    tuned = tokens * (hard - 0.05 + generator.normal(0, 0.02, 200))
    one, two, change = ratio_intervals([base, tuned, tuned - base], [tokens] * 3, seed=0)
    assert one.low < two.value < one.high, "the two intervals overlap"
    assert change.significant and change.value == pytest.approx(two.value - one.value)
    assert change.high - change.low < 0.1 * (one.high - one.low)


def test_equal_models_differ_by_nothing_and_seeds_decide() -> None:
    nats, tokens = corpus(np.random.default_rng(4), 50)
    one, same, nothing = ratio_intervals([nats, nats, nats - nats], [tokens] * 3, seed=5)
    assert one == same and nothing == Interval(0, 0, 0) and not nothing.significant
    assert ratio_intervals([nats], [tokens], seed=5)[0] == one != ratio_intervals([nats], [tokens], seed=6)[0]


def test_draws_in_pieces_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from raygpt.evaluate import bootstrap

    nats, tokens = corpus(np.random.default_rng(4), 50)
    whole = ratio_intervals([nats], [tokens], resamples=500, seed=1)
    monkeypatch.setattr(bootstrap, "CHUNK", 50 * 7)
    assert ratio_intervals([nats], [tokens], resamples=500, seed=1) == whole


def test_intervals_move_with_a_monotone_function() -> None:
    loss = Interval(3.0, 2.5, 3.5)
    assert loss.map(math.exp) == Interval(math.exp(3.0), math.exp(2.5), math.exp(3.5))
    assert Interval(-1.0, -2.0, -0.5).map(lambda x: -x) == Interval(1.0, 0.5, 2.0)
    assert Interval(-1.0, -2.0, -0.5).significant and not Interval(1.0, 0.0, 2.0).significant


@pytest.mark.parametrize(
    ("tops", "bottoms"), [([[1.0]], [[1.0]]), ([[1.0, 1.0]], [[1.0, 0.0]]), ([[1.0]], [[1.0, 2.0]])]
)
def test_what_cannot_be_drawn_from_is_refused(tops: list, bottoms: list) -> None:
    with pytest.raises(ValueError):
        ratio_intervals(np.array(tops), np.array(bottoms))
