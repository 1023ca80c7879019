"""PURE. Curves of a run for its page: thinned out to what a screen shows, minima and maxima kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raygpt.track.spending import FAILURES

MOST_POINTS = 2_000  # of a curve
MOST_OF_PAGE = 55_000  # of all curves together: under 2 MB of text
AXES = ("step", "tokens", "hours")
GIB = 2**30
# metrics that are worked out of a figure of the records with another name
NAMES = {"data_wait": "data_wait_seconds", "teacher": "teacher_seconds", "memory": "gpu_memory_bytes"}


@dataclass(frozen=True)
class Chart:
    """What a chart shows of each run: (metric, label, whether it is drawn with dots). `form` says how values are
    written, `clip` which extremes the first view leaves out: the start of a loss, or rare spikes; noisy curves get a
    running mean."""

    name: str
    title: str
    unit: str
    metrics: tuple[tuple[str, str, bool], ...]
    form: str = "plain"
    zero: bool = False
    clip: str = ""
    noisy: bool = False


CHARTS = (
    Chart(
        "loss",
        "Loss",
        "nats per token",
        (("train_loss", "training", False), ("val_loss", "validation", True)),
        clip="start",
        noisy=True,
    ),
    Chart(
        "distillation",
        "Loss, its parts",
        "nats per token",
        (("kd_loss", "divergence", False), ("ce_loss", "next token", False)),
        clip="start",
        noisy=True,
    ),
    Chart("hellaswag", "HellaSwag", "acc_norm", (("hellaswag_acc_norm", "HellaSwag acc_norm", True),), "percent"),
    Chart(
        "speed", "Speed", "tokens per second", (("tokens_per_second", "tokens/s", False),), "count", True, noisy=True
    ),
    Chart(
        "mfu",
        "Model FLOP utilisation",
        "of the datasheet's peak",
        (("mfu", "MFU", False),),
        "percent",
        True,
        noisy=True,
    ),
    Chart(
        "data_wait", "Waiting for data", "of step time", (("data_wait", "waiting", False),), "percent", True, noisy=True
    ),
    Chart("learning_rate", "Learning rate", "of each step", (("lr", "learning rate", False),), "small", True),
    Chart(
        "grad_norm",
        "Gradient norm",
        "L2, before clipping",
        (("grad_norm", "gradient norm", False),),
        zero=True,
        clip="spikes",
        noisy=True,
    ),
    Chart("memory", "Device memory, peak", "GiB", (("memory", "memory", False),), zero=True),
    Chart("saves", "Time a save held training up", "seconds", (("checkpoint_stall_seconds", "save", True),), zero=True),
    Chart(
        "teacher", "Time in the teacher", "of step time", (("teacher", "teacher", False),), "percent", True, noisy=True
    ),
    Chart("workers", "Workers", "of the run", (("world_size", "workers", False),), zero=True),
    Chart("scale", "Loss scale", "of fp16's gradients", (("loss_scale", "loss scale", False),), "count", zero=True),
    Chart("cost", "Cost so far", "US dollars", (("cost_usd", "cost", False),), "usd", zero=True),
)
CONSTANT_SAYS_NOTHING = ("workers", "scale")


@dataclass
class Curve:
    """Values with where they lie on each axis; equal lengths, at most MOST_POINTS."""

    x: dict[str, list[float]] = field(default_factory=dict)
    y: list[float] = field(default_factory=list)


def curve(records: Sequence[Mapping[str, Any]], metric: str, started: float | None, limit: int = MOST_POINTS) -> Curve:
    """The metric over steps, tokens, and hours since `started` (seconds since 1970); what is not known, or not a
    number, has no point."""
    points = []
    for row in records:
        value = _value(row, metric)
        if value is not None and math.isfinite(value):
            points.append((row, value))
    kept = [points[at] for at in thinned([value for _, value in points], limit)]
    found = Curve(y=[_digits(value) for _, value in kept])
    found.x["step"] = [row["step"] for row, _ in kept]
    if all("tokens" in row for row, _ in kept):
        found.x["tokens"] = [row["tokens"] for row, _ in kept]
    if started is not None and all("time" in row for row, _ in kept):
        found.x["hours"] = [_hours(row["time"], started) for row, _ in kept]
    return found


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    if metric in ("data_wait", "teacher"):
        part = row.get(NAMES[metric])
        return None if part is None or not row.get("step_seconds") else part / row["step_seconds"]
    if metric == "memory":
        return row[NAMES[metric]] / GIB if NAMES[metric] in row else None
    value = row.get(metric)
    return float(value) if isinstance(value, int | float) else None


def thinned(values: Sequence[float], limit: int) -> list[int]:
    """Indices of at most `limit` values, in order: first and last, and of each stretch between its lowest and highest,
    so that no spike is lost."""
    count = len(values)
    if count <= limit:
        return list(range(count))
    stretches = max(1, (limit - 2) // 2)
    kept = {0, count - 1}
    for number in range(stretches):
        stretch = range(1 + number * (count - 2) // stretches, 1 + (number + 1) * (count - 2) // stretches)
        kept.add(min(stretch, key=values.__getitem__))
        kept.add(max(stretch, key=values.__getitem__))
    return sorted(kept)


def marks(
    records: Sequence[Mapping[str, Any]], attempts: Sequence[Mapping[str, Any]], started: float | None
) -> list[dict[str, Any]]:
    """Where the run was interrupted: {x: {axis: value}, text}, at the last record before each start anew."""
    found = []
    for before, row in itertools.pairwise([{"step": 0, "tokens": 0}, *records]):
        if "restarts" not in row:
            continue
        ended = [
            one
            for one, other in itertools.pairwise(attempts)
            if "time" in row and before.get("time", 0) < other["started"] <= row["time"]
        ]
        x: dict[str, float] = {"step": before["step"]}
        if "tokens" in before:
            x["tokens"] = before["tokens"]
        if started is not None and "time" in before:
            x["hours"] = _hours(before["time"], started)
        found.append({"x": x, "text": _named(ended)})
    return found


def _named(ended: Sequence[Mapping[str, Any]]) -> str:
    if not ended:
        return "restart"  # workers were lost, the driver went on
    outcomes = [one.get("outcome") for one in ended]
    if all(outcome not in FAILURES for outcome in outcomes):
        return "budget" if outcomes[-1] == "budget" else "stop"
    return "failed" if outcomes[-1] == "failed" else "killed"


def _hours(time: float, started: float) -> float:
    return round((time - started) / 3600, 5)


def _digits(value: float) -> float:
    """Five figures: more than a screen shows."""
    return float(f"{value:.5g}")
