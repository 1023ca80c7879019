"""Plots of benchmarks as PNG files: the ladder's bars, scaling, a fine-tuning's losses, speed and resources in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygpt.bench.anchors import of_result
from raygpt.bench.result import Result, Row
from raygpt.track.plots import FAINT, OTHER, STYLE, TRAIN, VALIDATION
from raygpt.track.progress import human_count
from raygpt.track.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (TRAIN, VALIDATION, OTHER, "#7a5ba6", "#b0892f", "#4b8f3a", "#a63d5c", "#5b616b")
Series = tuple[list[float], list[float]]


def draw(
    result: Result, folder: Path, records: Sequence[Record] = (), samples: Sequence[Mapping[str, Any]] = ()
) -> list[Path]:
    """Write what a result has to show into `folder`: ladder.png, scaling.png, or over_time.png of a fine-tuning's
    records and resource samples. Returns the paths written."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(STYLE):
        rungs = [row for row in result.rows if row.tokens_per_second is not None and " × " not in row.name]
        if result.case == "ladder" and rungs:
            figure, axes = plt.subplots(
                figsize=(8, 0.9 + 0.42 * (len(rungs) + len(_beside(result)))), layout="constrained"
            )
            _draw_ladder(axes, result, rungs)
            written.append(folder / "ladder.png")
            figure.savefig(written[-1])
            plt.close(figure)
        launched = launchers(result)
        if any(len(rows) > 1 for rows in launched.values()):
            figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
            _draw_scaling(axes, launched)
            written.append(folder / "scaling.png")
            figure.savefig(written[-1])
            plt.close(figure)
        panels = time_panels(records, samples) if result.case == "finetune" else []
        if panels:
            lines, marks = math.ceil(len(panels) / 2), _marks(records, samples)
            figure, grid = plt.subplots(lines, 2, figsize=(11, 2.35 * lines), layout="constrained", squeeze=False)
            longest = max(x for _, _, series in panels for xs, _ in series.values() for x in xs)
            unit, seconds = ("hours", 3600) if longest > 7200 else ("minutes", 60)
            for axes, (title, label, series) in zip(grid.flat, panels):
                _draw_panel(axes, title, label, series, seconds)
                axes.set(xlim=(0, longest / seconds), xlabel=unit)
                _mark(axes, title, marks, seconds)
            for axes in list(grid.flat)[len(panels) :]:
                axes.set_visible(False)
            written.append(folder / "over_time.png")
            figure.savefig(written[-1], dpi=110)  # below 200 KB
            plt.close(figure)
    return written


def launchers(result: Result) -> dict[str, list[Row]]:
    """{launcher: its rows by number of workers} of a result's rows "torchrun × 2", …"""
    found: dict[str, list[Row]] = {}
    for row in result.rows:
        name, mark, _ = row.name.partition(" × ")
        if mark and row.tokens_per_second is not None:
            found.setdefault(name, []).append(row)
    return found


def _beside(result: Result) -> list[Any]:
    return of_result(result)[0]  # of its own class of model and GPU alone: no other bar stands beside one's own


def _draw_ladder(axes: Axes, result: Result, rungs: list[Row]) -> None:
    bars = [(row.name, row.tokens_per_second, row.figures.get("over_first"), TRAIN) for row in rungs]
    speeds = [spread.median for _, spread, _, _ in bars if spread is not None]
    names = [name for name, *_ in bars]
    for at, (_, spread, times, colour) in enumerate(bars):
        assert spread is not None
        axes.barh(at, spread.median, color=colour, height=0.62, zorder=2)
        if spread.repeats > 1:
            reach = [[spread.median - spread.low], [spread.high - spread.median]]
            axes.errorbar(spread.median, at, xerr=reach, color="#1d2733", capsize=3, linewidth=1.2, zorder=3)
        text = f"{spread.median:,.0f}" + (f"  ({times:.2f} × the first)" if times else "")
        axes.annotate(text, (spread.high, at), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    for anchor in _beside(result):
        at = len(names)
        names.append(f"{anchor.name} (published)")
        speeds.append(anchor.tokens_per_second)
        axes.barh(at, anchor.tokens_per_second, color="none", edgecolor=FAINT, linestyle="--", height=0.62, zorder=2)
        axes.annotate(
            f"{anchor.tokens_per_second:,.0f}",
            (anchor.tokens_per_second, at),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=FAINT,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    high = max([*speeds, *(row.tokens_per_second.high for row in rungs if row.tokens_per_second)])
    axes.set(
        title=f"Training step, one change at a time{_of(result)}", xlabel="tokens per second", xlim=(0, high * 1.38)
    )
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))


def _of(result: Result) -> str:
    """Size of the model and device, as far as they are known."""
    size, hardware = result.rows[0].settings.get("parameters"), result.provenance.get("hardware")
    device = hardware.get("device") if isinstance(hardware, dict) else None
    words = [f"{human_count(size)} parameters"] if size else []
    return f" ({', '.join([*words, *([device] if device else [])])})" if words or device else ""


def _draw_scaling(axes: Axes, launched: dict[str, list[Row]]) -> None:
    most, alone = 1, 0.0
    for (name, rows), colour in zip(launched.items(), COLOURS):
        workers = [row.settings["world_size"] for row in rows]
        spreads = [row.tokens_per_second for row in rows if row.tokens_per_second is not None]
        medians = [spread.median for spread in spreads]
        reach = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        axes.errorbar(workers, medians, yerr=reach, color=colour, marker="o", capsize=3, linewidth=1.8, label=name)
        most, alone = max(most, *workers), alone or medians[0]
    axes.plot([1, most], [alone, alone * most], color=FAINT, linestyle=":", label="in proportion")
    axes.set(
        title="Workers", xlabel="workers, each with the same rows", ylabel="tokens per second", xlim=(0.8, most + 0.2)
    )
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(lambda value, _: tick(value))
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="upper left")


def time_panels(
    records: Sequence[Record], samples: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, dict[str, Series]]]:
    """(title, unit, {line: (seconds since the first of them, values)}) of everything that was seen over time; what the
    machine does not tell has no panel."""
    times = [each["time"] for each in (*records, *samples) if "time" in each]
    if not times:
        return []
    start = min(times)

    def of_records(name: str, scale: float = 1.0) -> Series:
        kept = [(row["time"] - start, row[name] * scale) for row in records if name in row and "time" in row]
        kept = [(x, y) for x, y in kept if math.isfinite(y)]
        return [x for x, _ in kept], [y for _, y in kept]

    nodes = list(dict.fromkeys(sample["node"] for sample in samples))

    def of_samples(scale: float, **named: str) -> dict[str, Series]:
        lines = {}
        for node in nodes:
            for line, name in named.items():
                kept = [(s["time"] - start, s[name] * scale) for s in samples if s["node"] == node and name in s]
                label = line.replace("_", " ") if len(nodes) == 1 else f"{node} {line.replace('_', ' ')}"
                lines[label] = ([x for x, _ in kept], [y for _, y in kept])
        return lines

    def of_gpus(name: str, scale: float = 1.0) -> dict[str, Series]:
        lines: dict[str, Series] = {}
        for sample in samples:
            for number, gpu in enumerate(sample.get("gpus", ())):
                if name in gpu:
                    label = f"GPU {number}" if len(nodes) == 1 else f"{sample['node']} GPU {number}"
                    xs, ys = lines.setdefault(label, ([], []))
                    xs.append(sample["time"] - start)
                    ys.append(gpu[name] * scale)
        return lines

    panels = [
        ("Loss", "nats per token", {"training": of_records("train_loss"), "validation": of_records("val_loss")}),
        ("Speed", "tokens per second", {"tokens": of_records("tokens_per_second")}),
        *_accuracies(records, of_records),
        ("GPU use", "% of the time", of_gpus("util_percent")),
        ("GPU memory", "GB", of_gpus("memory_bytes", 1e-9)),
        ("GPU power", "W", of_gpus("power_watts")),
        ("GPU temperature", "°C", of_gpus("temperature_celsius")),
        ("Processor", "% of all cores", of_samples(1, all="cpu_percent", this_run="run_cpu_percent")),
        ("Memory", "GB", of_samples(1e-9, node="memory_bytes", this_run="run_rss_bytes")),
        ("Network of the node", "MB per second", of_samples(1e-6, received="network_received", sent="network_sent")),
        ("Disk of the node", "MB per second", of_samples(1e-6, read="disk_read", written="disk_written")),
    ]
    kept = [(title, unit, {name: xy for name, xy in lines.items() if xy[0]}) for title, unit, lines in panels]
    return [panel for panel in kept if panel[2]]


def _accuracies(
    records: Sequence[Record], of_records: Callable[[str, float], Series]
) -> list[tuple[str, str, dict[str, Series]]]:
    names = evaluation_names(records)
    return [("Evaluation", "%", {name: of_records(name, 100) for name in names})] if names else []


def evaluation_names(records: Sequence[Record]) -> list[str]:
    """Figures of evaluations in the records beside the loss: shares that are called after their task."""
    return sorted({name for row in records for name in row if name.startswith("hellaswag") or name.endswith("_acc")})


def _draw_panel(axes: Axes, title: str, unit: str, series: Mapping[str, Series], seconds: float) -> None:
    values = [y for _, ys in series.values() for y in ys]
    for (name, (xs, ys)), colour in zip(series.items(), COLOURS * (1 + len(series) // len(COLOURS))):
        few = len(xs) < 25
        axes.plot(
            [x / seconds for x in xs],
            ys,
            color=colour,
            linewidth=1.5,
            marker="o" if few else None,
            markersize=3,
            label=name,
        )
    axes.set(title=title, ylabel=unit)
    if title == "Loss":
        # the fall from ln(vocabulary) within the first moments would press the rest flat
        later = [y for xs, ys in series.values() for x, y in zip(xs, ys) if x >= 0.05 * max(xs)]
        low, high = min(later), max(later)
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low) if max(values) > 1.2 * high else None)
    else:
        # a scale of bytes would make mountains of next to nothing
        axes.set_ylim(0, max([*values, 0.1]) * 1.15)
    if 1 < len(series) <= 6:
        # above the lines, beside the title: inside it would cover what it names
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=len(series), fontsize=8, borderaxespad=0.2)
    axes.yaxis.set_major_formatter(lambda value, _: tick(value))


def _marks(records: Sequence[Record], samples: Sequence[Mapping[str, Any]]) -> tuple[float, list[float]]:
    """(when training began, when a checkpoint had been taken), in seconds since the first record or sample."""
    times = [each["time"] for each in (*records, *samples) if "time" in each]
    start = min(times)
    first = next((row for row in records if "step_seconds" in row and "time" in row), None)
    began = first["time"] - first["step"] * first["step_seconds"] - start if first else 0.0
    taken = [row["time"] - start for row in records if "checkpoint_stall_seconds" in row and "time" in row]
    return max(0.0, began), taken


def _mark(axes: Axes, title: str, marks: tuple[float, list[float]], seconds: float) -> None:
    """Grey before the first step; in the panel of the disk a line per checkpoint, which its peaks come from."""
    began, taken = marks
    axes.axvspan(0, began / seconds, color="#f1f3f6", zorder=0)
    if title == "Loss" and began > 0:
        axes.annotate(
            "start", (began / seconds, 1), xycoords=("data", "axes fraction"), xytext=(-4, -11),
            textcoords="offset points", ha="right", color=FAINT, fontsize=8,
        )  # fmt: skip
    if title.startswith("Disk") and taken:
        for at in taken:
            axes.axvline(at / seconds, color=FAINT, linestyle=":", linewidth=1, zorder=1)
        axes.annotate(
            "checkpoint", (taken[0] / seconds, 1), xycoords=("data", "axes fraction"), xytext=(-4, -11),
            textcoords="offset points", ha="right", color=FAINT, fontsize=8,
        )  # fmt: skip


def tick(value: float) -> str:
    """8k rather than 8.00k."""
    if abs(value) < 1000:
        return f"{value:g}"
    text = human_count(value)
    return f"{float(text[:-1]):g}{text[-1]}"
