"""Plots of a sweep: learning curves, parallel coordinates, importance, budget by rung."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raygpt.track.plots import FAINT, OTHER, STYLE, TRAIN, VALIDATION
from raygpt.tune.results import TrialRecord, best_first
from raygpt.tune.space import Space
from raygpt.tune.watch import short_keys

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (VALIDATION, TRAIN, OTHER, "#8b5fbf", "#b08d2f")


def make_plots(
    folder: Path,
    trials: Sequence[TrialRecord],
    space: Space,
    metric: str,
    mode: str,
    importance: Mapping[str, float],
    rungs: Sequence[Mapping[str, int]],
) -> list[Path]:
    """Write curves.png, parallel.png, importance.png and rungs.png; those with nothing to show are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ranked = best_first(trials, mode)
    written = []
    with plt.rc_context(STYLE):
        for name, size, draw in (
            ("curves", (10, 4.2), lambda axes: _curves(axes, ranked, metric)),
            ("parallel", (10, 4.2), lambda axes: _parallel(axes, ranked, space, metric, mode)),
            ("importance", (5, 2.8), lambda axes: _importance(axes, importance)),
            ("rungs", (5, 2.8), lambda axes: _rungs(axes, rungs)),
        ):
            figure, axes = plt.subplots(figsize=size, layout="constrained")
            if draw(axes):
                figure.savefig(folder / f"{name}.png")
                written.append(folder / f"{name}.png")
            plt.close(figure)
    return written


def _curves(axes: Axes, ranked: Sequence[TrialRecord], metric: str) -> bool:
    for rank, trial in reversed(list(enumerate(ranked))):
        points = [(row["epoch"], row[metric]) for row in trial.history if metric in row]
        top = rank < len(COLOURS)
        axes.plot(
            *zip(*points),
            color=COLOURS[rank] if top else FAINT,
            alpha=1.0 if top else 0.45,
            linewidth=1.8 if top else 1.0,
            marker="o",
            markersize=3.5 if top else 2,
            zorder=3 if top else 1,
            label=f"{rank + 1}. trial {trial.id}" if top else None,
        )
    axes.set(title=f"Learning curves: {metric}", xlabel="epoch", ylabel=metric)
    axes.locator_params(axis="x", integer=True)
    if ranked:
        axes.legend(loc="best", ncols=2)
    return bool(ranked)


def _parallel(axes: Axes, ranked: Sequence[TrialRecord], space: Space, metric: str, mode: str) -> bool:
    """One vertical axis per setting and one for the score, each scaled to [0, 1] and labelled."""
    keys = [key for key in space.dimensions if any(key in trial.params for trial in ranked)]
    if len(ranked) < 2 or not keys:
        return False
    columns = [_positions([trial.params[key] for trial in ranked], space.dimensions[key]) for key in keys]
    scores = np.array([trial.score for trial in ranked], dtype=float)
    spread = scores.max() - scores.min() or 1.0
    columns.append(((scores - scores.min()) / spread, [(0.0, f"{scores.min():.4f}"), (1.0, f"{scores.max():.4f}")]))
    heights = np.array([positions for positions, _ in columns])  # (axes, trials)
    quality = heights[-1] if mode == "max" else 1 - heights[-1]
    import matplotlib

    shades = matplotlib.colormaps["viridis_r"]
    for index in np.argsort(quality):
        axes.plot(
            range(len(columns)), heights[:, index], color=shades(0.08 + 0.9 * quality[index]), linewidth=1.6, alpha=0.8
        )
    for at, (_, marks) in enumerate(columns):
        axes.axvline(at, color="#5b616b", linewidth=1)
        for height, text in marks:
            axes.annotate(text, (at, height), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(title="Parallel coordinates", ylim=(-0.06, 1.06), xlim=(-0.15, len(columns) - 0.6), yticks=[])
    axes.set_xticks(range(len(columns)), [*short_keys(keys), metric])
    axes.grid(False)
    return True


def _positions(values: Sequence[Any], item: Any) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """(heights in [0, 1] of the values, marks to write on the axis)."""
    if not item.is_numeric:
        count = max(1, len(item.options) - 1)
        marks = [(index / count, _short(option)) for index, option in enumerate(item.options)]
        return np.array([item.options.index(value) / count for value in values], dtype=float), marks
    scale = np.log if item.kind == "loguniform" else np.asarray
    low, high = float(scale(item.low)), float(scale(item.high))
    heights = (np.array([float(scale(value)) for value in values]) - low) / (high - low)
    return heights, [(0.0, f"{item.low:g}"), (1.0, f"{item.high:g}")]


def _importance(axes: Axes, importance: Mapping[str, float]) -> bool:
    if not importance:
        return False
    pairs = sorted(importance.items(), key=lambda item: item[1])
    axes.barh(short_keys([key for key, _ in pairs]), [value for _, value in pairs], color=TRAIN)
    axes.set(title="Importance", xlabel="share of the score's variance", xlim=(0, 1))
    return True


def _rungs(axes: Axes, rungs: Sequence[Mapping[str, int]]) -> bool:
    if not rungs:
        return False
    names = [str(rung["rung"]) for rung in rungs]
    bars = axes.bar(names, [rung["epochs"] for rung in rungs], color=OTHER)
    axes.bar_label(bars, [f"{rung['trials']} trials" for rung in rungs], fontsize=8, color="#3b4048")
    axes.set(title="Budget by rung", xlabel="up to epoch", ylabel="epochs spent")
    axes.margins(y=0.18)
    return True


def _short(option: Any) -> str:
    text = str(option)
    return text if len(text) <= 12 else f"{text[:11]}…"
