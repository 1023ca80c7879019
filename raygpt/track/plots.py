"""Plots of a run's records as PNG files: loss, learning rate, gradient norm, speed, waiting for data."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from raygpt.storage import Location, write_bytes
from raygpt.track.curves import MOST_POINTS, thinned
from raygpt.track.progress import human_count
from raygpt.track.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN, VALIDATION, OTHER, FAINT = "#2f6db5", "#d9622b", "#2a8c82", "#8a8f98"
STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": "#c5c9d0",
    "axes.labelcolor": "#3b4048",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8eaee",
    "xtick.color": "#5b616b",
    "ytick.color": "#5b616b",
    "legend.frameon": False,
    "figure.dpi": 150,
}
# From this many points on, noise hides the curve and a running mean is drawn over it.
SMOOTH_FROM = 120

Points = tuple[list[int], list[float]]


def make_plots(records: Sequence[Record], folder: Path, yardsticks: Mapping[str, float] | None = None) -> list[Path]:
    """Write loss.png, learning_rate.png, grad_norm.png, tokens_per_second.png and data_wait.png into `folder`.

    Returns the paths written; a plot without a single finite point is left out. `yardsticks` (name -> nats
    per token) are lines in the loss plot. Records that carry `restarts` are marked in every plot.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawings: dict[str, Callable[[Axes, Sequence[Record]], bool]] = {
        "loss": lambda axes, rows: _draw_loss(axes, rows, yardsticks or {}),
        "learning_rate": _draw_learning_rate,
        "tokens_per_second": _draw_speed,
        "grad_norm": _draw_grad_norm,
        "data_wait": _draw_data_wait,
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(STYLE):
        for name, draw in drawings.items():
            figure, axes = plt.subplots(figsize=(10, 4.2) if name == "loss" else (5, 2.8), layout="constrained")
            if draw(axes, records):
                _finish(axes, records, ticks=9 if name == "loss" else 5)
                path = folder / f"{name}.png"
                figure.savefig(path)
                written.append(path)
            plt.close(figure)
    return written


def _draw_loss(axes: Axes, records: Sequence[Record], yardsticks: Mapping[str, float]) -> bool:
    train, validation = _points(records, "train_loss"), _points(records, "val_loss")
    if not train[0] and not validation[0]:
        return False
    if train[0]:
        _line(axes, train, TRAIN, "training")
    if validation[0]:
        best = min(range(len(validation[1])), key=validation[1].__getitem__)
        label = f"validation (best {validation[1][best]:.3f} at step {validation[0][best]:,})"
        axes.plot(*validation, color=VALIDATION, marker="o", markersize=4, linewidth=1.6, label=label, zorder=4)
        axes.plot(validation[0][best], validation[1][best], "o", color=VALIDATION, markersize=9, mfc="none", zorder=4)
    axes.set(title="Loss", ylabel="cross-entropy (nats per token)")
    _limit_loss(axes, train, validation, yardsticks)
    for name, value in yardsticks.items():
        if math.isfinite(value):
            axes.axhline(value, color=FAINT, linestyle="--", linewidth=1, zorder=1)
            axes.annotate(
                f"{name} {value:.3f}",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                color="#5b616b",
                fontsize=9,
            )
    axes.legend(loc="lower left", ncols=2)
    return True


def _limit_loss(axes: Axes, train: Points, validation: Points, yardsticks: Mapping[str, float]) -> None:
    """Fit the scale to what comes after the first twentieth of the run: a start at ln(vocabulary) would
    press all the rest flat. What is cut off is said in the plot."""
    pairs = [*zip(*train, strict=True), *zip(*validation, strict=True)]
    begin = max(step for step, _ in pairs) * 0.05
    later = [value for step, value in pairs if step >= begin] + [v for v in yardsticks.values() if math.isfinite(v)]
    low, high, peak = min(later), max(later), max(value for _, value in pairs)
    spread = max(high - low, 0.1 * abs(high), 1e-6)
    cut = peak > high + 0.25 * spread
    # room below for the legend
    axes.set_ylim(low - 0.22 * spread, (high if cut else max(high, peak)) + 0.08 * spread)
    if cut:
        axes.annotate(
            f"the start, from {pairs[0][1]:.2f} down, is above the scale",
            (1, 0),
            xycoords="axes fraction",
            xytext=(0, -34),
            textcoords="offset points",
            ha="right",
            color=FAINT,
            fontsize=9,
        )


def _draw_learning_rate(axes: Axes, records: Sequence[Record]) -> bool:
    points = _points(records, "lr")
    if not points[0]:
        return False
    axes.plot(*_thinned(points), color=OTHER, linewidth=1.8, marker="o" if len(points[0]) < 3 else None)
    axes.set(title="Learning rate", ylabel="learning rate", ylim=(0, max(*points[1], 1e-12) * 1.08))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    return True


def _draw_speed(axes: Axes, records: Sequence[Record]) -> bool:
    points = _points(records, "tokens_per_second")
    if not points[0]:
        return False
    _line(axes, points, TRAIN, None)
    axes.set(title="Speed", ylabel="tokens per second", ylim=(0, max(*points[1], 1e-12) * 1.12))
    axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
    return True


def _draw_grad_norm(axes: Axes, records: Sequence[Record]) -> bool:
    points = _points(records, "grad_norm")
    if not points[0]:
        return False
    _line(axes, points, VALIDATION, None)
    # a rare spike must not hide the rest: the scale ends above 99 of 100 values
    high = sorted(points[1])[int(0.99 * (len(points[1]) - 1))]
    axes.set(title="Gradient norm before clipping", ylabel="L2 norm", ylim=(0, max(high, 1e-12) * 1.25))
    return True


def _draw_data_wait(axes: Axes, records: Sequence[Record]) -> bool:
    rows = [row for row in records if row.get("step_seconds") and "data_wait_seconds" in row]
    points = _finite((row["step"], 100 * row["data_wait_seconds"] / row["step_seconds"]) for row in rows)
    if not points[0]:
        return False
    _line(axes, points, OTHER, None)
    axes.set(title="Waiting for data", ylabel="% of step time", ylim=(0, max(*points[1], 1.0) * 1.12))
    return True


def _tick(value: float) -> str:
    """12.5k rather than 12.50k."""
    text = human_count(value)
    digits, letter = (text[:-1], text[-1]) if text[-1] in "kMB" else (text, "")
    return f"{float(digits):g}{letter}"


def _line(axes: Axes, points: Points, color: str, label: str | None) -> None:
    """The points as a line; faint under their running mean where there are many."""
    steps, values = _thinned(points)
    if len(steps) < SMOOTH_FROM:
        axes.plot(steps, values, color=color, linewidth=1.6, marker="o" if len(steps) < 3 else None, label=label)
        return
    half = max(2, len(steps) // 60)
    smooth = []
    for at in range(len(values)):
        # symmetric and narrower at the start, so that the steep fall of the loss is not bent
        near = sorted(values[at - min(half, at) : at + min(half, at) + 1])
        # of the middle half: one spike must not lift the curve for the width of the window
        smooth.append(fmean(near[len(near) // 4 : len(near) - len(near) // 4]))
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
    axes.plot(steps, smooth, color=color, linewidth=1.8, label=label)


def _thinned(points: Points) -> Points:
    """MOST_POINTS of them at most: more than a picture shows, and smoothing takes the square of their number."""
    steps, values = points
    kept = thinned(values, MOST_POINTS)
    return [steps[at] for at in kept], [values[at] for at in kept]


def _finish(axes: Axes, records: Sequence[Record], ticks: int) -> None:
    """What all plots share: the step axis and the marks of restarts."""
    last = max(row["step"] for row in records)
    axes.set(xlabel="step", xlim=(0, max(1, last) * 1.02))
    axes.locator_params(axis="x", nbins=ticks, integer=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    restarts = [row["step"] for row in records if row.get("restarts")]
    for number, step in enumerate(restarts):
        axes.axvline(step, color=FAINT, linestyle=":", linewidth=1.2, zorder=1)
        if number == 0:
            axes.annotate(
                "restart" if len(restarts) == 1 else f"{len(restarts)} restarts",
                (step, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -9),
                textcoords="offset points",
                color=FAINT,
                fontsize=8,
            )


def _points(records: Sequence[Record], name: str) -> Points:
    return _finite((row["step"], row[name]) for row in records if name in row)


def _finite(pairs: Iterable[tuple[int, float]]) -> Points:
    kept = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def keep_plots(paths: Iterable[Path], folder: Location, captions: Mapping[str, str]) -> list[dict[str, str]]:
    """Copy PNG files into `folder`; returns {name, uri, caption} of each for a page, the uri with the picture in it."""
    kept = []
    for path in paths:
        data = path.read_bytes()
        write_bytes(folder / path.name, data)
        uri = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
        kept.append({"name": path.stem, "uri": uri, "caption": captions[path.stem]})
    return kept
