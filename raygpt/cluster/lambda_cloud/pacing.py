"""PURE. Lambda's limits, one request a second and one launch in twelve, held by all threads and processes of a machine.

A file in the user's cache holds when the next request and the next launch may leave; it is read and written under a
lock, and the wait is outside of it. Who has waited for a launch takes a second's place as well. Machines do not know of
each other: what the laptop and a head ask at once may still be refused (429), and `hold` then keeps everybody back.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

# Answers come back at a distance that varies; what leaves 1.00 s apart may arrive 0.95 s apart.
REQUEST_SECONDS = 1.1
LAUNCH_SECONDS = 12.5
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
        self.request_seconds, self.launch_seconds = request_seconds, launch_seconds
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    @staticmethod
    def of(url: str, key: str, folder: Path | None = None, clock: Clock = time) -> Pacing:
        """The one that belongs to a key at an endpoint; the file's name tells neither."""
        name = hashlib.sha256(f"{url}\0{key}".encode()).hexdigest()[:16]
        return Pacing((folder or cache_folder()) / f"pace-{name}", clock=clock)

    def wait(self, *, launch: bool = False) -> None:
        """Return when a request may leave, and no earlier."""
        while True:
            with self._state() as state:
                now = self.clock.time()
                place = max(now, state["request"])
                later = state["launch"] - place if launch else 0.0
                if later <= 0:
                    state["request"] = place + self.request_seconds
                    if launch:
                        state["launch"] = place + self.launch_seconds
                    until = place
                else:
                    until = state["launch"]
            if until > now:
                self.clock.sleep(until - now)
            if later <= 0:
                return

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
            yield state
            # of one length always: cutting the file off took most of the time
            os.pwrite(descriptor, b"%019.6f %019.6f\n" % (state["request"], state["launch"]), 0)
        finally:
            os.close(descriptor)
