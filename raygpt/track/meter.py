"""How far something has come that is no training run: one line, redrawn on a terminal, now and then in a log."""

from __future__ import annotations

import time
from typing import TextIO

CELLS = 24
SECONDS_LIVE, SECONDS_LOG = 0.2, 5.0


class Meter:
    """`show(done, total)` as often as one likes; nothing is printed for what is over within a moment."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self.label, self.stream = label, stream
        self.live = stream.isatty()
        self._next = time.monotonic() + (SECONDS_LIVE if self.live else SECONDS_LOG)
        self._shown = False

    def show(self, done: float, total: float, *figures: str) -> None:
        """`figures` stand behind the bar: `prepare ####....  50% | 1,200 documents | 3.1M tokens`."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (SECONDS_LIVE if self.live else SECONDS_LOG)
        share = done / total if total else 1.0
        cells = round(CELLS * share)
        line = " | ".join([f"{self.label} {'#' * cells}{'.' * (CELLS - cells)} {share:4.0%}", *figures])
        print(f"\r\x1b[K{line}" if self.live else line, end="" if self.live else "\n", file=self.stream, flush=True)
        self._shown = True

    def close(self) -> None:
        """Wipe the line on a terminal."""
        if self.live and self._shown:
            print("\r\x1b[K", end="", file=self.stream, flush=True)
