"""PURE. Lines of a text that arrives in pieces: where one ends, which one a place is in, which is too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Part = TypeVar("Part")
# One end of line: files written on Windows in text mode have \r\r\n, those of old Macs \r alone. Of a longer run of \r
# than any program writes before \n the first ones are ends by themselves: to look farther at each would be quadratic.
RETURNS = 16
RETURN = rf"\r(?:\r{{0,{RETURNS - 1}}}\n)?"  # an end that begins with \r
LINE_END = rf"(?:\r\r{{0,{RETURNS - 1}}}+\n|\n|\r(?!\r{{0,{RETURNS - 1}}}\n))"


class TooLong(Exception):
    """More text in one piece than is allowed; the piece begins in line `line`."""

    def __init__(self, line: int = 0) -> None:
        super().__init__(line)
        self.line = line


class Place:
    """Line and column, from 1, of the place reached in a text that is given in pieces."""

    def __init__(self) -> None:
        self._line_feeds = self._returns = 0
        self._after_line_feed = self._after_return = 0  # characters

    def advance(self, text: str) -> None:
        if "\n" in text:
            self._line_feeds += text.count("\n")
            self._after_line_feed = len(text) - text.rfind("\n") - 1
        else:
            self._after_line_feed += len(text)
        if "\r" in text:
            self._returns += text.count("\r")
            self._after_return = len(text) - text.rfind("\r") - 1
        else:
            self._after_return += len(text)

    @property
    def line(self) -> int:
        return 1 + (self._line_feeds or self._returns)

    @property
    def column(self) -> int:
        return 1 + (self._after_line_feed if self._line_feeds or not self._returns else self._after_return)


def with_end(parts: Iterable[Part]) -> Iterator[tuple[Part | None, bool]]:
    """(part, False) for each of them, then (None, True)."""
    for part in parts:
        yield part, False
    yield None, True
