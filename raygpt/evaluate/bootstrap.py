"""PURE. How sure a figure over documents is: percentile intervals of the paired bootstrap (Efron, 1979).

Documents, not tokens, are drawn again with replacement: tokens of one document are not independent, and intervals over
tokens come out several times too narrow. Every figure is computed from the same draws, so that a difference between
two models is judged on the same documents (paired) and what is merely hard in a document cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

LEVEL = 0.95
# Numbers of draws held at a time: 32 MB of int64.
CHUNK = 2**22


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
    drawn = np.concatenate([counts @ np.concatenate([top, bottom]).T for counts in draws(documents, resamples, seed)])
    ratios = drawn[:, : len(top)] / drawn[:, len(top) :]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail], axis=0)
    values = top.sum(axis=1) / bottom.sum(axis=1)
    return [Interval(float(value), float(a), float(b)) for value, a, b in zip(values, low, high)]


def draws(documents: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(some, documents) float64: how often each document (or example) was drawn, until there are `resamples` rows."""
    generator = np.random.default_rng(seed)
    even = np.full(documents, 1 / documents)
    step = max(1, CHUNK // documents)
    for begin in range(0, resamples, step):
        yield generator.multinomial(documents, even, size=min(step, resamples - begin)).astype(np.float64)
