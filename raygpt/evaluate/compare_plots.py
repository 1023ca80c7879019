"""Plots of a comparison as PNG files: losses per document, differences with intervals, domain terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raygpt.evaluate.bootstrap import Interval
from raygpt.evaluate.compare import Comparison, TextComparison
from raygpt.track.plots import FAINT, OTHER, STYLE, TRAIN, VALIDATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE, TUNED, WORSE = FAINT, VALIDATION, "#bf3b30"
# Terms in a plot; the table has all of them.
MOST_TERMS = 30


def make_comparison_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Write losses.png, differences.png and, where terms were probed, terms.png into `folder`; the paths written."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawings: dict[str, Callable[[Comparison], Figure | None]] = {
        "losses": _draw_losses,
        "differences": _draw_differences,
        "terms": _draw_terms,
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(STYLE | {"figure.constrained_layout.h_pad": 0.08}):
        for name, draw in drawings.items():
            figure = draw(comparison)
            if figure is not None:
                path = folder / f"{name}.png"
                figure.savefig(path)
                plt.close(figure)
                written.append(path)
    return written


def _subplots(*size: int, width: float = 10, height: float = 4, **more: Any) -> tuple[Figure, Any]:
    import matplotlib.pyplot as plt

    return plt.subplots(*size, figsize=(width, height), layout="constrained", squeeze=False, **more)


def _draw_losses(comparison: Comparison) -> Figure:
    """One dot per document: below the diagonal the tuned model is the better one."""
    texts = [("Domain text", comparison.domain, TUNED)]
    if comparison.general is not None:
        texts.append(("General text", comparison.general, TRAIN))
    figure, axes = _subplots(1, 2, height=4.9)
    unit = "nats per token" if comparison.same_tokenizer else "bits per byte"
    for axis, (title, text, color) in zip(axes[0], texts):
        before, after = text.per_document.T
        room = 0.05 * max(float(np.ptp(text.per_document)), 0.1)
        low, high = text.per_document.min() - room, text.per_document.max() + room
        axis.plot([low, high], [low, high], color=FAINT, linewidth=1, zorder=1)
        axis.scatter(before, after, s=14, color=color, alpha=0.45, linewidths=0, zorder=2)
        axis.set(title=f"{title}: {text.improved:.0%} of {len(before)} got easier", aspect="equal")
        axis.set(xlim=(low, high), ylim=(low, high), xlabel=f"base ({unit})", ylabel=f"tuned ({unit})")
    for axis in axes[0][len(texts) :]:
        _draw_histogram(axis, comparison.domain, unit)
    return figure


def _draw_histogram(axis: Axes, text: TextComparison, unit: str) -> None:
    """In place of general text that was not measured: how much each document's loss changed."""
    change = text.per_document[:, 1] - text.per_document[:, 0]
    axis.hist(change, bins=min(40, max(8, len(change) // 6)), color=TUNED, alpha=0.75)
    axis.axvline(0, color=FAINT, linewidth=1)
    axis.set(title="Change per document", xlabel=f"tuned - base ({unit})", ylabel="documents")


def _draw_differences(comparison: Comparison) -> Figure:
    rows = [("domain text", comparison.domain.bits_change)]
    if comparison.general is not None:
        rows.append(("general text", comparison.general.bits_change))
    figure, axes = _subplots(1, 1, height=1.35 + 0.4 * len(rows))
    _forest(axes[0][0], rows, better_below=True)
    axes[0][0].set(title="Change of loss with its 95 % interval", xlabel="tuned - base (bits per byte)")
    return figure


def _forest(
    axis: Axes, rows: Sequence[tuple[str, Interval]], better_below: bool, shown: Callable[[float], float] = float
) -> None:
    """Intervals, one row each, drawn at `shown` of them: green for better, red for worse, grey where 0 is inside."""
    axis.axvline(shown(0), color=FAINT, linewidth=1.2, zorder=1)
    for at, (_, found) in enumerate(rows):
        if found.low == found.high:  # a figure without an interval
            axis.plot(shown(found.value), at, "o", color=FAINT, markersize=6, mfc="none", zorder=3)
            continue
        better = (found.value < 0) == better_below
        color = FAINT if not found.significant else OTHER if better else WORSE
        axis.plot(
            [shown(found.low), shown(found.high)], [at, at], color=color, linewidth=2.4, solid_capstyle="butt", zorder=2
        )
        axis.plot(shown(found.value), at, "o", color=color, markersize=6, zorder=3)
    axis.margins(x=0.12)
    _name_rows(axis, [name for name, _ in rows])


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)


def _draw_terms(comparison: Comparison) -> Figure | None:
    """Rank and probability of every term before and after, joined by a line, and the interval of the change."""
    table = comparison.terms
    if table is None or not table.results:
        return None
    shown = table.results[:MOST_TERMS]
    names = ["all terms", *(row.term for row in shown)]
    ranks = [(table.base_rank, table.tuned_rank), *((row.base_rank, row.tuned_rank) for row in shown)]
    whole = [(row.base_log_probability, row.tuned_log_probability) for row in table.results]
    times = [row.occurrences for row in table.results]
    likely = [tuple(np.average(whole, axis=0, weights=times)), *whole[: len(shown)]]
    figure, axes = _subplots(1, 3, height=max(2.4, 1.5 + 0.24 * len(names)), sharey=True)
    rank, probability, change = axes[0]
    _dumbbells(rank, ranks)
    rank.set(title="Rank of the first token", xlabel="median (1: said first)")
    _dumbbells(probability, np.exp(likely))
    probability.set(title="Probability of the term", xlabel="geometric mean")
    changes = [table.change, *(row.change for row in shown)]
    points = [Interval(after - before, after - before, after - before) for before, after in likely]
    rows = [("", found or point) for found, point in zip(changes, points)]
    _forest(change, rows, better_below=False, shown=math.exp)
    change.set(title="Times as likely", xlabel="tuned / base, 95 % interval")
    for axis in axes[0]:
        _log_scale(axis)
    _name_rows(rank, names)
    figure.legend(*rank.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def _dumbbells(axis: Axes, values: Sequence[tuple[float, float]] | np.ndarray) -> None:
    for at, (before, after) in enumerate(values):
        axis.plot([before, after], [at, at], color="#c9cdd4", linewidth=2.2, zorder=1)
        axis.plot(before, at, "o", color=BASE, markersize=6, zorder=2, label="base" if at == 0 else None)
        axis.plot(after, at, "o", color=TUNED, markersize=6, zorder=3, label="tuned" if at == 0 else None)
    axis.grid(axis="y", visible=False)


def _log_scale(axis: Axes) -> None:
    """A logarithmic x axis with few readable figures, whether it spans half a decade or fifteen."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    decades = math.log10(high / low)
    if decades < 3.5:
        subs = (1.0,) if decades > 2 else (1.0, 3.0) if decades > 1 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        axis.xaxis.set_major_locator(LogLocator(subs=subs))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:.3g}")
    else:
        axis.xaxis.set_major_locator(LogLocator(numticks=6))
    axis.xaxis.set_minor_formatter(NullFormatter())
