"""A run's folder: who is using it, and how often it was started."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass

import psutil

from raygpt import storage
from raygpt.errors import UserError
from raygpt.storage import Location

ATTEMPTS = "attempts.json"
HEARTBEAT_SECONDS = 10.0
LOST_SECONDS = 45.0  # another machine's run that has not been heard of for this long is dead


@dataclass
class Attempt:
    """One start of the run. Times are seconds since 1970 UTC; `outcome` is None while it runs or after a kill."""

    id: str
    host: str
    pid: int
    process_started: float
    started: float
    last_seen: float
    outcome: str | None = None

    @property
    def is_live(self) -> bool:
        """Whether its driver still runs: asked of the kernel on this machine, of the heartbeat elsewhere."""
        if self.outcome is not None:
            return False
        if self.host == socket.gethostname():
            try:
                return abs(psutil.Process(self.pid).create_time() - self.process_started) < 1
            except psutil.Error:
                return False
        return time.time() - self.last_seen < LOST_SECONDS


def read_attempts(run: Location) -> list[Attempt]:
    """Attempts so far, oldest first."""
    try:
        return [Attempt(**item) for item in json.loads(storage.read_text(run / ATTEMPTS))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        return []


class RunLock:
    """Holds a run folder for this process from `acquire` to `release`, by heartbeat.

    attempts.json doubles as the run's history: restarts and wall-clock time come from it.
    """

    def __init__(self, run: Location) -> None:
        self.run = run
        self.attempts = read_attempts(run)
        self._mine: Attempt | None = None
        self._ended = threading.Event()

    @property
    def restarts(self) -> int:
        """Starts of the run before this one."""
        return len(self.attempts) - (1 if self._mine else 0)

    @property
    def wall_seconds(self) -> float:
        """Seconds in which some attempt held the run, this one included."""
        return sum(max(0.0, attempt.last_seen - attempt.started) for attempt in self.attempts)

    @property
    def earlier_seconds(self) -> float:
        """`wall_seconds` without this attempt."""
        return sum(max(0.0, item.last_seen - item.started) for item in self.attempts if item is not self._mine)

    def acquire(self) -> None:
        """Raises UserError while a live process holds the run."""
        for attempt in self.attempts:
            if attempt.is_live:
                raise UserError(
                    f"run {self.run.uri} is in use by process {attempt.pid} on {attempt.host}: stop that one first, or "
                    "choose another run.name."
                )
        now = time.time()
        started = psutil.Process().create_time()
        self._mine = Attempt(uuid.uuid4().hex, socket.gethostname(), os.getpid(), started, now, now)
        self.attempts.append(self._mine)
        self._write()
        # two starts at one moment: the one that wrote last has the run
        seen = read_attempts(self.run)
        if not seen or seen[-1].id != self._mine.id:
            raise UserError(f"run {self.run.uri} was started elsewhere at the same moment: leave it to that process.")
        threading.Thread(target=self._beat, daemon=True, name="run-lock").start()

    def release(self, outcome: str) -> None:
        """Record how this attempt ended and let go."""
        self._ended.set()
        if self._mine is not None:
            self._mine.outcome = outcome
            self._mine.last_seen = time.time()
            self._write()

    def touch(self) -> None:
        """Bring this attempt's time up to now."""
        if self._mine is not None:
            self._mine.last_seen = time.time()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self.touch()
            try:
                self._write()
            except UserError:
                continue  # storage that is away for a moment must not end the run from here

    def _write(self) -> None:
        storage.write_text(self.run / ATTEMPTS, json.dumps([asdict(item) for item in self.attempts], indent=1) + "\n")
