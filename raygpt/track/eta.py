"""Seconds until a run ends: steps, evaluations and checkpoints that remain, at the pace seen lately."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

# The first observation of a process holds compilation, allocator growth and cold caches.
WARM_UP_OBSERVATIONS = 1
# Observations kept: with step times that vary by 30 % the mean of a whole tenth of a run is needed to be
# within 5 %. A lasting change of pace is followed sooner: when the median of the last RECENT differs from
# the median before by the factor CHANGE, only those are kept.
WINDOW = 1000
RECENT = 50
CHANGE = 1.25
# A step this many times the median is a stall; it counts once it has been seen RECURRING times in the
# window, because one pause of a disk must not be multiplied over all steps that remain.
STALL = 4.0
RECURRING = 3


class Eta:
    """Estimates `seconds_left` from what was observed in this process.

    Evaluations fall on multiples of `eval_every`, checkpoints on multiples of `checkpoint_every`
    (0 = none), and both once more on the last step. Until an evaluation has been observed it is taken
    to cost `evaluation_steps` training steps, until a checkpoint has, `checkpoint_seconds`.
    """

    def __init__(
        self,
        total_steps: int,
        eval_every: int = 0,
        checkpoint_every: int = 0,
        evaluation_steps: float = 0.0,
        checkpoint_seconds: float = 0.0,
    ) -> None:
        self.total_steps = total_steps
        self.eval_every = eval_every
        self.checkpoint_every = checkpoint_every
        self.evaluation_steps = evaluation_steps
        self.checkpoint_seconds = checkpoint_seconds
        self._seen = 0
        self._last_step: int | None = None
        self._paces: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # (seconds per step, steps it was taken over)
        self._evaluations: list[float] = []
        self._checkpoints: list[float] = []

    def observe(self, step: int, step_seconds: float) -> None:
        """Take in that the steps since the last observation took `step_seconds` each, up to `step`.

        Evaluations and checkpoints are not part of `step_seconds`.
        """
        steps = max(1, step - self._last_step) if self._last_step is not None else 1
        self._last_step = step
        self._seen += 1
        if self._seen == WARM_UP_OBSERVATIONS + 1:
            self._paces.clear()  # what was kept of the warm-up served only until something better came
        self._paces.append((step_seconds, steps))
        if self._seen % (RECENT // 5) == 0:
            self._forget_an_old_pace()

    def observe_evaluation(self, seconds: float) -> None:
        """Take in the wall-clock seconds of one evaluation."""
        self._evaluations.append(seconds)

    def observe_checkpoint(self, seconds: float) -> None:
        """Take in the seconds one checkpoint held training up."""
        self._checkpoints.append(seconds)

    def seconds_left(self, step: int) -> float | None:
        """Estimated seconds from the end of `step` to the end of the run; None before any observation."""
        steps = self.total_steps - step
        if steps <= 0:
            return 0.0
        if not self._paces:
            return None
        pace = self._pace()
        evaluation = _typical(self._evaluations)
        if evaluation is None:
            evaluation = self.evaluation_steps * pace
        checkpoint = _typical(self._checkpoints)
        if checkpoint is None:
            checkpoint = self.checkpoint_seconds
        return (
            steps * pace
            + self._remaining(step, self.eval_every) * evaluation
            + self._remaining(step, self.checkpoint_every) * checkpoint
        )

    def _pace(self) -> float:
        """Mean seconds per step over the window. The mean and not the median: times are skewed, and the
        rest of the run will have its share of slow steps too."""
        middle = median(seconds for seconds, _ in self._paces)
        limit = STALL * middle
        if sum(seconds > limit for seconds, _ in self._paces) >= RECURRING:
            kept = list(self._paces)
        else:
            kept = [(seconds, steps) for seconds, steps in self._paces if seconds <= limit]
        return sum(seconds * steps for seconds, steps in kept) / sum(steps for _, steps in kept)

    def _forget_an_old_pace(self) -> None:
        if len(self._paces) < 2 * RECENT:
            return
        seconds = [seconds for seconds, _ in self._paces]
        before, lately = median(seconds[:-RECENT]), median(seconds[-RECENT:])
        if lately > before * CHANGE or before > lately * CHANGE:
            self._paces = deque(list(self._paces)[-RECENT:], maxlen=WINDOW)

    def _remaining(self, step: int, every: int) -> int:
        if every <= 0:
            return 0
        on_multiples = self.total_steps // every - step // every
        return on_multiples + (1 if self.total_steps % every else 0)


def _typical(durations: list[float]) -> float | None:
    """Mean of the last ten, the first left out as soon as there are others: it compiles and warms up."""
    if not durations:
        return None
    steady = durations[1:] or durations
    return fmean(steady[-10:])
