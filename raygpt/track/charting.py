"""Charts of runs as charts.js draws them: one series per run and metric, thinned out so that a page stays small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raygpt.track.curves import (
    AXES,
    CHARTS,
    CONSTANT_SAYS_NOTHING,
    MOST_OF_PAGE,
    MOST_POINTS,
    NAMES,
    Chart,
    curve,
    marks,
)
from raygpt.track.recorded import Recorded
from raygpt.track.spending import LOST, Share

FEWEST_POINTS = 12  # of a curve, however many there are
LABELS = {"step": "steps", "tokens": "tokens", "hours": "time"}


def run_charts(runs: Sequence[Recorded], yardsticks: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """A chart for each of CHARTS that some run has something to say about. `yardsticks` (name -> nats per token) are
    lines in the loss of a single run."""
    curves = sum(_count_of_curves(run) for run in runs)
    limit = max(FEWEST_POINTS, min(MOST_POINTS, MOST_OF_PAGE // max(1, curves)))
    found = [_chart(chart, runs, limit, yardsticks or {}) for chart in CHARTS]
    kept = [chart for chart in found if chart is not None]
    if kept:
        kept[0]["wide"] = True
    return kept


def _count_of_curves(run: Recorded) -> int:
    names = {name for row in run.records for name in row}
    return sum(NAMES.get(metric, metric) in names for chart in CHARTS for metric, _, _ in chart.metrics)


def axes_of(charts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What the charts may be drawn over."""
    return [(axis, LABELS[axis]) for axis in AXES if any(axis in chart.get("axes", ()) for chart in charts)]


def _chart(
    chart: Chart, runs: Sequence[Recorded], limit: int, yardsticks: Mapping[str, float]
) -> dict[str, Any] | None:
    series: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        for place, (metric, label, dots) in enumerate(chart.metrics):
            points = curve(run.records, metric, run.started, limit)
            if not points.y or (chart.name in CONSTANT_SAYS_NOTHING and len(set(points.y)) == 1):
                continue
            several = len(runs) > 1
            name = label if not several else run.name if len(chart.metrics) == 1 else f"{run.name}, {label}"
            color = number if several else place
            drawn = {"label": name, "color": color, "x": points.x, "y": points.y, "dots": dots and len(points.y) < 200}
            series.append(drawn | ({"dash": True} if several and place else {}))
    if not series:
        return None
    shown = [axis for axis in AXES if all(axis in each["x"] for each in series)]
    interruptions = [
        {**mark, "text": mark["text"] if len(runs) == 1 else f"{run.name}: {mark['text']}"}
        for run in runs
        for mark in marks(run.records, run.attempts, run.started)
    ]
    lines = [
        {"y": value, "text": f"{name} {value:.3f}"}
        for name, value in yardsticks.items()
        if chart.name == "loss" and len(runs) == 1 and math.isfinite(value)
    ]
    return {
        "name": chart.name,
        "title": chart.title,
        "unit": chart.unit,
        "form": chart.form,
        "zero": chart.zero,
        "clip": chart.clip,
        "noisy": chart.noisy,
        "several": len(runs) > 1,
        "axes": shown,
        "series": series,
        "marks": interruptions,
        "lines": lines,
    }


def shares_chart(shares: Sequence[Share]) -> dict[str, Any] | None:
    """Where a run's time went, with its dollars, as bars."""
    whole = sum(share.seconds for share in shares)
    if whole <= 0 or len(shares) < 2:
        return None
    bars = [
        {
            "label": share.name,
            "value": share.seconds / whole,
            "color": 1 if share.name == LOST else 0,
            "note": _spent(share),
        }
        for share in shares
    ]
    return {
        "name": "where-it-went",
        "title": "Where the time went",
        "unit": "share of the time",
        "form": "percent",
        "wide": True,  # on paper as well there is room for dollars then
        "bars": bars,
    }


def _spent(share: Share) -> str:
    from raygpt.track.progress import human_duration

    time = human_duration(share.seconds)
    return time if share.usd is None else f"{time}, ${share.usd:,.2f}"


def bar_chart(name: str, title: str, unit: str, form: str, bars: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bars {label, value, and where they are known low, high, note, color}."""
    return {"name": name, "title": title, "unit": unit, "form": form, "bars": list(bars)}
