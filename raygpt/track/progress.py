"""The progress line: plain lines in a job log, a live bar on a terminal."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from raygpt import terminal

BAR_CELLS = 20
DEFAULT_COLUMNS = 100
# What a narrow terminal goes without, in this order; step and loss stay.
DROPPED_FIRST = ("lr", "data", "mfu", "skipped", "cost", "speed", "hellaswag", "val", "bar", "eta")


class Progress:
    """Prints the progress of a run of `total_steps` steps to `stream`; runs in the driver.

    On a terminal (`live`, by default when `stream` is one) a bar is redrawn in place and the line of
    each evaluation stays above it; elsewhere every record is one line.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, live: bool | None = None) -> None:
        self.total_steps = total_steps
        self.stream = sys.stdout if stream is None else stream
        self.live = _is_terminal(self.stream) if live is None else live
        self._shown: dict[str, Any] = {}
        self._bar = ""

    def update(self, record: Mapping[str, Any]) -> None:
        """Show one metrics record."""
        line = format_line(record, self.total_steps)
        if not self.live:
            self._write(line + "\n")
            return
        # between evaluations the bar keeps showing the last validation loss
        self._shown = {**self._shown, **record}
        if "val_loss" in record:
            self._write(f"\r\x1b[K{line}\n")
        self._draw()

    def note(self, text: str) -> None:
        """Print a sentence on lines of its own, above the bar where there is one."""
        self._write(f"\r\x1b[K{text}\n" if self._bar else f"{text}\n")
        if self._bar:
            self._draw()

    def close(self) -> None:
        """Leave the bar as it is and go to the next line. May be called twice."""
        if self._bar:
            self._write("\n")
        self._bar = ""
        self._shown = {}

    def _draw(self) -> None:
        self._bar = format_bar(self._shown, self.total_steps, _columns(self.stream) - 1, _cells(self.stream))
        self._write(f"\r\x1b[K{self._bar}")

    def _write(self, text: str) -> None:
        # `| head` went away: training goes on
        with contextlib.suppress(BrokenPipeError):
            self.stream.write(text)
            self.stream.flush()


def format_line(record: Mapping[str, Any], total_steps: int) -> str:
    """`step 400/3000 13% | loss 4.1820 | val 4.21 | ...`; figures the record does not have are left out."""
    return " | ".join(_figures(record, total_steps).values())


def format_bar(record: Mapping[str, Any], total_steps: int, columns: int, cells: tuple[str, str] = ("#", ".")) -> str:
    """A bar and as many of the line's figures as fit in `columns` characters."""
    done = min(1.0, record.get("step", 0) / total_steps) if total_steps > 0 else 1.0
    full, empty = cells
    filled = int(done * BAR_CELLS)
    bar = full * filled + empty * (BAR_CELLS - filled)
    figures = _figures(record, total_steps)
    for name in DROPPED_FIRST:
        if len(f"{bar} {' | '.join(figures.values())}".strip()) <= columns:
            break
        if name == "bar":
            bar = ""
        figures.pop(name, None)
    return f"{bar} {' | '.join(figures.values())}".strip()[: max(0, columns)]


def _figures(record: Mapping[str, Any], total_steps: int) -> dict[str, str]:
    step = record.get("step", 0)
    # rounded down, so that 100% means done
    figures = {"step": f"step {step}/{total_steps} {step * 100 // total_steps if total_steps > 0 else 100}%"}
    if "train_loss" in record:
        figures["loss"] = f"loss {record['train_loss']:.4f}"
    if "val_loss" in record:
        figures["val"] = f"val {record['val_loss']:.2f}"
    if "hellaswag_acc_norm" in record:
        figures["hellaswag"] = f"hellaswag {record['hellaswag_acc_norm']:.2%}"
    if "lr" in record:
        figures["lr"] = f"lr {_short_scientific(record['lr'])}"
    if "skipped_steps" in record:
        scale = f" (loss scale {record['loss_scale']:g})" if "loss_scale" in record else ""
        figures["skipped"] = f"skipped {record['skipped_steps']}{scale}"
    if "tokens_per_second" in record:
        figures["speed"] = f"{human_count(record['tokens_per_second'])} tok/s"
    if "mfu" in record:
        figures["mfu"] = f"mfu {record['mfu']:.0%}"
    if "data_wait_seconds" in record and record.get("step_seconds"):
        figures["data"] = f"data {record['data_wait_seconds'] / record['step_seconds']:.1%}"
    if "eta_seconds" in record:
        figures["eta"] = f"eta {human_duration(record['eta_seconds'])}"
    if "cost_usd" in record:
        figures["cost"] = f"${record['cost_usd']:.2f}"
    return figures


def human_count(number: float) -> str:
    """Three figures and a letter: 7, 950, 1.84k, 182k, 1.24M, 10.0B."""
    if abs(number) < 10 and number == int(number):
        return str(int(number))
    for limit, divisor, letter in ((999.5, 1.0, ""), (999_500, 1e3, "k"), (999.5e6, 1e6, "M"), (math.inf, 1e9, "B")):
        if abs(number) < limit:
            return _three_figures(number / divisor) + letter
    return str(number)  # inf, nan


def _three_figures(number: float) -> str:
    return f"{number:.{2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0}f}"


def human_duration(seconds: float) -> str:
    """Two units at most: 42s, 3m20s, 1h04m, 2d03h."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"


def _short_scientific(number: float) -> str:
    """5.9e-4, and 0 for 0: Python would write 5.9e-04."""
    if number == 0:
        return "0"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _is_terminal(stream: TextIO) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)()) and os.environ.get("TERM", "") not in ("", "dumb")


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_COLUMNS
    except (OSError, ValueError, AttributeError):
        return terminal.width(DEFAULT_COLUMNS)


def _cells(stream: TextIO) -> tuple[str, str]:
    encoding = (getattr(stream, "encoding", None) or "ascii").lower()
    return ("█", "░") if encoding.startswith("utf") else ("#", ".")
