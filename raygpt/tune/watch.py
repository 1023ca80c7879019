"""What the driver sees of a sweep while it runs, and how it ends one: live table, Weights & Biases, the wish to stop.

Tune pickles callbacks and stoppers with the experiment and unpickles them in the next driver. Those here hold terminals
and connections, so what travels is a reference: the next driver's own instance takes their place.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ray import tune
from ray.tune.stopper import Stopper

from raygpt import storage
from raygpt.run.stop import DISPLACED, StopToken
from raygpt.storage import Location
from raygpt.track.progress import human_duration
from raygpt.track.trackers import WANDB_FINISH_SECONDS, WANDB_INIT_SECONDS, choose_wandb_mode, public_config
from raygpt.tune.nested import Trainings
from raygpt.tune.trial import FAILURES

ROWS = 12
OFFLINE_INIT_SECONDS = 120.0  # no server to wait for, only a share of a busy machine
# Of Tune's results these are its own and no figures of the training.
_TUNE_KEYS = ("pid", "timestamp", "iterations_since_restore", "time_since_restore", "time_this_iter_s", "done")


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
        price_per_hour: float | None = None,
        runs: WandbRuns | None = None,
        stop: StopToken | None = None,
        trainings: Trainings | None = None,
    ) -> None:
        self.title, self.keys, self.metric, self.mode, self.stream = title, list(keys), metric, mode, stream
        self.total, self.show_every, self.price, self.runs = total, show_every, price_per_hour, runs
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
        text = table(self.title, trials, self.keys, self.metric, self.mode, self.total, self.seconds, self.price)
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
    price_per_hour: float | None = None,
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
    if price_per_hour is not None:
        parts.append(f"${price_per_hour * seconds / 3600:.2f}")
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


class WandbRuns:
    """One W&B run per trial, grouped by sweep. Trouble is told once in `notes` and never stops the sweep.

    Offline runs are kept in `folder`/wandb; where that is not local, they are written aside and copied at the end.
    """

    def __init__(self, folder: Location, setting: str, project: str, config: Mapping[str, Any], job_type: str) -> None:
        self.mode, note = choose_wandb_mode(setting)
        self.notes = [note]
        self.folder, self.project, self.config, self.job_type = folder, project, config, job_type
        self._runs: dict[str, Any] = {}
        self._given_up = self.mode == "disabled"
        self._local = Path(folder.path)
        if not folder.is_local and not self._given_up:
            self._local = Path(tempfile.mkdtemp(prefix="raygpt-wandb-"))

    def log(self, trial: Any, result: Mapping[str, Any]) -> None:
        """Log one epoch of a trial; its first call opens the run and logs what earlier drivers saw."""
        if self._given_up:
            return
        try:
            if trial.trial_id not in self._runs:
                self._runs[trial.trial_id] = self._open(trial)
                for row in _earlier(trial, int(result["training_iteration"])):
                    self._runs[trial.trial_id].log(_figures(row))
            self._runs[trial.trial_id].log(_figures(result))
        except Exception as error:
            self._give_up(error)

    def finish(self, trial: Any, status: str) -> None:
        """Close a trial's run with its last figures as summary."""
        run = self._runs.pop(trial.trial_id, None)
        if run is None:
            return
        try:
            mark = self.folder / FAILURES / f"{trial.trial_id}.json"
            reason = json.loads(storage.read_text(mark))["reason"] if storage.exists(mark) else None
            run.summary.update({**_figures(trial.last_result or {}), "status": reason or status})
            run.finish(exit_code=0 if status == "finished" else 1)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the runs that are still open and wait until W&B has written everything."""
        if self._given_up:
            return
        import wandb

        try:
            for run in self._runs.values():
                run.finish()
            self._runs = {}
            wandb.teardown()
            if not self.folder.is_local:
                storage.upload_folder(self._local / "wandb", self.folder / "wandb")
                shutil.rmtree(self._local, ignore_errors=True)
        except Exception as error:
            self._give_up(error)

    def _open(self, trial: Any) -> Any:
        import wandb

        self._local.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            group=self.folder.name,
            job_type=self.job_type,
            name=f"{self.folder.name}-{trial.trial_id}",
            id=f"{self.folder.name}-{trial.trial_id}",
            resume="allow" if self.mode == "online" else None,
            config={**public_config(self.config), "params": dict(trial.config)},
            dir=str(self._local),
            mode=self.mode,  # type: ignore[arg-type]
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=WANDB_INIT_SECONDS if self.mode == "online" else OFFLINE_INIT_SECONDS,
                finish_timeout=WANDB_FINISH_SECONDS,
                console="off",
                silent=True,
                save_code=False,
            ),
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        return run

    def _give_up(self, error: BaseException) -> None:
        self._given_up = True
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        self.notes.append(f"W&B: {reason}; the sweep goes on without it.")


def _earlier(trial: Any, iteration: int) -> list[dict[str, Any]]:
    """Results of a trial before `iteration` that another driver saw."""
    where = Location(trial.storage.storage_filesystem, f"{trial.storage.trial_fs_path}/result.json", "")
    try:
        rows = [json.loads(line) for line in storage.read_text(where).splitlines() if line.strip()]
    except (OSError, ValueError):
        return []
    byiteration = {int(row["training_iteration"]): row for row in rows if int(row["training_iteration"]) < iteration}
    return [byiteration[number] for number in sorted(byiteration)]


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _TUNE_KEYS
    }
