"""PURE. Rows of two corpora in every global batch, by a share that may move: arithmetic, as `order`.

Properties
- Step k takes floor(S(k + 1)) - floor(S(k)) rows of real text and the rest of the batch from data.train, S(k) being the
  rows of real text that the share asks for in the steps before k. So at any step the count is within one row of what
  was asked for in all.
- Each corpus has an `Order` of its own, and its rows are taken in that order one after another: the n-th row ever taken
  is lane n % B of step n // B there, B being the rows of a global batch. Whatever the schedule, a pass over a corpus
  has every row of it once, and passes differ as its own epochs do.
- Rows of real text are spread evenly over the lanes, so that ranks differ by at most one row in what they get of them.
- An epoch of the mixture is a pass over data.train; a step that begins one pass and ends another belongs to the first.
- Nothing depends on the number of workers, nor on anything read before: a run resumes from its step.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from raygpt.data.order import Chunk, Order


@dataclass(frozen=True)
class Share:
    """Share of real text in a batch: `start` at step 0, then in a straight line to `end` at `last_step`, then `end`."""

    start: float
    end: float
    last_step: int = 0

    @property
    def is_constant(self) -> bool:
        return self.start == self.end or self.last_step == 0

    def describe(self) -> str:
        if self.is_constant:
            return f"{self.start:g}"
        return f"{self.start:g} to {self.end:g} at step {self.last_step}"

    def mean(self) -> float:
        """Of steps [0, last_step]."""
        return self.start if self.is_constant else (self.start + self.end) / 2

    def rows_before(self, step: int, global_batch_rows: int) -> int:
        """floor(S(step)), exactly: in whole numbers, the decimals of the settings taken as they were typed."""
        start, end, scale = self._whole
        if self.is_constant:
            return global_batch_rows * start * step // scale
        moving, last = min(step, self.last_step + 1), self.last_step
        rows = 2 * last * start * moving + (end - start) * moving * (moving - 1) + 2 * last * end * (step - moving)
        return global_batch_rows * rows // (2 * last * scale)

    @cached_property
    def _whole(self) -> tuple[int, int, int]:
        start, end = Fraction(str(self.start)), Fraction(str(self.end))
        scale = start.denominator * end.denominator
        return int(start * scale), int(end * scale), scale


@dataclass(frozen=True)
class Mixture:
    """The plan of a run over `train` and `real`, whose tokens follow those of `train` in the joined stream.

    Answers what an `Order` answers: both have the same rows to a batch and tokens to a row.
    """

    train: Order
    real: Order
    share: Share

    def __post_init__(self) -> None:
        for name in ("seq_len", "global_batch_rows", "token_bytes"):
            if getattr(self.train, name) != getattr(self.real, name):
                raise ValueError(f"{name} of the two corpora: {getattr(self.train, name)}, {getattr(self.real, name)}")

    @property
    def seq_len(self) -> int:
        return self.train.seq_len

    @property
    def global_batch_rows(self) -> int:
        return self.train.global_batch_rows

    @property
    def token_bytes(self) -> int:
        return self.train.token_bytes

    @property
    def fingerprint(self) -> str:
        """Both corpora and the share, in words: what a resume compares, part by part."""
        return (
            f"data.train {self.train.fingerprint}; distill.real {self.real.fingerprint}; "
            f"share of real text {self.share.describe()}"
        )

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step in that epoch) of the run's 0-based `step`."""
        epoch = self.train_rows_before(step) // self._epoch_rows
        return epoch, step - self._first_step(epoch, step)

    def epochs(self, steps: int) -> float:
        """Passes over data.train that the run's first `steps` make."""
        return self.train_rows_before(steps) / self._epoch_rows

    def run_step(self, epoch: int, step: int) -> int:
        """The run's step at that position."""
        return self._first_step(epoch, None) + step

    def chunk(self, step: int, steps: int) -> Chunk:
        """At most `steps` steps from the run's `step` on, cut at the epoch's end."""
        epoch, inside = self.position(step)
        if self.train_rows_before(step + steps - 1) // self._epoch_rows > epoch:
            steps = self._first_step(epoch + 1, step + steps - 1) - step
        return Chunk(epoch, inside, steps)

    def chunk_starts(self, chunk: Chunk, lanes: slice = slice(None)) -> np.ndarray:
        """First tokens of the rows of a chunk's steps for some lanes, in the joined stream: (steps, lanes) int64."""
        rows = self.global_batch_rows
        first = self.run_step(chunk.epoch, chunk.first_step)
        before = np.array([self.real_rows_before(first + k) for k in range(chunk.steps + 1)], dtype=np.int64)
        step = np.arange(first, first + chunk.steps, dtype=np.int64)[:, None]
        lane = np.arange(rows, dtype=np.int64)[lanes][None, :]
        count = np.diff(before)[:, None]
        real_before_lane = lane * count // rows
        is_real = (lane + 1) * count // rows > real_before_lane
        taken_real = before[:-1, None] + real_before_lane
        taken_train = step * rows + lane - taken_real
        starts = np.empty(is_real.shape, dtype=np.int64)
        starts[is_real] = self.train.total_tokens + self.real.starts_of_taken(taken_real[is_real])
        starts[~is_real] = self.train.starts_of_taken(taken_train[~is_real])
        return starts

    def real_rows_before(self, step: int) -> int:
        """Rows of real text in all steps before `step`."""
        return self.share.rows_before(step, self.global_batch_rows)

    def train_rows_before(self, step: int) -> int:
        """Rows of data.train in all steps before `step`."""
        return step * self.global_batch_rows - self.real_rows_before(step)

    @property
    def _epoch_rows(self) -> int:
        return self.train.steps_per_epoch * self.global_batch_rows

    def _first_step(self, epoch: int, most: int | None) -> int:
        """First step before which `epoch` passes over data.train were made; `most` is one known to be no earlier."""
        wanted = epoch * self._epoch_rows
        if most is None:
            most = 1
            while self.train_rows_before(most) < wanted:
                most *= 2
        low, high = 0, most
        while low < high:
            middle = (low + high) // 2
            if self.train_rows_before(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low


AnyOrder = Order | Mixture
