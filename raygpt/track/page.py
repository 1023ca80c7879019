"""A report's page: one document with its style, its data and its charts in it, which asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

import raygpt
from raygpt.track.finding import Finding

CHARTS = files("raygpt.track") / "charts"
BASE_STYLE = (CHARTS / "base.css").read_text("utf-8")  # of every page
# Of the pages with still plots alone: put into a template with its braces as they are.
STYLE = (
    """\
:root { --ink: #1d2129; --soft: #5b616b; --line: #e3e6ea; --panel: #f6f7f9; --train: #2f6db5; --ours: #d9622b; }
body { margin: 0 auto; max-width: 1080px; padding: 36px 24px 48px; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
"""
    + BASE_STYLE
    + """\
.tile b { display: block; font-size: 22px; line-height: 1.3; white-space: nowrap; }
td.bar div { height: 12px; border-radius: 3px; background: #c3c8d0; }
tr.ours td.bar div { background: var(--ours); }
figure { margin: 0; }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
.plots figure:first-child { grid-column: 1 / -1; }
@media (max-width: 720px) { .plots { grid-template-columns: 1fr; } .config { columns: 1; } td.bar { display: none; } }
@media print { details { display: block; } .tile, pre { border: 1px solid var(--line); } }
"""
)


@dataclass(frozen=True)
class Table:
    """Rows of cells below headings. `numbers` are columns set to the right, `keys` those set as code; `colors` are
    numbers of the charts' colours, one for each row."""

    title: str
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""
    numbers: Sequence[int] = ()
    keys: Sequence[int] = ()
    colors: Sequence[int] = ()


@dataclass
class Page:
    """What a page holds, in its order; what is empty is left out. `charts` are dicts that charts.js draws, `axes` what
    they may be drawn over, (name, label). `judged` says that `findings`, (run or "", finding), were looked for."""

    name: str
    where: str
    made_from: str
    tiles: Sequence[tuple[str, str, str]] = ()
    comparison: Sequence[dict[str, Any]] = ()
    first: Sequence[Table] = ()
    judged: bool = False
    findings: Sequence[tuple[str, Finding]] = ()
    charts: Sequence[dict[str, Any]] = ()
    axes: Sequence[tuple[str, str]] = ()
    plots: Sequence[dict[str, str]] = ()
    then: Sequence[Table] = ()
    samples: Sequence[tuple[str, str]] = ()
    written: Sequence[tuple[str, Sequence[str]]] = ()
    summary: Sequence[tuple[str, str, str]] = ()
    config: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    last_step: int = field(default=0)


def render(page: Page) -> str:
    """The document. Its policy allows the scripts in it by their hash, and nothing from elsewhere."""
    import jinja2

    style, template, uplot, script = _parts()
    charts, xs = _with_shared_x(finite(page.charts))
    data = json.dumps({"charts": charts, "xs": xs, "last_step": page.last_step}, allow_nan=False)
    data = data.replace("<", "\\u003c")  # as an escape: no text of a run can end the script element
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        page=page,
        style=style,
        uplot=uplot,
        script=script,
        data=data,
        policy="default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        f"form-action 'none'; script-src {_hash(uplot)} {_hash(script)}",
        version=raygpt.__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def finite(tree: Any) -> Any:
    """The same lists and dicts with None for what is no finite number: JSON has no word for it."""
    if isinstance(tree, Mapping):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _with_shared_x(charts: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """(charts, xs): for each axis of a series the number of its values in xs. Curves of a run that is not thinned out
    have the same ones in every chart."""
    xs: list[Any] = []
    places: dict[tuple[float, ...], int] = {}

    def place(values: Sequence[float]) -> int:
        key = tuple(values)
        if key not in places:
            places[key] = len(xs)
            xs.append(values)
        return places[key]

    shared = []
    for chart in charts:
        if "series" in chart:
            series = [{**each, "x": {axis: place(x) for axis, x in each["x"].items()}} for each in chart["series"]]
            chart = {**chart, "series": series}
        shared.append(chart)
    return shared, xs


@cache
def _parts() -> tuple[str, str, str, str]:
    uplot = files("raygpt.track") / "vendor" / "uplot"
    template, script, own = ((CHARTS / name).read_text("utf-8") for name in ("page.html", "charts.js", "page.css"))
    style = (uplot / "uPlot.min.css").read_text("utf-8") + BASE_STYLE + own
    return style, template, (uplot / "uPlot.iife.min.js").read_text("utf-8"), script


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
