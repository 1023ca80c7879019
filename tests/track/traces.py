"""Runs as their own records tell them: how long each step, evaluation and save took, to try an ETA on.

A trace is JSON: `total`, `eval_every`, `checkpoint_every` in steps, and `rows` of [step, seconds per step since the row
before, seconds of the evaluation or null, seconds a save held training up or null, wall clock at its end].
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from raygpt.track.eta import Eta

FOLDER = Path(__file__).parent / "traces"


def trace_of(records: list[dict[str, Any]], *, total: int, eval_every: int, checkpoint_every: int) -> dict[str, Any]:
    """The trace of a whole run's metrics.jsonl. What a row took beyond its steps and its save was its evaluation."""
    rows: list[list[Any]] = []
    last_step, last_time = 0, None
    for row in records:
        if "step_seconds" not in row:
            last_time = row["time"] if row["step"] == 0 else last_time
            continue
        steps, save = row["step"] - last_step, row.get("checkpoint_stall_seconds")
        evaluation = None
        if "val_loss" in row and last_time is not None:
            evaluation = row["time"] - last_time - steps * row["step_seconds"] - (save or 0.0)
        rows.append([row["step"], row["step_seconds"], evaluation, save, row["time"]])
        last_step, last_time = row["step"], row["time"]
    return {"total": total, "eval_every": eval_every, "checkpoint_every": checkpoint_every, "rows": rows}


def read_trace(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def estimates(trace: dict[str, Any]) -> list[tuple[int, float]]:
    """(step, estimated seconds left) at each row, told to the estimator in the order in which training tells it."""
    eta = Eta(trace["total"], trace["eval_every"], trace["checkpoint_every"])
    found = []
    for step, seconds, evaluation, save, _ in trace["rows"]:
        if evaluation is not None:
            eta.observe_evaluation(evaluation)
        eta.observe(step, seconds)
        if save is not None:
            eta.observe_checkpoint(save)
        left = eta.seconds_left(step)
        assert left is not None
        found.append((step, left))
    return found


def relative_error(trace: dict[str, Any], step: int, estimate: float) -> float:
    """Error of the seconds left that were estimated at `step`, had the machine kept the pace it had until then."""
    rows = trace["rows"]
    (at,) = (row for row in rows if row[0] == step)
    before = fmean(row[1] for row in rows if 5 < row[0] <= step)
    after = fmean(row[1] for row in rows if row[0] > step)
    left = rows[-1][4] - at[4]
    print(f"estimated {estimate:.1f} s, took {left:.1f} s; a step's time changed by {after / before - 1:+.1%}")
    return estimate * after / before / left - 1
