"""PURE. One result schema for every benchmark, and its forms: JSON, CSV, Markdown.

    {"schema": 1, "case": "ladder", "rows": [{"name": "bf16", "settings": {…}, "tokens_per_second": {"median": …,
     "low": …, "high": …, "repeats": 5}, …}], "provenance": {"hardware": …, "versions": …, "date": …, "command": …}}

A figure that is not known is absent: no row holds None, and a row without a speed says why in its note.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from raygpt.errors import UserError, one_line

SCHEMA = 1
CASES = ("step", "ladder", "finetune")


@dataclass(frozen=True)
class Spread:
    """A figure that was measured several times: its median and the lowest and highest of `repeats`."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def per(self, whole: float) -> Spread:
        """`whole` divided by it, as tokens by the seconds that they took: low and high change places."""
        return Spread(whole / self.median, whole / self.high, whole / self.low, self.repeats)


@dataclass(frozen=True)
class Row:
    """One thing measured under `settings`. Speeds are of all workers together; a row without one has its reason in
    `note`. `figures` are what only its case has."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    tokens_per_second: Spread | None = None
    step_seconds: Spread | None = None
    mfu: float | None = None  # 0 to 1, of the datasheet's peak
    mfu_of_matmul: float | None = None  # 0 to 1, of a matrix product in this run, precision and device
    memory_bytes: int | None = None  # peak: of the GPU's allocator, or of the process
    data_wait_fraction: float | None = None  # of the step time
    usd_per_billion_tokens: float | None = None
    loss: float | None = (
        None  # nats per token: of the first step, the same for all rungs; finetune: the last evaluation
    )
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What one command measured. `provenance`: see raygpt.bench.provenance."""

    case: str
    rows: list[Row]
    provenance: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(
            {"schema": SCHEMA, "case": self.case, "rows": [_plain(row) for row in self.rows]}
            | {"provenance": self.provenance},
            indent=2,
        )

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


def usd_per_billion(price_per_hour: float | None, tokens_per_second: float) -> float | None:
    """US dollars of 10⁹ tokens at that speed on machines that cost so much together; None without a price."""
    return None if price_per_hour is None else price_per_hour / 3600 / tokens_per_second * 1e9


def from_json(text: str, where: str) -> Result:
    """Inverse of `to_json`. Raises UserError, naming `where`, for what is no result of this schema."""
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{where} is no JSON file ({one_line(error, 80)}): name a result of raygpt benchmark."
        ) from None
    if not isinstance(tree, dict) or "schema" not in tree or "rows" not in tree:
        raise UserError(f"{where} is no result of raygpt benchmark: it has no schema and rows.")
    if tree["schema"] != SCHEMA:
        raise UserError(f"{where} has schema {tree['schema']}, and this raygpt reads {SCHEMA}: measure it anew.")
    try:
        return Result(str(tree["case"]), [_row(each) for each in tree["rows"]], dict(tree["provenance"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is a damaged result ({one_line(error, 80)}): measure it anew.") from None


def read(path: Path) -> Result:
    """The result in a file. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error, 80)}): name a result of raygpt benchmark.") from None
    return from_json(text, str(path))


def is_result(tree: object) -> bool:
    """Whether a JSON value has this schema."""
    return isinstance(tree, dict) and tree.get("schema") == SCHEMA and "rows" in tree and "provenance" in tree


def to_csv(result: Result) -> str:
    """One line per row; spreads as columns of their own, settings and figures by name."""
    lines = [_flat(row) for row in result.rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def to_markdown(result: Result) -> str:
    """A table of the rows with the columns that any of them has; below it notes, and where it was measured."""
    columns = [(title, cell) for title, cell in COLUMNS if any(cell(row) for row in result.rows)]
    lines = [_cells(title for title, _ in columns), _cells("---" for _ in columns)]
    lines += [_cells(cell(row) for _, cell in columns) for row in result.rows]
    notes = [f"- {row.name}: {row.note}" for row in result.rows if row.note]
    notes += _priced(result.rows)
    notes += [f"- **{warning}**" for warning in warnings(result.provenance)]
    return "\n".join([*lines, "", *notes, *([""] if notes else []), describe(result.provenance)]) + "\n"


def warnings(provenance: dict[str, Any]) -> list[str]:
    """What a reader must know before any figure: that the measurement did not end, that the machine was busy."""
    return [text for text in (stopped(provenance), busy(provenance)) if text]


def stopped(provenance: dict[str, Any]) -> str:
    """A warning where the measurement was stopped, or killed, before it was through, else nothing."""
    if not provenance.get("stopped"):
        return ""
    planned = provenance.get("planned_repeats")
    return f"Stopped before it was through{f': {planned} repeats were planned' if planned else ''}."


def _priced(rows: Sequence[Row]) -> list[str]:
    """What the rows' prices are prices of, rows of one price together."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if "priced" in row.figures:
            found.setdefault(row.figures["priced"], []).append(row.name)
    return [f"- $ of {', '.join(names)}: {what}" for what, names in found.items()]


def busy(provenance: dict[str, Any]) -> str:
    """A warning where the machine had more to do than it has cores when that was written down, else nothing."""
    hardware, load = provenance.get("hardware"), provenance.get("load_average", 0.0)
    cores = str(hardware.get("cores", "")).split(" ")[0] if isinstance(hardware, dict) else ""
    if not cores.isdigit() or load <= int(cores):
        return ""
    return (
        f"The machine was busy with other work (load {load:g} on {cores} cores): it can do more than these speeds say."
    )


def describe(provenance: dict[str, Any]) -> str:
    """Hardware, versions, date and command in a sentence; "not recorded" for what a result does not say."""
    hardware, versions = provenance.get("hardware"), provenance.get("versions")
    if isinstance(hardware, dict):
        hardware = ", ".join(str(hardware[key]) for key in ("device", "cpu", "cores", "memory") if key in hardware)
    words = ", ".join(f"{name} {version}" for name, version in versions.items()) if versions else None
    parts = [
        f"Hardware: {hardware or 'not recorded'}",
        f"versions: {words or 'not recorded'}",
        f"date: {provenance.get('date', 'not recorded')}",
        *([f"load average: {load}"] if (load := provenance.get("load_average")) is not None else []),
        f"commit: {provenance.get('commit', 'not recorded')}",
        f"command: `{provenance['command']}`" if "command" in provenance else "command: not recorded",
    ]
    return "; ".join(parts) + "."


def spread_text(spread: Spread | None) -> str:
    """1,234 (1,200–1,300, n=5), the range left out of what was measured once."""
    if spread is None:
        return ""
    digits = 0 if spread.median >= 100 else 3
    if spread.repeats == 1:
        return f"{spread.median:,.{digits}f}"
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f}–{spread.high:,.{digits}f}, n={spread.repeats})"


def _milliseconds(spread: Spread | None) -> str:
    return f"{1000 * spread.median:,.1f} ms" if spread else ""


def _share(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}%}"


COLUMNS = (
    ("", lambda row: row.name),
    ("tokens/s", lambda row: spread_text(row.tokens_per_second) or "–"),
    ("× before", lambda row: f"{row.figures['over_previous']:.2f}" if "over_previous" in row.figures else ""),
    ("× first", lambda row: f"{row.figures['over_first']:.2f}" if "over_first" in row.figures else ""),
    ("efficiency", lambda row: _share(row.figures.get("efficiency"), 0)),
    ("step", lambda row: _milliseconds(row.step_seconds)),
    ("MFU", lambda row: _share(row.mfu)),
    ("of a matrix product", lambda row: _share(row.mfu_of_matmul)),
    ("memory (GB)", lambda row: f"{row.memory_bytes / 1e9:.2f}" if row.memory_bytes else ""),
    ("data wait", lambda row: _share(row.data_wait_fraction, 2)),
    ("$ per 10⁹ tokens", lambda row: f"{row.usd_per_billion_tokens:,.2f}" if row.usd_per_billion_tokens else ""),
    ("loss before", lambda row: f"{row.figures['before']['loss']:.4f}" if "before" in row.figures else ""),
    ("loss", lambda row: f"{row.loss:.4f}" if row.loss is not None else ""),
)


def _cells(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _plain(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"name": row.name, "settings": row.settings}
    for each in fields(Row)[2:]:
        value = getattr(row, each.name)
        if value is None or value == "" or value == {}:
            continue
        found[each.name] = value.__dict__ if isinstance(value, Spread) else value
    return found


def _row(tree: dict[str, Any]) -> Row:
    values: dict[str, Any] = dict(tree)
    for key in ("tokens_per_second", "step_seconds"):
        if key in tree:
            spread = Spread(**tree[key])
            if not all(_is_number(value) and value > 0 for value in vars(spread).values()):
                raise ValueError(f"{key} of {tree.get('name')} is no measurement")
            values[key] = spread
    row = Row(**values)
    for name, kind in (("name", str), ("note", str), ("settings", dict), ("figures", dict)):
        if not isinstance(getattr(row, name), kind):
            raise TypeError(f"{name} of {row.name} is no {kind.__name__}")
    for name in ("mfu", "mfu_of_matmul", "memory_bytes", "data_wait_fraction", "usd_per_billion_tokens", "loss"):
        if not _is_number(getattr(row, name), none=True):
            raise TypeError(f"{name} of {row.name} is no number")
    return row


def _is_number(value: Any, none: bool = False) -> bool:
    return (none and value is None) or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _flat(row: Row) -> dict[str, Any]:
    """One level of keys; a list is left to the JSON file."""
    flat: dict[str, Any] = {}

    def put(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                put(f"{name}.{key}", inner)
        elif not isinstance(value, list):
            flat[name] = value

    for name, value in _plain(row).items():
        put(name, value)
    return flat
