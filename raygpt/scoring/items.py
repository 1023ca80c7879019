"""Rows of a task's data set as its items, with every row that is none named by its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, TypeVar

from raygpt.data.rows import read_split
from raygpt.errors import UserError

SHOWN_PROBLEMS = 3
T = TypeVar("T")


def collect(
    uri: str,
    split: str,
    limit: int | None,
    setting: str,
    make: Callable[[str, str, Mapping[str, Any]], T],
    *,
    form: str,
    published: str,
) -> list[T]:
    """`make(id, place, columns)` of the first `limit` rows of a file, or of that split of a hub's data set; an id is a
    row's number, from 0 on. Its ValueError says what is wrong with a row.

    Raises UserError that names the places of such rows and says, by `form`, what an item has; and where there is no
    row, for which `published` is the data set to name.
    """
    items: list[T] = []
    problems: list[str] = []
    for number, (place, row) in enumerate(islice(read_split(uri, split, setting), limit)):
        try:
            items.append(make(str(number), place, row))
        except ValueError as error:
            problems.append(f"{place} {error}")
    if problems:
        more = f" and {len(problems) - SHOWN_PROBLEMS:,} more like these" if len(problems) > SHOWN_PROBLEMS else ""
        raise UserError(f"{setting}: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}: mend or delete such rows ({form}).")
    if not items:
        raise UserError(f"{setting}={uri} has no items: name a file of {published}.")
    return items
