"""PURE. How sure a score on a small validation split is: mean and spread over seeds, paired bootstrap over examples.

Both examples and seeds are drawn again with replacement, the same draws for every configuration, so that what is hard
in an example cancels out of a difference, and the luck of a seed is part of the interval (Efron, 1979; Dror et al.,
2018, "The Hitchhiker's Guide to Testing Statistical Significance in NLP").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raygpt.evaluate.bootstrap import percentile_ends, resampled

METRICS = ("accuracy", "f1")
Guesses = Mapping[int, np.ndarray] | np.ndarray


@dataclass(frozen=True)
class Score:
    """A score of one configuration: mean and sample standard deviation over seeds, ends of its interval."""

    mean: float
    sd: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.sd:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """Ours less theirs, with its interval; `better` is the share of draws in which ours is ahead."""

    mean: float
    low: float
    high: float
    better: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


class PairedBootstrap:
    """Accuracy and F1 of several configurations on one validation split, all from the same draws, in one pass over
    them: memory does not grow with examples times resamples.

    `labels` is (N,) classes, 0 <= label < num_labels; `guesses` has, by configuration, {seed: (N,) classes}. A seed
    that failed is simply absent: a score draws from the seeds that came through, and a difference pairs them by seed.
    A guess that has no seed, such as always the same class, is given as a bare (N,) array.
    """

    def __init__(
        self,
        labels: np.ndarray,
        num_labels: int,
        guesses: Mapping[str, Guesses],
        *,
        resamples: int = 5000,
        seed: int = 0,
    ) -> None:
        self.labels, self.num_labels, self.seed = np.asarray(labels), num_labels, seed
        self.seeds = {name: sorted(g) if isinstance(g, Mapping) else [] for name, g in guesses.items()}
        rows = [
            np.stack([g[key] for key in self.seeds[name]]) if isinstance(g, Mapping) else np.asarray(g)[None]
            for name, g in guesses.items()
        ]
        ends = np.cumsum([0, *map(len, rows)])
        self._columns = {name: slice(a, b) for name, a, b in zip(guesses, ends, ends[1:])}
        every = np.concatenate(rows)

        def values(counts: np.ndarray) -> np.ndarray:
            return np.stack([self._values(counts, every, metric) for metric in METRICS], axis=1)

        self._whole = values(np.ones((1, len(self.labels))))[0]
        self._drawn = resampled(values, len(self.labels), resamples, seed)

    def score(self, name: str, metric: str) -> Score:
        """accuracy or f1 of one configuration: mean and spread over its seeds, interval over examples and seeds."""
        whole = self._whole[METRICS.index(metric), self._columns[name]]
        low, high = _ends(self._mean(name, metric, self.seeds[name]))
        return Score(float(whole.mean()), float(whole.std(ddof=1)) if len(whole) > 1 else 0.0, low, high)

    def difference(self, ours: str, theirs: str, metric: str) -> Difference:
        """accuracy or f1 of ours less that of theirs, on the same draws of examples and of seeds.

        Where fewer than two seeds came through in both, there is no spread of pairs to draw from, and each draws its
        own seeds: wider, never too narrow.
        """
        both = [key for key in self.seeds[ours] if key in self.seeds[theirs]]
        paired = len(both) > 1
        of_ours, of_theirs = (both if paired and self.seeds[name] else self.seeds[name] for name in (ours, theirs))
        drawn = self._mean(ours, metric, of_ours) - self._mean(theirs, metric, of_theirs, apart=not paired)
        mean = self._of(self._whole[None], ours, metric, of_ours).mean()
        mean -= self._of(self._whole[None], theirs, metric, of_theirs).mean()
        return Difference(float(mean), *_ends(drawn), float((drawn > 0).mean() + 0.5 * (drawn == 0).mean()))

    def _of(self, values: np.ndarray, name: str, metric: str, seeds: Sequence[int]) -> np.ndarray:
        """(draws, seeds) scores of these seeds; (draws, 1) for a guess without seeds."""
        mine = values[:, METRICS.index(metric), self._columns[name]]
        return mine[:, [self.seeds[name].index(key) for key in seeds]] if seeds else mine

    def _mean(self, name: str, metric: str, seeds: Sequence[int], apart: bool = False) -> np.ndarray:
        """(draws,) scores, each the mean over as many seeds drawn with replacement; `apart`: by draws of its own."""
        values = self._of(self._drawn, name, metric, seeds)
        random = np.random.default_rng((self.seed, 2 if apart else 1))
        return np.take_along_axis(values, random.integers(values.shape[1], size=values.shape), axis=1).mean(1)

    def _values(self, weights: np.ndarray, guesses: np.ndarray, metric: str) -> np.ndarray:
        """(draws, seeds) scores of (seeds, N) guesses under (draws, N) weights."""
        if metric == "accuracy":
            return weights @ (guesses == self.labels).T.astype(np.float64) / weights.sum(1, keepdims=True)
        labels = (1,) if self.num_labels == 2 else range(self.num_labels)
        total = np.zeros((len(weights), len(guesses)))
        for label in labels:
            guessed, true = guesses == label, self.labels == label
            both = weights @ (guessed & true).T.astype(np.float64)
            of_both = weights @ guessed.T.astype(np.float64) + (weights @ true.astype(np.float64))[:, None]
            total += 2 * both / np.maximum(of_both, 1)
        return total / len(labels)


def majority(labels: np.ndarray, num_labels: int, train_labels: np.ndarray) -> np.ndarray:
    """(N,) guesses of always the training part's most frequent class."""
    return np.full(len(labels), np.bincount(train_labels, minlength=num_labels).argmax())


def compare(
    labels: np.ndarray,
    num_labels: int,
    train_labels: np.ndarray,
    ours: Mapping[int, np.ndarray],
    theirs: Mapping[int, np.ndarray],
    *,
    resamples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of ours, theirs ({seed: (N,) classes}) and the majority class, and ours less the other two, for accuracy
    and f1."""
    every: dict[str, Guesses] = {"ours": ours, "theirs": theirs, "majority": majority(labels, num_labels, train_labels)}
    drawn = PairedBootstrap(labels, num_labels, every, resamples=resamples, seed=seed)
    return {
        metric: {
            "best": drawn.score("ours", metric).to_dict(),
            "baseline": drawn.score("theirs", metric).to_dict(),
            "majority": drawn.score("majority", metric).mean,
            "over_baseline": drawn.difference("ours", "theirs", metric).to_dict(),
            "over_majority": drawn.difference("ours", "majority", metric).to_dict(),
        }
        for metric in METRICS
    }


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    low, high = percentile_ends(drawn)
    return float(low), float(high)
