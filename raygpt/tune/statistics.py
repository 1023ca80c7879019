"""PURE. How sure a score on a small validation split is: mean and spread over seeds, paired bootstrap over examples.

Both examples and seeds are drawn again with replacement, the same draws for every configuration, so that what is hard
in an example cancels out of a difference, and the luck of a seed is part of the interval (Efron, 1979; Dror et al.,
2018, "The Hitchhiker's Guide to Testing Statistical Significance in NLP").
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raygpt.evaluate.bootstrap import LEVEL, draws


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

    @property
    def is_gain(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


class PairedBootstrap:
    """Draws shared by all figures of one validation split.

    `labels` is (N,) classes, 0 <= label < num_labels; guesses are (seeds, N) classes.
    """

    def __init__(
        self, labels: np.ndarray, num_labels: int, seeds: int, *, resamples: int = 5000, seed: int = 0
    ) -> None:
        self.labels, self.num_labels, self.seeds = np.asarray(labels), num_labels, seeds
        # how often each example is in each draw
        self.weights = np.concatenate([part.astype(np.float32) for part in draws(len(labels), resamples, seed)])
        self.drawn_seeds = np.random.default_rng((seed, 1)).integers(seeds, size=(resamples, seeds))

    def score(self, guesses: np.ndarray, metric: str) -> Score:
        """accuracy or f1 of one configuration."""
        values = self._values(np.ones((1, len(self.labels)), np.float32), guesses, metric)[0]
        low, high = _ends(self._draws(guesses, metric))
        return Score(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0, low, high)

    def difference(self, ours: np.ndarray, theirs: np.ndarray, metric: str) -> Difference:
        """accuracy or f1 of ours less that of theirs, on the same draws."""
        whole = np.ones((1, len(self.labels)), np.float32)
        mean = self._values(whole, ours, metric).mean() - self._values(whole, theirs, metric).mean()
        drawn = self._draws(ours, metric) - self._draws(theirs, metric)
        return Difference(float(mean), *_ends(drawn), float((drawn > 0).mean() + 0.5 * (drawn == 0).mean()))

    def _draws(self, guesses: np.ndarray, metric: str) -> np.ndarray:
        values = self._values(self.weights, guesses, metric)
        if len(guesses) == self.seeds:
            values = np.take_along_axis(values, self.drawn_seeds, axis=1)
        return values.mean(1)

    def _values(self, weights: np.ndarray, guesses: np.ndarray, metric: str) -> np.ndarray:
        """(draws, seeds) scores of (seeds, N) guesses under (draws, N) weights."""
        if metric == "accuracy":
            return weights @ (guesses == self.labels).T.astype(np.float32) / weights.sum(1, keepdims=True)
        scores = []
        for label in (1,) if self.num_labels == 2 else range(self.num_labels):
            guessed, true = guesses == label, self.labels == label
            both = weights @ (guessed & true).T.astype(np.float32)
            total = weights @ guessed.T.astype(np.float32) + (weights @ true.astype(np.float32))[:, None]
            scores.append(2 * both / np.maximum(total, 1))
        return np.mean(scores, axis=0)


def majority(labels: np.ndarray, num_labels: int, train_labels: np.ndarray) -> np.ndarray:
    """(1, N) guesses of always the training part's most frequent class."""
    return np.full((1, len(labels)), np.bincount(train_labels, minlength=num_labels).argmax())


def compare(
    labels: np.ndarray,
    num_labels: int,
    train_labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    resamples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of ours, theirs and the majority class, and ours less the other two, for accuracy and f1."""
    drawn = PairedBootstrap(labels, num_labels, len(ours), resamples=resamples, seed=seed)
    nobody = majority(labels, num_labels, train_labels)
    out: dict[str, Any] = {}
    for metric in ("accuracy", "f1"):
        out[metric] = {
            "best": drawn.score(ours, metric).to_dict(),
            "baseline": drawn.score(theirs, metric).to_dict(),
            "majority": drawn.score(nobody, metric).mean,
            "over_baseline": drawn.difference(ours, theirs, metric).to_dict(),
            "over_majority": drawn.difference(ours, nobody, metric).to_dict(),
        }
    return out


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
