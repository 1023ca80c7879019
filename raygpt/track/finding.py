"""PURE. What a finding is, and the robust statistics that findings are made with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

LOOK, NOTE = "look", "note"  # something to look into; something to know


@dataclass(frozen=True)
class Finding:
    """One sentence or two about steps `first_step` to `last_step`. `level` is look or note."""

    name: str
    level: str
    text: str
    first_step: int
    last_step: int


def points_of(records: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of the records that have a finite one."""
    return [(row["step"], float(row[name])) for row in records if has(row, name)]


def thirds(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """First, middle and last third, the odd ones in the middle."""
    third = len(values) // 3
    return values[:third], values[third : len(values) - third], values[len(values) - third :]


def scale(values: Sequence[float]) -> float:
    """Standard deviation of normal noise with the same median absolute deviation."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values)


def has(row: Mapping[str, Any], name: str) -> bool:
    return is_number(row.get(name))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
