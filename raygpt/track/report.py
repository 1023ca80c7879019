"""`<run>/report.html`: what a run was, what came out of it and how it went, in one self-contained page."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import raygpt
from raygpt.errors import UserError
from raygpt.storage import Location, read_text, write_text
from raygpt.track.jsonl import read_metrics
from raygpt.track.page import PAGE
from raygpt.track.plots import keep_plots, make_plots
from raygpt.track.progress import human_count, human_duration
from raygpt.track.summary import SUMMARY, summarise
from raygpt.track.trackers import public_config

PLOT_CAPTIONS = {
    "loss": "Training and validation loss by step",
    "learning_rate": "Learning rate by step",
    "tokens_per_second": "Training tokens per second by step",
    "grad_norm": "Gradient norm by step",
    "data_wait": "Share of step time spent waiting for data",
}


def write_report(
    run: Location, *, yardsticks: Mapping[str, float] | None = None, samples: Sequence[str] | None = None
) -> Location:
    """Write report.html and plots/*.png of the run at `run` from its config.yaml, metrics.jsonl and summary.json.

    `yardsticks` (name -> nats per token) stand beside the validation loss, `samples` are texts the model
    wrote; without them those that summary.json holds under these names are shown. A run that is not
    finished is reported as far as it came. Returns the page's location; raises UserError where there is no
    run.
    """
    records = read_metrics(run / "metrics.jsonl")
    config = _read_config(run)
    summary = _read_summary(run)
    if not records and config is None and summary is None:
        raise UserError(
            f"{run.uri} holds no run (no metrics.jsonl, config.yaml or summary.json): check run.storage and run.name."
        )
    figures = summarise(records) if summary is None else summary
    yardsticks = figures.get("yardsticks", {}) if yardsticks is None else yardsticks
    samples = figures.get("samples", []) if samples is None else samples
    page = _page().render(
        name=run.name,
        uri=run.uri,
        finished=summary is not None,
        tiles=_tiles(figures),
        comparison=_comparison(figures.get("val_loss"), yardsticks),
        plots=_plots(run, records, yardsticks),
        samples=samples,
        summary=[
            (name, _shown(name, value), SUMMARY.get(name, "")) for name, value in _flat(figures, skip=_SHOWN_ABOVE)
        ],
        config=_sections(public_config(config or {})),
        version=raygpt.__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    target = run / "report.html"
    write_text(target, page)
    return target


_SHOWN_ABOVE = ("yardsticks", "samples")


def _page() -> Any:
    import jinja2

    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)


def _read_config(run: Location) -> dict[str, Any] | None:
    import yaml

    try:
        config = yaml.safe_load(read_text(run / "config.yaml"))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{run.uri}/config.yaml cannot be read as YAML: mend it or move it away.") from error
    return config if isinstance(config, dict) else None


def _read_summary(run: Location) -> dict[str, Any] | None:
    try:
        summary = json.loads(read_text(run / "summary.json"))
    except (FileNotFoundError, ValueError):
        return None  # the run is not finished: its records say how far it came
    return summary if isinstance(summary, dict) else None


def _plots(run: Location, records: Sequence[dict[str, Any]], yardsticks: Mapping[str, float]) -> list[dict[str, str]]:
    """Make the plots, keep them in the run's folder, and return them as data URIs."""
    with tempfile.TemporaryDirectory() as folder:
        return keep_plots(make_plots(records, Path(folder), yardsticks), run / "plots", PLOT_CAPTIONS)


def _tiles(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(heading, figure, small print) of the most wanted figures, those that are known."""
    tiles = []
    if "val_loss" in figures:
        small = f"perplexity {_perplexity(figures['val_loss'])}"
        if figures.get("best_val_loss", figures["val_loss"]) < figures["val_loss"]:
            small += f" · best {figures['best_val_loss']:.4f}"
        tiles.append(("validation loss", f"{figures['val_loss']:.4f}", small))
    if "train_loss" in figures:
        tiles.append(("training loss", f"{figures['train_loss']:.4f}", "nats per token"))
    if "steps" in figures:
        tokens = figures.get("tokens")
        tiles.append(("steps", f"{figures['steps']:,}", "" if tokens is None else f"{human_count(tokens)} tokens"))
    if "tokens_per_second" in figures:
        small = f"mfu {figures['mfu']:.0%}" if "mfu" in figures else "tokens per second"
        tiles.append(("speed", f"{human_count(figures['tokens_per_second'])} tok/s", small))
    if "wall_seconds" in figures:
        ratio, restarts = figures.get("effective_time_ratio"), figures.get("restarts", 0)
        small = "" if ratio is None else f"{ratio:.0%} training"
        small += f" · {restarts} restart{'s' if restarts > 1 else ''}" if restarts else ""
        tiles.append(("wall time", human_duration(figures["wall_seconds"]), small.removeprefix(" · ")))
    if "data_wait_fraction" in figures:
        tiles.append(("waiting for data", f"{figures['data_wait_fraction']:.1%}", "of step time"))
    if "cost_usd" in figures:
        tiles.append(("cost", f"${figures['cost_usd']:,.2f}", "at track.price_per_hour"))
    return tiles


def _comparison(val_loss: float | None, yardsticks: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows (name, loss, perplexity, bar width in percent) of the model and its yardsticks, the worst first."""
    if val_loss is None or not math.isfinite(val_loss) or not yardsticks:
        return []
    rows = [(name, value, False) for name, value in yardsticks.items()] + [("this model", val_loss, True)]
    longest = max(value for _, value, _ in rows)
    return [
        {
            "name": name,
            "loss": f"{value:.4f}",
            "perplexity": _perplexity(value),
            "width": f"{100 * value / longest:.1f}" if longest > 0 else "0",
            "ours": ours,
        }
        for name, value, ours in sorted(rows, key=lambda row: -row[1])
    ]


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.1f}" if loss < 20 else "∞"


def _shown(name: str, value: Any) -> str:
    """A figure with its unit, as SUMMARY means it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _plain(value)
    if name.endswith("_seconds"):
        return f"{value:,.1f} s" if value < 600 else f"{value:,.0f} s ({human_duration(value)})"
    if name in ("mfu", "effective_time_ratio", "data_wait_fraction"):
        return f"{value:.2%}"
    if name == "cost_usd":
        return f"${value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value) or "–"
    return str(value)


def _sections(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(section, its keys and values); keys that are in no section come first, under no name."""
    loose = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = {"": loose} | {key: value for key, value in config.items() if isinstance(value, Mapping)}
    return [
        (name, [(key, _plain(value)) for key, value in _flat(section)]) for name, section in sections.items() if section
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "", skip: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a nested mapping, in its order."""
    for key, value in tree.items():
        if key in skip:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
