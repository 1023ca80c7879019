"""The line that says how far an evaluation is."""

from __future__ import annotations

import io

import pytest

from raygpt.track import meter
from raygpt.track.meter import Meter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Meter("evaluate", stream)
    for second in range(12):
        clock[0] = second
        shown.show(second, 12)
    shown.close()
    assert stream.getvalue().splitlines() == [
        "evaluate " + "#" * 10 + "." * 14 + "  42%",
        "evaluate " + "#" * 20 + "." * 4 + "  83%",
    ]


def test_a_terminal_gets_one_line_that_goes_away(clock: list[float]) -> None:
    stream = Terminal()
    shown = Meter("evaluate", stream)
    clock[0] = 1.0
    shown.show(1, 2)
    shown.close()
    assert stream.getvalue() == "\r\x1b[Kevaluate " + "#" * 12 + "." * 12 + "  50%\r\x1b[K"


def test_figures_stand_behind_the_bar(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Meter("prepare", stream)
    clock[0] = 6.0
    shown.show(0.5, 1, "1,200 documents", "3.1M tokens")
    assert stream.getvalue() == "prepare " + "#" * 12 + "." * 12 + "  50% | 1,200 documents | 3.1M tokens\n"


def test_what_is_over_at_once_prints_nothing(clock: list[float]) -> None:
    stream = Terminal()
    shown = Meter("evaluate", stream)
    shown.show(2, 2)
    shown.close()
    assert stream.getvalue() == ""
