"""PURE. Lambda's limits, one request a second and one launch in twelve, held by all threads and processes of a machine.

A file in the user's cache holds when the next request and the next launch may leave, and its lock is held while one is
under way: what leaves a second after the last answer arrives more than a second after the last request, however busy
machine and network are (places in time 1.1 s apart arrived 0.81 s apart). Machines do not know of each other: what the
laptop and a head ask at once may still be refused (429), and `hold` then keeps everybody of a machine back.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

REQUEST_SECONDS = 1.02  # clocks differ in how fast they go, too
LAUNCH_SECONDS = 12.1
RECORD_BYTES = 40
LONGEST_SECONDS = 120.0  # a file that says more was written under another clock


class Clock(Protocol):
    def time(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raygpt" / "lambda"


class Pacing:
    """Places in time for requests with one key at one endpoint, `request_seconds` and `launch_seconds` apart."""

    def __init__(
        self,
        file: Path,
        *,
        request_seconds: float = REQUEST_SECONDS,
        launch_seconds: float = LAUNCH_SECONDS,
        clock: Clock = time,
    ) -> None:
        self.file, self.clock = file, clock
        self._descriptor = threading.local()  # of the open file, whose lock is this thread's turn
        self.request_seconds, self.launch_seconds = request_seconds, launch_seconds
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    @staticmethod
    def of(url: str, key: str, folder: Path | None = None, clock: Clock = time) -> Pacing:
        """The one that belongs to a key at an endpoint; the file's name tells neither."""
        name = hashlib.sha256(f"{url}\0{key}".encode()).hexdigest()[:16]
        return Pacing((folder or cache_folder()) / f"pace-{name}", clock=clock)

    @contextmanager
    def turn(self, *, launch: bool = False) -> Iterator[None]:
        """The right to one request, asked and answered inside the block; waits until it may leave."""
        while True:
            with self._state() as state:
                now = self.clock.time()
                until = max(state["request"], state["launch"] if launch else 0.0)
                if until <= now:
                    self._next(state, launch)
                    self._write(state)  # a process that is killed inside has asked
                    try:
                        yield
                    finally:
                        self._next(state, launch)
                    return
            self.clock.sleep(until - now)  # others may ask meanwhile

    def _next(self, state: dict[str, float], launch: bool) -> None:
        now = self.clock.time()
        state["request"] = now + self.request_seconds
        if launch:
            state["launch"] = now + self.launch_seconds

    def hold(self, seconds: float) -> None:
        """Let no request of anybody leave for that long: the API said that it was too much."""
        with self._state() as state:
            state["request"] = max(state["request"], self.clock.time() + min(seconds, LONGEST_SECONDS))

    @contextmanager
    def _state(self) -> Iterator[dict[str, float]]:
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                request, launch = (float(word) for word in os.pread(descriptor, RECORD_BYTES, 0).split())
            except ValueError:  # new, or not ours
                request, launch = 0.0, 0.0
            latest = self.clock.time() + LONGEST_SECONDS
            state = {"request": request if request < latest else 0.0, "launch": launch if launch < latest else 0.0}
            self._descriptor.number = descriptor
            try:
                yield state
            finally:
                self._write(state)
        finally:
            os.close(descriptor)

    def _write(self, state: dict[str, float]) -> None:
        # of one length always: cutting the file off took most of the time
        record = b"%019.6f %019.6f\n" % (state["request"], state["launch"])
        os.pwrite(self._descriptor.number, record, 0)
