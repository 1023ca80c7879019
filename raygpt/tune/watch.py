"""What the driver sees of a sweep while it runs, and how it ends one: live table, Weights & Biases, the wish to stop.

Tune pickles callbacks and stoppers with the experiment and unpickles them in the next driver. Those here hold terminals
and connections, so what travels is a reference: the next driver's own instance takes their place.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from ray import tune
from ray.tune.stopper import Stopper

from raygpt.run.stop import DISPLACED, StopToken
from raygpt.track.progress import human_duration
from raygpt.tune.nested import Trainings
from raygpt.tune.wandb_runs import WandbRuns

ROWS = 12


class Watch(tune.Callback):
    """Callback of one sweep: prints the table, hands records to W&B, and ends Tune's loop when `stop` is requested.

    `trainings` has trials that are training jobs.
    """

    current: Watch | None = None

    def __init__(
        self,
        title: str,
        keys: Sequence[str],
        metric: str,
        mode: str,
        stream: TextIO,
        *,
        total: int,
        show_every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        spent_seconds: float = 0.0,
        cost_usd: Callable[[], float | None] = lambda: None,
        runs: WandbRuns | None = None,
        stop: StopToken | None = None,
        trainings: Trainings | None = None,
    ) -> None:
        self.title, self.keys, self.metric, self.mode, self.stream = title, list(keys), metric, mode, stream
        self.total, self.show_every, self.cost_usd, self.runs = total, show_every, cost_usd, runs
        self.stop, self.trainings = stop or StopToken(), trainings
        self._clock, self._began = clock, clock() - spent_seconds
        self._shown_at, self._lines = -1e9, 0
        self._saving: set[str] | None = None  # trials whose checkpoint was on its way when the stop was asked for
        self._live = bool(getattr(stream, "isatty", lambda: False)())
        Watch.current = self

    def __reduce__(self) -> tuple:
        return _current_watch, ()

    @property
    def seconds(self) -> float:
        """Seconds of this sweep so far, earlier drivers' included."""
        return self._clock() - self._began

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.trainings is not None:
            self.trainings.begin(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Tune's loop several times a second."""
        if self.trainings is not None:
            self.trainings.wait_for_ended(trial.trial_id for trial in trials if trial.status == "RUNNING")
        if not self.stop.requested:
            return
        # a result is known before its checkpoint is: Tune would train that epoch again
        saving = {trial.trial_id for trial in trials if trial.is_saving}
        self._saving = saving if self._saving is None else self._saving & saving
        if self._saving:
            return
        if self.trainings is not None and self.stop.reason != DISPLACED:
            self.trainings.stop()
        _stop_tune()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if self.runs is not None:
            self.runs.log(trial, result)
        self._show(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.runs is not None:
            self.runs.finish(trial, "finished")
        self._show(trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.runs is not None:
            self.runs.finish(trial, "failed")
        self._show(trials)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._print(f"trial {trial.trial_id} was interrupted and goes on from its last epoch")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._show(trials, force=True)
        if self.runs is not None:
            self.runs.close()

    def _show(self, trials: list[Any], force: bool = False) -> None:
        now = self._clock()
        if not force and now - self._shown_at < (0.5 if self._live else self.show_every):
            return
        self._shown_at = now
        text = table(self.title, trials, self.keys, self.metric, self.mode, self.total, self.seconds, self.cost_usd())
        if self._live and self._lines:
            self.stream.write(f"\x1b[{self._lines}A\x1b[J")
        self._lines = text.count("\n") + 1
        self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


def _stop_tune() -> None:
    """Have Tune leave its loop with its trials as they are, to go on later. It would take Ctrl-C for that and not say
    so afterwards; it listens to SIGUSR1 as well, in the main thread."""
    if callable(signal.getsignal(signal.SIGUSR1)):
        os.kill(os.getpid(), signal.SIGUSR1)
    else:
        raise KeyboardInterrupt


def _current_watch() -> tune.Callback:
    return Watch.current or tune.Callback()


def table(
    title: str,
    trials: Sequence[Any],
    keys: Sequence[str],
    metric: str,
    mode: str,
    total: int,
    seconds: float,
    cost_usd: float | None = None,
) -> str:
    """The sweep in a few lines: counts, then running trials and the best ones, a column per searched setting.

    `trials` are Tune's; of each its id, status, config and last result are read.
    """
    best_key = f"best_{metric}"
    sign = -1 if mode == "max" else 1
    ended = [trial for trial in trials if trial.status in ("TERMINATED", "ERROR")]
    failed = sum(trial.status == "ERROR" for trial in trials)
    running = [trial for trial in trials if trial.status == "RUNNING"]
    scored = sorted(
        (t for t in trials if best_key in (t.last_result or {})), key=lambda t: sign * t.last_result[best_key]
    )
    epochs = sum(int((t.last_result or {}).get("training_iteration", 0)) for t in trials)
    parts = [f"{title}: {len(ended)}/{total} trials done"]
    if failed:
        parts.append(f"{failed} failed")
    parts += [f"{len(running)} running", f"{epochs} epochs", human_duration(seconds)]
    if cost_usd is not None:
        parts.append(f"${cost_usd:.2f}")
    if scored:
        parts.append(f"best {metric} {scored[0].last_result[best_key]:.4f}")
    shown = {id(t): t for t in [*scored[:ROWS], *running]}.values()
    rows = [["trial", "state", "epoch", metric, "best", "loss", *(short_keys(keys))]]
    for t in shown:
        last = t.last_result or {}
        rows.append(
            [
                t.trial_id,
                t.status.lower() if t.status != "TERMINATED" else "done",
                str(last.get("training_iteration", 0)),
                *(figure(last.get(name)) for name in (metric, best_key, "loss")),
                *(figure((t.config or {}).get(key)) for key in keys),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join([" | ".join(parts), *(lines if len(rows) > 1 else [])])


def short_keys(keys: Sequence[str]) -> list[str]:
    """Settings without their section where that is unambiguous."""
    names = [key.split(".")[-1] for key in keys]
    return [name if names.count(name) == 1 else key for name, key in zip(names, keys)]


def figure(value: Any) -> str:
    """A number in four figures, anything else as text."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:.2e}"


class SweepBudget(Stopper):
    """Ends the search once `max_seconds` of the sweep are spent, earlier drivers' time included."""

    current: SweepBudget | None = None

    def __init__(self, max_seconds: float | None, elapsed: Callable[[], float]) -> None:
        self.max_seconds, self.elapsed = max_seconds, elapsed
        self.trainings: Trainings | None = None
        SweepBudget.current = self

    def __reduce__(self) -> tuple:
        return _current_budget, ()

    @property
    def spent(self) -> bool:
        return self.max_seconds is not None and self.elapsed() >= self.max_seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.spent and self.trainings is not None:
            self.trainings.stop()
        return self.spent


def _current_budget() -> SweepBudget:
    return SweepBudget.current or SweepBudget(None, lambda: 0.0)
