"""Plots of a comparison as PNG files: losses per document, differences with intervals, domain terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raygpt.evaluate.bootstrap import Interval
from raygpt.evaluate.compare import Comparison, TextComparison
from raygpt.evaluate.compare_terms import TermTable
from raygpt.track.plots import FAINT, OTHER, STYLE, TRAIN, VALIDATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE, TUNED = FAINT, VALIDATION
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
    with plt.rc_context(STYLE):
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
        low, high = _limits(text.per_document)
        axis.plot([low, high], [low, high], color=FAINT, linewidth=1, zorder=1)
        axis.scatter(before, after, s=14, color=color, alpha=0.45, linewidths=0, zorder=2)
        axis.set(title=f"{title}: {text.improved:.0%} of {len(before)} got easier", aspect="equal")
        axis.set(xlim=(low, high), ylim=(low, high), xlabel=f"base ({unit})", ylabel=f"tuned ({unit})")
    for axis in axes[0][len(texts) :]:
        _draw_histogram(axis, comparison.domain, unit)
    return figure


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Ends of both axes; a single odd document must not press all others into a corner."""
    low, high = np.percentile(values, [0.5, 99.5])
    low, high = min(low, float(np.median(values))), max(high, float(np.median(values)))
    room = 0.06 * max(high - low, 0.1)
    return float(max(low - room, values.min() - room)), float(min(high + room, values.max() + room))


def _draw_histogram(axis: Axes, text: TextComparison, unit: str) -> None:
    """In place of general text that was not measured: how much each document's loss changed."""
    change = text.per_document[:, 1] - text.per_document[:, 0]
    axis.hist(change, bins=min(40, max(8, len(change) // 6)), color=TUNED, alpha=0.75)
    axis.axvline(0, color=FAINT, linewidth=1)
    axis.set(title="Change per document", xlabel=f"tuned - base ({unit})", ylabel="documents")


def _draw_differences(comparison: Comparison) -> Figure:
    """Intervals of the differences: losses in bits per byte, terms in nats of ln p."""
    rows = [("domain text", comparison.domain.bits_change)]
    if comparison.general is not None:
        rows.append(("general text", comparison.general.bits_change))
    terms = _shown_terms(comparison.terms)
    figure, axes = _subplots(
        1, 2 if terms else 1, height=max(2.2, 1.3 + 0.21 * len(terms)), width_ratios=[1, 1.25] if terms else [1]
    )
    _forest(axes[0][0], rows, better_below=True)
    axes[0][0].set(title="Text: change of loss", xlabel="tuned - base (bits per byte), 95 % interval")
    if terms:
        assert comparison.terms is not None and comparison.terms.change is not None
        of_terms = [("all terms", comparison.terms.change)] + [(row.term, row.change) for row in terms if row.change]
        _forest(axes[0][1], of_terms, better_below=False)
        axes[0][1].set(title="Terms: change of probability", xlabel="tuned / base, 95 % interval")
        axes[0][1].xaxis.set_major_formatter(lambda value, _: _factor(value))
    return figure


def _factor(nats: float) -> str:
    factor = float(np.exp(nats))
    return f"×{factor:,.0f}" if factor >= 10 else f"×{factor:.2g}"


def _forest(axis: Axes, rows: list[tuple[str, Interval]], better_below: bool) -> None:
    axis.axvline(0, color=FAINT, linewidth=1.2, zorder=1)
    for at, (_, found) in enumerate(rows):
        better = (found.value < 0) == better_below
        color = FAINT if not found.significant else OTHER if better else VALIDATION
        axis.plot([found.low, found.high], [at, at], color=color, linewidth=2.4, solid_capstyle="butt", zorder=2)
        axis.plot(found.value, at, "o", color=color, markersize=6.5, zorder=3)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.12)


def _shown_terms(table: TermTable | None) -> list:
    return [row for row in table.results if row.change is not None][:MOST_TERMS] if table and table.change else []


def _draw_terms(comparison: Comparison) -> Figure | None:
    """Rank and probability of every term before and after, joined by a line."""
    if comparison.terms is None or not comparison.terms.results:
        return None
    results = comparison.terms.results[:MOST_TERMS]
    figure, axes = _subplots(1, 2, height=max(2.4, 1.5 + 0.24 * len(results)), sharey=True)
    sides = (
        (axes[0][0], [(row.base_rank, row.tuned_rank) for row in results], "Median rank of its first token"),
        (
            axes[0][1],
            [(np.exp(row.base_log_probability), np.exp(row.tuned_log_probability)) for row in results],
            "Mean probability of the whole term",
        ),
    )
    for axis, values, title in sides:
        for at, (before, after) in enumerate(values):
            axis.plot([before, after], [at, at], color="#c9cdd4", linewidth=2.2, zorder=1)
            axis.plot(before, at, "o", color=BASE, markersize=6, zorder=2, label="base" if at == 0 else None)
            axis.plot(after, at, "o", color=TUNED, markersize=6, zorder=3, label="tuned" if at == 0 else None)
        axis.set(title=title, xscale="log")
        axis.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(results)), [row.term for row in results])
    axes[0][0].set_ylim(len(results) - 0.4, -0.6)
    axes[0][0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[0][0].set_xlabel("rank (1: said first)")
    axes[0][1].set_xlabel("geometric mean")
    axes[0][1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    return figure
