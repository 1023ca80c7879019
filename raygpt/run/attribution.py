"""Who said it: on a cluster of several nodes, a worker's words reach the driver's log with run, rank and node.

Ray keeps a file per worker on each node. What a user has to know of them, warnings and the error that ended one, goes
over the run's mailbox (`raygpt.run.control`) instead, and the same words are shown once, whichever rank was first.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import warnings
from typing import Any

import ray

from raygpt.errors import UserError, one_line

WARNING = "warning"  # the kind of event: (who, text)
MOST = 20  # of one worker: a library that repeats itself with other numbers fills no log
LONGEST = 400
FAILURE_SECONDS = 5.0  # a worker that fails waits so long until its words are delivered
# For those who write programs, not for those who run them.
PROGRAMMERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


def speaker(run: str, rank: int) -> str:
    """Run, rank and node, as they stand before what a worker says."""
    return f"[{run} rank {rank} {socket.gethostname()}]"


class Voice(logging.Handler):
    """While entered, this process's warnings and the root logger's go to the driver, and the error that leaves it."""

    def __init__(self, control: Any, who: str) -> None:
        super().__init__(logging.WARNING)
        self._control, self._who = control, who
        self._said: set[str] = set()
        self._show = warnings.showwarning

    def __enter__(self) -> Voice:
        logging.getLogger().addHandler(self)
        self._show = warnings.showwarning
        warnings.showwarning = self._warn  # type: ignore[assignment]
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        logging.getLogger().removeHandler(self)
        warnings.showwarning = self._show
        if isinstance(error, Exception) and not isinstance(error, UserError):
            sent = self.say(f"{type(error).__name__}: {one_line(error, LONGEST)}")
            if sent is not None:
                with contextlib.suppress(Exception):
                    ray.get(sent, timeout=FAILURE_SECONDS)

    def emit(self, record: logging.LogRecord) -> None:
        self.say(f"{record.name}: {record.getMessage()}")

    def say(self, text: str) -> Any:
        """Send it, unless it has been; what Ray gives for it."""
        text = " ".join(text.split())[:LONGEST]
        if text in self._said or len(self._said) >= MOST:
            return None
        self._said.add(text)
        with contextlib.suppress(Exception):  # words are no reason to fail
            return self._control.exchange.remote([(WARNING, (self._who, text))])
        return None

    def _warn(self, message: Warning | str, category: type[Warning], *rest: Any) -> None:
        self._show(message, category, *rest)
        if not issubclass(category, PROGRAMMERS):
            self.say(f"{category.__name__}: {message}")
