"""PURE. Figures of tasks as people read them: a row per protocol, each with what it was measured by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raygpt.evaluate.references import Reference

PERCENT = ("acc", "acc_norm", "accuracy", "f1")


@dataclass(frozen=True)
class Row:
    """One task by one protocol. `figures` are {metric: (value, low, high)} in the metric's unit, the ends None where no
    interval is known; `how` is what a table has to say of the protocol beside shots and BOS."""

    task: str
    protocol: str
    items: int | None
    figures: Mapping[str, tuple[float, float | None, float | None]]
    shots: int | None = None
    bos: str | None = None
    how: str = ""

    @property
    def counts(self) -> tuple[str, str, str]:
        """Items, shots and BOS as a table shows them."""
        items = "-" if self.items is None else f"{self.items:,}"
        return items, "-" if self.shots is None else str(self.shots), "-" if self.bos is None else self.bos


def rows(tasks: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Of `tasks` as evaluation.json has them."""
    return [row for name, figures in tasks.items() for row in _ROWS[name](figures)]


def _hellaswag(figures: Mapping[str, Any]) -> Iterator[Row]:
    for protocol, each in figures.items():
        if isinstance(each, Mapping):
            found = {name: (each[name], *each[f"{name}_interval"]) for name in ("acc", "acc_norm")}
            how = f"acc_norm by {each['normaliser']}" + (", chat template" if each["chat_template"] else "")
            yield Row("hellaswag", protocol, each["items"], found, each["shots"], each["bos"] or "none", how)


def _lambada(figures: Mapping[str, Any]) -> Iterator[Row]:
    each = figures["lm_eval"]
    ends = each["perplexity_interval"] or (None, None)
    found = {"acc": (each["acc"], *each["acc_interval"]), "perplexity": (each["perplexity"], *ends)}
    yield Row("lambada", "lm_eval", each["items"], found, each["shots"], each["bos"] or "none", "of the last word")


def _wikitext(figures: Mapping[str, Any]) -> Iterator[Row]:
    for protocol, each in figures.items():
        if not isinstance(each, Mapping):
            continue
        found = {
            f"ppl/{unit}": (each[unit]["perplexity"], each[unit]["low"], each[unit]["high"])
            for unit in ("token", "word", "byte")
            if unit in each
        }
        if "bits_per_byte" in each:
            found["bits/byte"] = (each["bits_per_byte"], None, None)
        overlap = f"overlap {each['overlap']:,}" if each["overlap"] else "no overlap"
        how = f"context {each['context']:,}, {overlap}"
        yield Row(
            "wikitext", protocol, each["texts"], found, None, "none" if each["bos"] is None else str(each["bos"]), how
        )


def _loss(figures: Mapping[str, Any]) -> Iterator[Row]:
    found: dict[str, tuple[float, None, None]] = {
        "loss": (figures["loss"], None, None),
        "ppl/token": (figures["perplexity"], None, None),
    }
    if "bits_per_byte" in figures:
        found["bits/byte"] = (figures["bits_per_byte"], None, None)
    how = f"{figures['tokens']:,} tokens of {figures['data']}, rows of {figures['seq_len']:,}, no overlap"
    yield Row("loss", "raygpt", None, found, how=how)


def _classification(figures: Mapping[str, Any]) -> Iterator[Row]:
    found = {name: (figures[name], *figures[f"{name}_interval"]) for name in ("accuracy", "f1")}
    yield Row("classification", "raygpt", figures["items"], found, how=f"{figures['data']}")


_ROWS = {
    "hellaswag": _hellaswag,
    "lambada": _lambada,
    "wikitext": _wikitext,
    "loss": _loss,
    "classification": _classification,
}


def table(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of the table of one model."""
    cells = [["task", "protocol", "n", "shots", "BOS", "figures (95 % interval)", ""]]
    for row in rows(tasks):
        figures = ", ".join(f"{metric} {shown(metric, *values)}" for metric, values in row.figures.items())
        cells.append([row.task, row.protocol, *row.counts, figures, row.how])
    return aligned(cells)


def shown(metric: str, value: float | None, low: float | None = None, high: float | None = None) -> str:
    """`31.14 ± 0.90` of an accuracy in per cent, `40.06 [38.2, 42.0]` of a perplexity."""
    if value is None:
        return "?"
    if metric in PERCENT:
        spread = "" if low is None or high is None else f" ± {50 * (high - low):.2f}"
        return f"{100 * value:.2f}{spread}"
    digits = 4 if metric in ("loss", "bits/byte", "ppl/byte") or value < 10 else 2
    spread = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:,.{digits}f}{spread}"


def published(found: Sequence[Reference]) -> list[str]:
    """Lines of what others published, by the same protocol."""
    if not found:
        return []
    cells = [["published, of the whole set, 0-shot", "protocol", "figures", "source"]]
    for each in found:
        figures = ", ".join(
            f"{name} {shown(name.replace('bits_per_byte', 'bits/byte'), v)}" for name, v in each.figures.items()
        )
        note = f"; {each.note}" if each.note else ""
        cells.append([each.model, f"{each.task} {each.protocol}", figures, f"{each.source} ({each.date}){note}"])
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
