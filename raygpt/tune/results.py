"""What came of a sweep's trials, read from Tune's own files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raygpt import storage
from raygpt.storage import Location
from raygpt.tune.trial import FAILURES, OUT_OF_MEMORY

RUNS = "runs"  # in a sweep's folder: the runs of trials that are training jobs of their own

# How a trial ended.
FINISHED, STOPPED, FAILED, UNFINISHED = "finished", "stopped early", "failed", "unfinished"


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `history` has one record per epoch; `epochs_spent` also counts those that were run again after a kill.

    `score` is the best value of `metric` over the epochs, None where the trial reported nothing.
    """

    id: str
    params: dict[str, Any]
    status: str
    metric: str
    history: list[dict[str, Any]]
    epochs_spent: int
    seconds: float
    score: float | None
    best_epoch: int | None
    error: str | None = None
    checkpoint: str | None = None  # folder of the last one, on the sweep's filesystem

    @property
    def epochs(self) -> int:
        return len(self.history)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_trials(grid: Any, sweep: Location, metric: str, mode: str, longest: int | None) -> list[TrialRecord]:
    """Records of all trials of a Tune ResultGrid, in the order of their first results.

    A trial is finished after `longest` epochs (or its own train.epochs); without `longest`, when its run below
    `sweep`/runs has a summary.
    """
    records = []
    for trial in grid._experiment_analysis.trials:
        where = Location(trial.storage.storage_filesystem, trial.storage.trial_fs_path, trial.storage.trial_fs_path)
        rows = _rows(where / "result.json")
        mark = sweep / FAILURES / f"{trial.trial_id}.json"
        reason = json.loads(storage.read_text(mark))["reason"] if storage.exists(mark) else None
        if longest is None:
            whole = _is_whole(sweep / RUNS / trial.trial_id / "summary.json")
        else:
            whole = len({row["training_iteration"] for row in rows}) >= float(trial.config.get("train.epochs", longest))
        records.append(
            _record(trial.trial_id, dict(trial.config), trial.status, rows, metric, mode, whole, reason, trial)
        )
    # Tune lists them in another order after a restore; ties on the leaderboard must not depend on it
    return sorted(records, key=lambda record: (record.history[0]["timestamp_end"] if record.history else 0, record.id))


def _record(
    name: str,
    params: dict[str, Any],
    status: str,
    rows: Sequence[dict[str, Any]],
    metric: str,
    mode: str,
    whole: bool,
    reason: str | None,
    trial: Any,
) -> TrialRecord:
    by_epoch = {int(row["training_iteration"]): row for row in rows}
    numbers = sorted(by_epoch)
    history = [_plain(by_epoch[number], number) for number in numbers]
    scored = [row for row in history if isinstance(row.get(metric), int | float) and math.isfinite(row[metric])]
    best = None
    if scored:
        best = (max if mode == "max" else min)(scored, key=lambda row: row[metric])
        # a population changes its trials' configurations: this is the one that the score was reached with
        params = dict(by_epoch[numbers[history.index(best)]].get("config", params))
    error = reason
    if status == "ERROR":
        text = _error_text(trial) if reason is None else reason
        out_of_memory = reason is not None or "OutOfMemory" in text or OUT_OF_MEMORY in text.lower()
        ending, error = (OUT_OF_MEMORY if out_of_memory else FAILED), text
    elif status == "TERMINATED":
        ending = FINISHED if whole else STOPPED
    else:
        ending = UNFINISHED
    return TrialRecord(
        id=name,
        params=params,
        status=ending,
        metric=metric,
        history=history,
        epochs_spent=len(rows),
        seconds=sum(float(row.get("epoch_seconds", row.get("time_this_iter_s", 0.0))) for row in rows),
        score=None if best is None else float(best[metric]),
        best_epoch=None if best is None else int(best["epoch"]),
        error=error,
        checkpoint=trial.checkpoint.path if trial.checkpoint is not None else None,
    )


def best_first(trials: Iterable[TrialRecord], mode: str) -> list[TrialRecord]:
    """Trials with a score, the best first; among equals the one with the lower last loss, then the earlier one."""
    sign = -1 if mode == "max" else 1
    scored = [trial for trial in trials if trial.score is not None]
    return sorted(scored, key=lambda t: (sign * t.score, t.history[-1].get("loss", 0.0)))  # type: ignore[operator]


def epochs_by_rung(trials: Sequence[TrialRecord], rungs: Sequence[int]) -> list[dict[str, int]]:
    """For each rung: how many trials came that far and how many epochs were spent between the one before and it."""
    out, before = [], 0
    for rung in rungs:
        out.append(
            {
                "rung": rung,
                "trials": sum(trial.epochs >= rung for trial in trials),
                "epochs": sum(max(0, min(trial.epochs, rung) - before) for trial in trials),
            }
        )
        before = rung
    return out


def _is_whole(summary: Location) -> bool:
    """Whether a trial's own run came to its end: one that was stopped has a summary as well."""
    try:
        return json.loads(storage.read_text(summary)).get("outcome") in ("finished", "early")
    except FileNotFoundError:
        return False


def _rows(where: Location) -> list[dict[str, Any]]:
    try:
        text = storage.read_text(where)
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # a line that a kill cut off; its epoch is run again
    return [row for row in rows if "training_iteration" in row]


def _plain(row: dict[str, Any], iteration: int) -> dict[str, Any]:
    kept = {
        key: value for key, value in row.items() if isinstance(value, int | float | str) and key not in _NOT_FIGURES
    }
    # when it ended, in seconds since 1970 UTC
    return {**kept, "epoch": int(row.get("epoch", iteration)), "timestamp_end": row.get("timestamp", 0)}


_NOT_FIGURES = (
    "trial_id",
    "date",
    "timestamp",
    "pid",
    "hostname",
    "node_ip",
    "done",
    "checkpoint_dir_name",
    "experiment_tag",
)


def _error_text(trial: Any) -> str:
    try:
        lines = [line for line in Path(trial.error_file).read_text().splitlines() if line.strip()]
    except (OSError, TypeError):
        return "failed"
    return lines[-1].strip()[:300] if lines else "failed"
