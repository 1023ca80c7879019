"""PURE. Whether two models differ on the same items: pairs of answers, not two averages.

What is hard in an item is hard for both, so that a difference taken item by item is far surer than the two models' own
intervals let it seem. Of right and wrong answers only the items that one model has right and the other wrong say
anything: under chance they fall to either side like coins (McNemar, 1947; the exact binomial form, which holds for few
items too). Of losses, and for the interval of a difference, items are drawn again with replacement, the same draws for
both models (paired bootstrap, `raygpt.evaluate.bootstrap`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raygpt.evaluate.bootstrap import Interval, ratio_intervals

LEVEL = 0.05
FEWEST = 5  # texts of which a bootstrap says anything: of fewer it draws the same few samples again


@dataclass(frozen=True)
class Pair:
    """The second model less the first, in the figure's unit, over the same items. `p` is McNemar's of right and wrong
    answers (`only_first` and `only_second`: items that one alone has right), None for losses."""

    difference: Interval
    items: int
    p: float | None = None
    only_first: int | None = None
    only_second: int | None = None

    @property
    def significant(self) -> bool:
        """At 5 %: by the exact test of answers, else by the interval, which fewer than FEWEST items do not give."""
        if self.p is not None:
            return self.p < LEVEL
        return self.items >= FEWEST and self.difference.significant

    def to_dict(self) -> dict[str, Any]:
        facts = asdict(self) | {"significant": self.significant}
        return {name: value for name, value in facts.items() if value is not None}


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test: 2 P(X <= min(b, c)) for X ~ Binomial(b + c, 1/2), at most 1."""
    fewer, both = min(only_first, only_second), only_first + only_second
    ways = total = 1
    for k in range(fewer):
        ways = ways * (both - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / 2**both)


def pair_answers(first: np.ndarray, second: np.ndarray, *, resamples: int, seed: int = 0) -> Pair:
    """Two models' answers to the same items, (items,) bool each: accuracies of the second less the first, 0 to 1."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    change = second.astype(np.float64) - first
    interval = _interval(change, np.ones(len(change)), resamples, seed)
    return Pair(interval, len(first), mcnemar(only_first, only_second), only_first, only_second)


def pair_losses(first: np.ndarray, second: np.ndarray, sizes: np.ndarray, *, resamples: int, seed: int = 0) -> Pair:
    """Two models' losses on the same items, (items,) each: sum(second - first) / sum(sizes), below 0 where the second
    is better. `sizes` are what a loss is told per, bytes or words: the same for both."""
    change = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    return Pair(_interval(change, np.asarray(sizes, np.float64), resamples, seed), len(change))


def _interval(change: np.ndarray, sizes: np.ndarray, resamples: int, seed: int) -> Interval:
    if len(change) < 2:  # nothing to draw from: any difference may be luck
        value = float(change.sum() / sizes.sum())
        return Interval(value, min(value, 0.0), max(value, 0.0))
    return ratio_intervals([change], [sizes], resamples=resamples, seed=seed)[0]
