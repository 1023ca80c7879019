"""Printing that no terminal, log or pipe can end."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any


class Hardy:
    """A text stream whose reader may go away and whose encoding may lack characters: the program goes on.

    Characters that cannot be written are replaced; once the reader is gone (a pipe, a terminal that was hung up)
    everything is written to nowhere, and what a full disk does not take is lost.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._leave(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._leave(error)

    def _leave(self, error: Exception) -> None:
        if isinstance(error, ValueError) and "closed file" not in str(error):
            raise error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return  # the disk below a log may have room again
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_hardy() -> None:
    """Have this process's standard streams so. A stream that was never there (`>&-`) leads to nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif not isinstance(stream, Hardy):
            setattr(sys, name, Hardy(stream))


def width(otherwise: int = 100) -> int:
    """Columns that the environment speaks of."""
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdecimal() and int(text) else otherwise
