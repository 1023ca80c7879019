"""`<run>/report.html`: what a run was, what came out of it and how it went, in one self-contained page.

Several runs, and what is no training run, share a page in the same way: `raygpt report RUN…`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raygpt.storage import Location, write_text
from raygpt.track.charting import axes_of, run_charts, shares_chart
from raygpt.track.differences import differences, flat, plain
from raygpt.track.finding import LOOK
from raygpt.track.findings import findings
from raygpt.track.page import Page, Table, render
from raygpt.track.plots import keep_plots, make_plots
from raygpt.track.progress import human_count, human_duration
from raygpt.track.recorded import Recorded, read_recorded
from raygpt.track.results import Result, show
from raygpt.track.samples import Written
from raygpt.track.spending import ORDER, lost
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
    run: Location,
    *,
    yardsticks: Mapping[str, float] | None = None,
    samples: Sequence[str] | None = None,
    results: Sequence[Result] = (),
) -> Location:
    """Write report.html and plots/*.png of the run at `run` from its config.yaml, metrics.jsonl and summary.json.

    `yardsticks` (name -> nats per token) stand beside the validation loss, `samples` are texts the model
    wrote; without them those that summary.json holds under these names are shown. `results` come first. A run that
    is not finished is reported as far as it came. Returns the page's location; raises UserError where there is no
    run.
    """
    found = read_recorded(run)
    figures = _figures(found)
    yardsticks = figures.get("yardsticks", {}) if yardsticks is None else yardsticks
    page = run_page(found, yardsticks, figures.get("samples", []) if samples is None else samples)
    page.plots = _plots(run, found.records, yardsticks)
    _add(page, results)
    target = run / "report.html"
    write_text(target, render(page))
    return target


def _figures(run: Recorded) -> dict[str, Any]:
    return summarise(run.records) if run.summary is None else run.summary


def run_page(run: Recorded, yardsticks: Mapping[str, float], samples: Sequence[str]) -> Page:
    """The page of one run."""
    figures = _figures(run)
    charts, went = run_charts([run], yardsticks), shares_chart(run.shares)
    unfinished = "" if run.summary is not None else " · not finished when this was written"
    return Page(
        name=run.name,
        where=f"{run.uri}{unfinished}",
        made_from="config.yaml, metrics.jsonl, attempts.json and summary.json in this folder",
        tiles=_tiles(figures),
        comparison=_comparison(figures.get("val_loss"), yardsticks),
        judged=bool(run.records),
        findings=[("", finding) for finding in findings(run.records)],
        charts=[*charts, *([went] if charts and went else [])],
        axes=axes_of(charts),
        then=environment_table([run]),
        samples=[("", sample) for sample in samples],
        written=_over_time(run.samples),
        summary=[
            (name, _shown(name, value), SUMMARY.get(name, "")) for name, value in flat(figures, skip=_SHOWN_ABOVE)
        ],
        config=_sections(public_config(run.config or {})),
        last_step=_last_step([run]),
    )


def _over_time(written: Sequence[Written]) -> list[tuple[str, tuple[str, ...]]]:
    """(step, texts) of some evaluations, evenly spaced, the first and the last among them."""
    chosen = written
    if len(written) > MOST_SAMPLED_STEPS:
        last = len(written) - 1
        chosen = [written[round(i * last / (MOST_SAMPLED_STEPS - 1))] for i in range(MOST_SAMPLED_STEPS)]
    return [(f"step {one.step:,}", one.texts) for one in chosen]


def runs_page(runs: Sequence[Recorded], name: str = "") -> Page:
    """One page of several runs: their figures side by side, curves over one another, and how their settings differ."""
    charts = run_charts(runs)
    told = [(run.name, finding) for run in runs for finding in findings(run.records)]
    differing = differences([public_config(run.config or {}) for run in runs])
    tables = (
        [
            *_went(runs),
            Table(
                "How their settings differ",
                ["setting", *(run.name for run in runs)],
                [[key, *values] for key, values in differing],
                note="" if differing else "In nothing but their names.",
                keys=(0,),
            ),
            *environment_table(runs),
        ]
        if runs
        else []
    )
    return Page(
        name=name or " · ".join(run.name for run in runs),
        where=", ".join(run.uri for run in runs),
        made_from="the folders of these runs",
        first=[_side_by_side(runs)] if runs else [],
        judged=any(run.records for run in runs),
        findings=sorted(told, key=lambda each: each[1].level != LOOK),
        charts=charts,
        axes=axes_of(charts),
        then=tables,
        samples=[(run.name, sample) for run in runs for sample in _figures(run).get("samples", [])[:1]],
        last_step=_last_step(runs),
    )


def write_page(found: Sequence[Recorded], results: Sequence[Result], target: Location) -> Location:
    """One page of runs and of what is no training run, at `target`, an .html file."""
    page = runs_page(found) if len(found) != 1 else run_page(found[0], *_kept_beside(found[0]))
    if results:
        names = list(dict.fromkeys([*(run.name for run in found), *(result.name for result in results)]))
        where = list(dict.fromkeys([*(run.uri for run in found), *(result.uri for result in results)]))
        page.name, page.where = " · ".join(names), ", ".join(where)
        page.made_from = "the files of these results"
        _add(page, results)
    write_text(target, render(page))
    return target


def _add(page: Page, results: Sequence[Result]) -> None:
    tables, charts = show(results)
    page.first, page.charts = [*page.first, *tables], [*charts, *page.charts]


def _kept_beside(run: Recorded) -> tuple[Mapping[str, float], Sequence[str]]:
    figures = _figures(run)
    return figures.get("yardsticks", {}), figures.get("samples", [])


def _last_step(runs: Sequence[Recorded]) -> int:
    return max((row["step"] for run in runs for row in run.records), default=0)


# (heading, name in the summary): what stands side by side
_COLUMNS = (
    ("val loss", "val_loss"),
    ("best", "best_val_loss"),
    ("train loss", "train_loss"),
    ("steps", "steps"),
    ("tokens", "tokens"),
    ("tok/s", "tokens_per_second"),
    ("MFU", "mfu"),
    ("data wait", "data_wait_fraction"),
    ("wall time", "wall_seconds"),
    ("restarts", "restarts"),
    ("$", "cost_usd"),
    ("tokens per $", "tokens_per_usd"),
)


def _side_by_side(runs: Sequence[Recorded]) -> Table:
    figures = [_figures(run) for run in runs]
    columns = [(heading, name) for heading, name in _COLUMNS if any(name in each for each in figures)]
    failed = [lost(run.shares) for run in runs]
    rows = [
        [run.name, *(_short(name, each[name]) if name in each else "–" for _, name in columns)]
        for run, each in zip(runs, figures)
    ]
    headings = ["run", *(heading for heading, _ in columns)]
    if any(failed):
        headings.append("lost to failures")
        for row, share in zip(rows, failed):
            spent = "" if share is None or share.usd is None else f", ${share.usd:,.2f}"
            row.append("–" if share is None else f"{human_duration(share.seconds)}{spent}")
    colors = [number % 8 for number in range(len(runs))]
    return Table("Side by side", headings, rows, numbers=range(1, len(headings)), colors=colors)


def _went(runs: Sequence[Recorded]) -> list[Table]:
    """Where the time of each went, as far as their records say."""
    shares = [{share.name: share for share in run.shares} for run in runs]
    names = [name for name in ORDER if any(name in each for each in shares)]
    if len(names) < 2:
        return []
    rows = []
    for run, each in zip(runs, shares):
        whole = sum(share.seconds for share in each.values()) or 1.0
        rows.append(
            [run.name]
            + [
                "–"
                if name not in each
                else f"{each[name].seconds / whole:.1%}"
                + ("" if each[name].usd is None else f", ${each[name].usd:,.2f}")
                for name in names
            ]
        )
    colors = [number % 8 for number in range(len(runs))]
    return [Table("Where the time went", ["run", *names], rows, numbers=range(1, len(names) + 1), colors=colors)]


def _short(name: str, value: Any) -> str:
    if name == "wall_seconds":
        return human_duration(value)
    if name in ("mfu", "data_wait_fraction"):
        return f"{value:.1%}"
    return human_count(value) if name in ("tokens", "tokens_per_second") else _shown(name, value)


def environment_table(runs: Sequence[Recorded]) -> list[Table]:
    """What each run's last start ran on; what is the same on all of them once."""
    facts = [run.environment for run in runs]
    names = list(dict.fromkeys(name for each in facts for name in each))
    if not names:
        return []
    if len(runs) == 1:
        return [Table("Environment", ["", ""], [[name, facts[0][name]] for name in names], keys=(0,))]
    rows = [[name, *(each.get(name, "–") for each in facts)] for name in names]
    return [Table("Environment", ["", *(run.name for run in runs)], rows, keys=(0,))]


MOST_SAMPLED_STEPS = 12
_SHOWN_ABOVE = ("yardsticks", "samples")


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
        small = f"{human_count(figures['tokens_per_usd'])} tokens per $" if "tokens_per_usd" in figures else ""
        small += f" · ${figures['lost_usd']:,.2f} lost to failures" if figures.get("lost_usd") else ""
        tiles.append(("cost", f"${figures['cost_usd']:,.2f}", small.removeprefix(" · ")))
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
        return plain(value)
    if name.endswith("_seconds"):
        return f"{value:,.1f} s" if value < 600 else f"{value:,.0f} s ({human_duration(value)})"
    if name in ("mfu", "effective_time_ratio", "data_wait_fraction"):
        return f"{value:.2%}"
    if name == "tokens_per_usd" or (name == "tokens_per_second" and value >= 1e4):
        return human_count(value)
    if name in ("cost_usd", "lost_usd"):
        return f"${value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _sections(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(section, its keys and values); keys that are in no section come first, under no name."""
    loose = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = {"": loose} | {key: value for key, value in config.items() if isinstance(value, Mapping)}
    return [
        (name, [(key, plain(value)) for key, value in flat(section)]) for name, section in sections.items() if section
    ]
