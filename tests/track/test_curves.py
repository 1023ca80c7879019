"""Curves for a page: thinned out without losing a spike, on every axis, with what interrupted the run."""

from __future__ import annotations

import itertools
import math
import random

from raygpt.track.curves import curve, marks, thinned
from raygpt.track.differences import differences


def test_thinning_keeps_extremes_and_order() -> None:
    draw = random.Random(3)
    values = [draw.gauss(0, 1) for _ in range(100_000)]
    values[77_777], values[33] = 50.0, -50.0
    kept = thinned(values, 2000)
    assert len(kept) <= 2000 and kept == sorted(set(kept))
    assert {0, 33, 77_777, 99_999} <= set(kept)
    # of every stretch of 200 values there is the lowest and the highest of some hundred
    assert max(later - earlier for earlier, later in itertools.pairwise(kept)) < 200
    assert thinned(values[:7], 2000) == list(range(7)) and thinned([], 5) == []


def test_a_curve_lies_on_every_axis_that_is_known() -> None:
    rows = [
        {"step": 1, "tokens": 10, "time": 3600.0, "train_loss": 2.0, "step_seconds": 2.0, "data_wait_seconds": 0.5},
        {"step": 2, "tokens": 20, "time": 7200.0, "train_loss": math.nan, "gpu_memory_bytes": 2**30},
        {"step": 3, "tokens": 30, "time": 9000.0, "train_loss": 1.23456789},
    ]
    found = curve(rows, "train_loss", 1800.0)
    assert found.x == {"step": [1, 3], "tokens": [10, 30], "hours": [0.5, 2.0]} and found.y == [2.0, 1.2346]
    assert curve(rows, "data_wait", None).y == [0.25] and curve(rows, "memory", None).y == [1.0]
    assert set(curve([{"step": 1, "lr": 0.1}], "lr", 0.0).x) == {"step"}


def test_interruptions_say_what_they_were() -> None:
    def row(step: int, time: float, **more: int) -> dict:
        return {"step": step, "tokens": step, "time": time, **more}

    rows = [
        row(1, 10),
        row(2, 100, restarts=1),
        row(3, 200, restarts=2),
        row(4, 300, restarts=3),
        row(5, 400, restarts=4),
    ]
    starts = [(0, None), (150, "stopped"), (250, "budget"), (350, "finished")]
    attempts = [{"started": started, "outcome": outcome} for started, outcome in starts]
    found = marks(rows, attempts, 0.0)
    assert [mark["text"] for mark in found] == ["restart", "killed", "stop", "budget"]
    assert found[1]["x"] == {"step": 2, "tokens": 2, "hours": 0.02778}


def test_settings_that_differ() -> None:
    one = {"run": {"name": "a"}, "optim": {"lr": 1e-3, "betas": [0.9, 0.95]}, "model": {"preset": "gpt2"}}
    other = {"run": {"name": "b"}, "optim": {"lr": 3e-4, "betas": [0.9, 0.95]}, "train": {"compile": True}}
    assert differences([one, other]) == [
        ("optim.lr", ["0.001", "0.0003"]),
        ("model.preset", ["gpt2", "–"]),
        ("train.compile", ["–", "true"]),
    ]
