"""`<run>/metrics.jsonl`: one strict JSON object per record, in order, no step twice after a restart."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any, TextIO

from raygpt.errors import UserError
from raygpt.storage import Location, explain, read_bytes, write_text
from raygpt.track.record import Record

# How often lines reach S3 without an evaluation or checkpoint in between. S3 cannot append, so each
# time the object is written whole: about 300 bytes per record.
FLUSH_SECONDS = 30.0


class MetricsLog:
    """Appends records to the file at `location`, continuing after `resume_step`.

    Opening drops the records after `resume_step` (all of them for 0: nothing was restored) and any torn
    line. Locally each record is in the file when `append` returns. On S3 records wait in memory for
    `flush`, for the background thread that sends them every FLUSH_SECONDS, or for `close`; a write that
    fails is kept in `problem` and tried again the next time. `restored` are the records kept; the first one
    after a restart carries `restarts`. Raises UserError when the storage cannot be read or, locally, written.
    """

    def __init__(self, location: Location, resume_step: int = 0) -> None:
        self.location = location
        found, damaged = _parse(location)
        kept = [record for record in found if 0 < resume_step >= record["step"]]
        lines = [_line(record) for record in kept]
        self.restored = kept
        earlier = max((record.get("restarts", 0) for record in found), default=0)
        self.restarts = earlier + 1 if resume_step > 0 else 0
        self.problem: UserError | None = None
        self._mark_restart = self.restarts > 0
        if damaged or len(kept) < len(found):
            write_text(location, "".join(lines))
        self._file: TextIO | None = None
        self._flusher: threading.Thread | None = None
        self._sending = threading.Lock()  # one write to S3 at a time; appending never waits for it
        self._wake = threading.Event()
        self._closed = False
        if location.is_local:
            self._file = _open_to_append(location)
        else:
            self._lines = lines
            self._sent = len(lines)
            self._flusher = threading.Thread(target=self._flush_regularly, name="metrics-flush", daemon=True)
            self._flusher.start()

    def append(self, record: Record) -> None:
        """Add one record as the last line."""
        if self._mark_restart:
            record = {**record, "restarts": self.restarts}
            self._mark_restart = False
        line = _line(record)
        if self._file is None:
            self._lines.append(line)
            return
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise explain(error, self.location) from error

    def flush(self, wait: bool = True) -> None:
        """Bring the lines to S3 now; without `wait`, in the background, so that training goes on."""
        if self._flusher is not None and not wait:
            self._wake.set()
        elif self._file is None:
            self._send()

    def close(self) -> None:
        """Write what is left. Raises UserError when S3 would not take it. May be called twice."""
        self._closed = True
        if self._file is not None:
            self._file.close()
            return
        if self._flusher is not None:
            self._wake.set()
            self._flusher.join()
            self._flusher = None
        self._send()
        if self.problem is not None:
            raise self.problem

    def _send(self) -> None:
        with self._sending:
            count = len(self._lines)
            if count == self._sent:
                return
            try:
                write_text(self.location, "".join(self._lines[:count]))
            except UserError as error:
                self.problem = error
            else:
                self.problem = None
                self._sent = count

    def _flush_regularly(self) -> None:
        while not self._closed:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            if not self._closed:
                self._send()


def read_metrics(location: Location) -> list[Record]:
    """Records of a metrics.jsonl in their order; empty where there is no file. Lines that are no record
    (the torn last one of a killed run) are left out; figures that were not finite come back as NaN."""
    return _parse(location)[0]


def _parse(location: Location) -> tuple[list[Record], bool]:
    """The records, and whether anything in the file was not one."""
    try:
        data = read_bytes(location)
    except FileNotFoundError:
        return [], False
    records = []
    damaged = bool(data) and not data.endswith(b"\n")
    for line in data.splitlines():
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError):
            damaged = True
            continue
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            damaged = True
            continue
        records.append({name: math.nan if value is None else value for name, value in record.items()})
    return records, damaged


def _open_to_append(location: Location) -> TextIO:
    path = Path(location.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise explain(error, location) from error


def _line(record: Record) -> str:
    """JSON has no NaN or infinity: such a figure is written as null, so that every tool can read the file."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
