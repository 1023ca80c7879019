"""PURE. Learning rate as a function of the step: no state to save, nothing to get out of step on a resume."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """`kind` is cosine, wsd (warm-up, stable, linear decay), linear or constant; steps count from 0."""

    kind: str
    peak: float
    total_steps: int
    warmup_steps: int = 0
    min_ratio: float = 0.1
    decay_fraction: float = 0.2

    def lr(self, step: int) -> float:
        """Learning rate of 0-based `step`: the first step already learns, the last one has `peak * min_ratio`."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        first = self.warmup_steps
        if self.kind == "wsd":
            first = max(first, self.total_steps - max(1, round(self.total_steps * self.decay_fraction)))
        # from `peak` at the step before `first` to the last value at the last step
        done = min(1.0, max(0.0, (step - first + 1) / max(1, self.total_steps - first)))
        if self.kind == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * done))
        else:
            share = 1 - done
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * share)
