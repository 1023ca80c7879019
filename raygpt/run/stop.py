"""The wish that a run stops: who has it, who is told, and how Ctrl-C, SIGTERM and a budget come to have it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from raygpt.track.cost import Bill

SIGNAL, BUDGET, DISPLACED, ASKED, PREEMPTED = "signal", "budget", "displaced", "asked", "preempted"
SCHEDULER, SWEEP = "scheduler", "sweep"  # a trial's: its sweep has no more use for it, or ends itself
BUDGET_LOOK_SECONDS = 1.0


class StopToken:
    """Set once, by whoever comes first; listeners are told at once, late ones when they come. Safe between threads."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signal = 0
        self._told: list[Callable[[], Any]] = []
        self._lock = threading.RLock()  # a signal may arrive while this thread holds it

    @property
    def requested(self) -> bool:
        return self.reason is not None

    @property
    def stopped_by(self) -> str | None:
        """Who asked, as a summary says it: the signal's name or the reason."""
        return signal.Signals(self.signal).name if self.signal else self.reason

    def request(self, reason: str = ASKED, number: int = 0) -> None:
        """Ask for a stop; the first reason stays."""
        with self._lock:
            if self.reason is not None:
                return
            self.reason, self.signal = reason, number
            told = list(self._told)
        for listener in told:
            listener()

    def listen(self, listener: Callable[[], Any]) -> None:
        """Call `listener` when a stop is asked for."""
        with self._lock:
            self._told.append(listener)
            late = self.reason is not None
        if late:
            listener()


class Signals:
    """Ctrl-C and SIGTERM ask for a stop; a second Ctrl-C leaves at once. Ray sends SIGTERM on `ray job stop`.

    In a thread other than the main one nothing is installed: there the caller owns the token.
    """

    def __init__(self, token: StopToken, say: Callable[[str], None], words: str) -> None:
        self._token, self._say, self._words = token, say, words
        self._asked = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        # a terminal and a launcher may both deliver the one key press
        if self._asked and time.monotonic() - self._asked < 0.3:
            return
        if self._asked and number == signal.SIGINT:
            for child in psutil.Process().children(recursive=True):  # a cluster of this process's own, if any
                with contextlib.suppress(psutil.Error):
                    child.kill()
            print("\nLeft at once; what was saved before is untouched.", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGINT)
        self._asked = time.monotonic()
        self._say(f"Stopping: {self._words} (Ctrl-C again leaves at once).")
        self._token.request(SIGNAL, signal.Signals(number))


class Budget:
    """Asks for a stop when the run, waiting and every restart counted, has cost `max_usd` US dollars; None: never."""

    def __init__(self, token: StopToken, bill: Bill, max_usd: float | None) -> None:
        self._token, self._bill, self._max_usd = token, bill, max_usd
        self._ended = threading.Event()

    def __enter__(self) -> Budget:
        if self._max_usd is not None:
            threading.Thread(target=self._watch, daemon=True, name="run-budget").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        assert self._max_usd is not None
        while not self._ended.wait(BUDGET_LOOK_SECONDS):
            if (self._bill.budget_usd() or 0.0) >= self._max_usd:
                self._token.request(BUDGET)
                return
