"""What is no training run, for a page: a sweep, a generation, evaluations, benchmarks, models side by side.

Each is known by the file that its job leaves: sweep.json, quality.json, evaluation.json, arms.json, or the result of
`raygpt benchmark`. A figure that a file does not hold is left out of the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raygpt import storage
from raygpt.errors import UserError
from raygpt.storage import Location
from raygpt.track.charting import bar_chart
from raygpt.track.differences import plain
from raygpt.track.finding import is_number
from raygpt.track.page import Table
from raygpt.track.progress import human_count, human_duration

SWEEP, GENERATION, EVALUATION, BENCHMARK, ARMS = "sweep", "generation", "evaluation", "benchmark", "comparison"
FILES = {"sweep.json": SWEEP, "quality.json": GENERATION, "evaluation.json": EVALUATION, "arms.json": ARMS}
BENCHMARK_FILES = ("benchmark.json", "result.json")
MOST_TRIALS = 8  # of a sweep that are drawn and listed
# Figures of an evaluation, and how they are written.
FIGURES = {
    "acc": "percent",
    "acc_norm": "percent",
    "accuracy": "percent",
    "f1": "percent",
    "loss": "plain",
    "perplexity": "plain",
    "token_perplexity": "plain",
    "word_perplexity": "plain",
    "byte_perplexity": "plain",
    "bits_per_byte": "plain",
}


@dataclass(frozen=True)
class Result:
    """`kind` is one of the words above, `tree` what its file holds."""

    name: str
    uri: str
    kind: str
    tree: Any


def find_results(where: Location) -> list[Result]:
    """Results in a folder, or the one that a JSON file is. [] for a folder without any. Raises UserError for a file of
    another kind, or one that is damaged."""
    if storage.is_file(where):
        tree = _load(where)
        kind = FILES.get(where.name) or _kind(tree)
        if kind is None:
            raise UserError(f"{where.uri} is no result of raygpt: name a run, or the JSON file of a benchmark.")
        return [Result(where.name.removesuffix(".json"), where.uri, kind, tree)]
    found = []
    # the result that lies in a run's own folder bears the run's name
    name = where.parent.name if where.name == EVALUATION else where.name
    for file, kind in FILES.items():
        if storage.exists(where / file):
            found.append(Result(name, where.uri, kind, _load(where / file)))
    for file in BENCHMARK_FILES:
        if storage.exists(where / file) and _kind(tree := _load(where / file)) == BENCHMARK:
            found.append(Result(name, where.uri, BENCHMARK, tree))
    return found


def _load(where: Location) -> Any:
    try:
        return json.loads(storage.read_text(where))
    except ValueError:
        raise UserError(f"{where.uri} is damaged: it is no JSON.") from None


def _kind(tree: Any) -> str | None:
    if not isinstance(tree, dict):
        return None
    if "rows" in tree and "case" in tree:
        return BENCHMARK
    return EVALUATION if "tasks" in tree else ARMS if "arms" in tree else None


def show(results: Sequence[Result]) -> tuple[list[Table], list[dict[str, Any]]]:
    """(tables, charts) of results of all kinds, evaluations together in one table."""
    tables: list[Table] = []
    charts: list[dict[str, Any]] = []
    evaluations = [result for result in results if result.kind == EVALUATION]
    if evaluations:
        _extend(tables, charts, _evaluations(evaluations))
    for result in results:
        draw = {SWEEP: _sweep, GENERATION: _generation, BENCHMARK: _benchmark, ARMS: _arms}.get(result.kind)
        if draw is not None:
            _extend(tables, charts, draw(result))
    return tables, charts


def _extend(tables: list[Table], charts: list[dict[str, Any]], made: tuple[list[Table], list[dict[str, Any]]]) -> None:
    tables += made[0]
    charts += made[1]


def _sweep(result: Result) -> tuple[list[Table], list[dict[str, Any]]]:
    trials = [trial for trial in result.tree if isinstance(trial, dict)]
    scored = [trial for trial in trials if is_number(trial.get("score"))]
    if not scored:
        return [Table(f"Sweep {result.name}", note=f"{len(trials)} trials, none of which has a score.")], []
    metric = scored[0]["metric"]
    down = any(word in metric for word in ("loss", "perplexity"))
    scored.sort(key=lambda trial: trial["score"] * (1 if down else -1))
    keys = list(dict.fromkeys(key for trial in scored for key in trial["params"]))
    rows = [
        [trial["id"], f"{trial['score']:.4f}", trial["status"], human_duration(trial.get("seconds") or 0)]
        + [plain(trial["params"].get(key)) for key in keys]
        for trial in scored[:MOST_TRIALS]
    ]
    headings = ["trial", metric, "how it ended", "time", *keys]
    note = f"{len(trials)} trials; the best {len(rows)} by their best epoch."
    colors = [number % 8 for number in range(len(rows))]
    table = Table(f"Sweep {result.name}", headings, rows, note, numbers=(1, 3), keys=(0,), colors=colors)
    series = []
    for number, trial in enumerate(scored):
        points = [(row["epoch"], row[metric]) for row in trial["history"] if is_number(row.get(metric))]
        if points:
            x, y = [list(part) for part in zip(*points)]
            shown = number < MOST_TRIALS
            look = {"color": number % 8, "dots": shown} if shown else {"color": 7, "faint": True}
            series.append({"label": trial["id"], "x": {"epoch": x}, "y": y, **look})
    chart = {"name": "trials", "title": "Trials", "unit": metric, "form": "plain", "axes": ["epoch"], "wide": True}
    # the best are drawn last, over the others
    return [table], [{**chart, "series": series[::-1]}]


def _generation(result: Result) -> tuple[list[Table], list[dict[str, Any]]]:
    tree = result.tree
    made, steps = tree.get("generation") or {}, tree.get("steps") or []
    names = ("teacher", "prompts", "parked", "prompt_tokens", "answer_tokens", "tokens_per_second", "cost_usd")
    facts = [(name, made[name]) for name in names if made.get(name) is not None]
    facts += [(name, tree[name]) for name in ("answers", "documents", "tokens") if name in tree]
    rows = [[name, f"{value:,.2f}" if isinstance(value, float) else plain(value)] for name, value in facts]
    bars = [{"label": "answers", "value": tree["answers"]}] if "answers" in tree else []
    bars += [
        {"label": f"after {step['step']}", "value": step["kept"], "note": f"{step['removed']:,} removed", "color": 2}
        for step in steps
    ]
    charts = [bar_chart("kept", "What was kept of the answers", "documents", "count", bars)] if bars else []
    return [Table(f"Generation {result.name}", ["", ""], rows, keys=(0,))], charts


def _evaluations(results: Sequence[Result]) -> tuple[list[Table], list[dict[str, Any]]]:
    models = [_model_name(result) for result in results]
    found: dict[str, dict[int, tuple[float, float | None, float | None, str]]] = {}
    for number, result in enumerate(results):
        for path, value, low, high in _figures(result.tree.get("tasks") or {}):
            found.setdefault(path, {})[number] = (value, low, high, path.rsplit(" ", 1)[-1])
    rows, charts = [], []
    for path, by_model in found.items():
        cells = ["–" if number not in by_model else _figure(*by_model[number]) for number in range(len(results))]
        rows.append([path, *cells])
        bars = [
            {"label": models[number], "value": value, "low": low, "high": high, "color": number}
            for number, (value, low, high, _) in by_model.items()
        ]
        if len(results) > 1 or FIGURES[next(iter(by_model.values()))[3]] == "percent":
            form = FIGURES[next(iter(by_model.values()))[3]]
            charts.append(bar_chart(path.replace(" ", "-"), path, "with 95 % intervals", form, bars))
    headings = ["task, protocol, figure", *models]
    return [Table("Evaluation", headings, rows, numbers=range(1, len(headings)))], charts


def _model_name(result: Result) -> str:
    model = result.tree.get("model")
    return str(model.get("name") or result.name) if isinstance(model, Mapping) else str(model or result.name)


def _figures(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float, float | None, float | None]]:
    """(task, protocol and figure as one text, value, low, high) of the figures that are known here, with their 95 %
    intervals: as given, or 1.96 standard errors."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{path}{name} ")
        elif name in FIGURES and is_number(value) and not isinstance(value, bool):
            low = high = None
            interval, error = tree.get(f"{name}_interval"), tree.get(f"{name}_stderr")
            if isinstance(interval, Sequence) and len(interval) == 2:
                low, high = interval
            elif isinstance(error, int | float):
                low, high = value - 1.96 * error, value + 1.96 * error
            yield f"{path}{name}", value, low, high


def _figure(value: float, low: float | None, high: float | None, name: str) -> str:
    if FIGURES[name] == "percent":
        shown = [f"{100 * part:.2f}" for part in (value, low, high) if part is not None]
    else:
        shown = [f"{part:.4f}" for part in (value, low, high) if part is not None]
    return shown[0] if len(shown) < 3 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _benchmark(result: Result) -> tuple[list[Table], list[dict[str, Any]]]:
    tree = result.tree
    rows, bars = [], []
    columns = (
        ("MFU", "mfu", "{:.1%}"),
        ("of a matrix product", "mfu_of_matmul", "{:.1%}"),
        ("memory, GiB", "memory_bytes", None),
        ("data wait", "data_wait_fraction", "{:.1%}"),
        ("$ per billion tokens", "usd_per_billion_tokens", "${:,.2f}"),
        ("loss", "loss", "{:.4f}"),
    )
    known = [column for column in columns if any(row.get(column[1]) is not None for row in tree["rows"])]
    first = None
    for row in tree["rows"]:
        speed = row.get("tokens_per_second")
        cells = [row["name"], "–", "–"]
        if speed:
            first = first or speed["median"]  # 0: nothing is a multiple of it
            cells[1:] = [
                f"{human_count(speed['median'])} ({human_count(speed['low'])} to {human_count(speed['high'])})",
                f"{speed['median'] / first:.2f}" if first else "–",
            ]
            bars.append({"label": row["name"], "value": speed["median"], "low": speed["low"], "high": speed["high"]})
        for _, name, form in known:
            value = row.get(name)
            cells.append("–" if value is None else form.format(value) if form else f"{value / 2**30:.2f}")
        rows.append([*cells, row.get("note", "")])
    headings = ["", "tokens/s (low to high)", "× the first", *(heading for heading, _, _ in known), ""]
    title = f"Benchmark {result.name}: {tree['case']}"
    facts = [[name, _short(value)] for name, value in (tree.get("provenance") or {}).items()]
    tables = [Table(title, headings, rows, numbers=range(1, len(headings) - 1))]
    if facts:
        tables.append(Table("Where and how it was measured", ["", ""], facts, keys=(0,)))
    charts = [bar_chart("speed", title, "tokens per second: median, lowest, highest", "count", bars)] if bars else []
    charts = [{**chart, "wide": True} for chart in charts]
    return tables, charts


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    return plain(value)


def _arms(result: Result) -> tuple[list[Table], list[dict[str, Any]]]:
    tree = result.tree
    texts = list(dict.fromkeys(text for arm in tree["arms"] for text in arm.get("texts", {})))
    rows, charts = [], []
    for arm in tree["arms"]:
        cells = [arm["name"], "–" if arm.get("tokens") is None else human_count(arm["tokens"])]
        for text in texts:
            bits = (arm["texts"].get(text) or {}).get("bits_per_byte")
            cells.append("–" if bits is None else f"{bits['value']:.4f} ({bits['low']:.4f} to {bits['high']:.4f})")
        rows.append(cells)
    for text in texts:
        bars = [
            {"label": arm["name"], **arm["texts"][text]["bits_per_byte"], "color": number}
            for number, arm in enumerate(tree["arms"])
            if text in arm.get("texts", {})
        ]
        charts.append(bar_chart(f"bits-{text}", f"Bits per byte of {text} text", "lower is better", "plain", bars))
    headings = ["model", "trained on", *(f"bits per byte, {text}" for text in texts)]
    return [Table(f"Comparison {result.name}", headings, rows, numbers=range(1, len(headings)))], charts
