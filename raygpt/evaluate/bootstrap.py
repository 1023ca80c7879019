"""PURE. How sure a figure over documents is: percentile intervals of the paired bootstrap (Efron, 1979).

Documents, not tokens, are drawn again with replacement: tokens of one document are not independent, and intervals over
tokens come out several times too narrow. Every figure is computed from the same draws, so that a difference between
two models is judged on the same documents (paired) and what is merely hard in a document cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

LEVEL = 0.95
# Numbers of draws held at a time: 8 MB of int64 and as much of float64.
CHUNK = 2**20


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its interval, in the figure's own unit."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval of a monotone function of the figure, such as exp: percentiles move with it."""
        ends = sorted((function(self.low), function(self.high)))
        return Interval(function(self.value), *ends)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def ratio_intervals(
    numerators: Sequence[np.ndarray],
    denominators: Sequence[np.ndarray],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> list[Interval]:
    """Interval of sum(numerators[i]) / sum(denominators[i]) for each i, all from the same draws of documents.

    Each array is (documents,): nats and tokens of every document, say, which makes the token-weighted mean loss. A
    difference of two models is a row of its own, `(nats_b - nats_a, tokens)`. Raises ValueError for fewer than two
    documents and for a denominator that is not positive everywhere.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if top.ndim != 2 or top.shape != bottom.shape:
        raise ValueError(f"numerators {top.shape} and denominators {bottom.shape} must both be (figures, documents)")
    documents = top.shape[1]
    if documents < 2:
        raise ValueError(f"{documents} documents: a bootstrap needs at least 2")
    if not (bottom > 0).all():
        raise ValueError("every document needs a positive denominator")
    sums = np.concatenate([top, bottom]).T
    drawn = resampled(lambda counts: counts @ sums, documents, resamples, seed)
    low, high = percentile_ends(drawn[:, : len(top)] / drawn[:, len(top) :], level)
    values = top.sum(axis=1) / bottom.sum(axis=1)
    return [Interval(float(value), float(a), float(b)) for value, a, b in zip(values, low, high)]


def resampled(figures: Callable[[np.ndarray], np.ndarray], documents: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, ...) figures of every draw. `figures` maps (some draws, documents) float64, how often each document
    (or example) was drawn, to (some draws, ...).

    Draws come in blocks: all of 5,000 draws of 40,000 examples would take 1.6 GB.
    """
    generator = np.random.default_rng(seed)
    even = np.full(documents, 1 / documents)
    step = max(1, CHUNK // documents)
    parts = []
    for begin in range(0, resamples, step):
        counts = generator.multinomial(documents, even, size=min(step, resamples - begin))
        parts.append(figures(counts.astype(np.float64)))
    return np.concatenate(parts)


def percentile_ends(drawn: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """(2, ...) low and high end of the interval that holds the middle `level` of the draws (first axis)."""
    tail = 100 * (1 - level) / 2
    return np.percentile(drawn, [tail, 100 - tail], axis=0)
