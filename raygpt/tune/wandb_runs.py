"""A sweep on Weights & Biases: a run per trial, all of them open in the sweep's driver."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raygpt import storage
from raygpt.errors import one_line
from raygpt.storage import Location
from raygpt.track.trackers import public_config
from raygpt.track.wandb_run import WandbRun, choose_wandb_mode, wait_for_wandb
from raygpt.tune.trial import FAILURES

# Of Tune's results these are its own and no figures of the training.
_TUNE_KEYS = ("pid", "timestamp", "iterations_since_restore", "time_since_restore", "time_this_iter_s", "done")


class WandbRuns:
    """One W&B run per trial, grouped by sweep. Trouble with one is told once in `notes`, is the end of all, and never
    stops the sweep.

    Offline runs are kept in `folder`/wandb; where that is not local, they are written aside and copied at the end.
    """

    def __init__(self, folder: Location, setting: str, project: str, config: Mapping[str, Any], job_type: str) -> None:
        self._mode, _ = choose_wandb_mode(setting)
        self.notes: list[str] = []
        self._folder, self._config = folder, public_config(config)
        self._about = {"project": project, "group": folder.name, "job_type": job_type}
        self._runs: dict[str, WandbRun] = {}
        self._given_up = self._mode == "disabled"
        self._local = Path(folder.path)
        if not folder.is_local and not self._given_up:
            self._local = Path(tempfile.mkdtemp(prefix="raygpt-wandb-"))

    def log(self, trial: Any, result: Mapping[str, Any]) -> None:
        """Log one epoch of a trial; its first call opens the run, and logs what earlier drivers saw where no server
        has it."""
        if self._given_up:
            return
        run = self._runs.get(trial.trial_id)
        if run is None:
            run = self._runs[trial.trial_id] = self._open(trial)
            for row in _earlier(trial, int(result["training_iteration"])) if run.mode == "offline" else []:
                run.log(_figures(row))
        run.log(_figures(result))

    def finish(self, trial: Any, status: str) -> None:
        """Close a trial's run with its last figures as summary."""
        run = self._runs.pop(trial.trial_id, None)
        if run is None:
            return
        mark = self._folder / FAILURES / f"{trial.trial_id}.json"
        reason = json.loads(storage.read_text(mark))["reason"] if storage.exists(mark) else None
        run.finish({**_figures(trial.last_result or {}), "status": reason or status}, 0 if status == "finished" else 1)

    def close(self) -> None:
        """Close the runs that are still open and wait until W&B has written everything."""
        if self._given_up:
            return
        for run in self._runs.values():
            run.finish()
        self._runs = {}
        try:
            wait_for_wandb()
            if not self._folder.is_local:
                storage.upload_folder(self._local / "wandb", self._folder / "wandb")
                shutil.rmtree(self._local, ignore_errors=True)
        except Exception as error:
            self._give_up(error)

    def _open(self, trial: Any) -> WandbRun:
        name = f"{self._folder.name}-{trial.trial_id}"
        run = WandbRun(
            self._mode,
            self._local,
            self._folder,
            self._give_up,
            step="epoch",
            name=name,
            id=name,
            config={**self._config, "params": dict(trial.config)},
            **self._about,
        )
        if run.mode == "offline" != self._mode:  # the server did not answer: the other trials do not wait for it
            self._mode = "offline"
            self.notes.append(run.note)
        return run

    def _give_up(self, error: BaseException) -> None:
        if not self._given_up:
            self.notes.append(f"W&B: {one_line(error)}; the sweep goes on without it.")
        self._given_up = True


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
