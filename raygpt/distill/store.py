"""Answers of one generation, below <output>/answers/<generation>/, kept from the moment they came:

    generation.json                 what was asked of whom and how
    journal-<attempt>.jsonl         locally: each answer is in it before the next one is taken
    part-<level>-<number>.parquet   answers of a while, by key
    answers-<total>-<n>.parquet     all of them, by key, once everything is asked; then there is nothing else
    parked.parquet                  what could not be answered, with reasons
    usage.json                      what asking took beside them, over all calls

A part is there whole or not at all, and so is its own mark that it is done. A journal is made into parts now and then,
and by the next start where its run was killed. S3 cannot append: there parts are written every FLUSH_SECONDS or
FLUSH_ANSWERS, which is the most that a kill costs. FAN parts of a level become one of the next, so that there are few
to read. The last files depend on the answers alone, not on when and in which order they came.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from raygpt import storage
from raygpt.distill.answers import Answer, Parked
from raygpt.distill.parts import (
    Result,
    as_row,
    from_row,
    is_part,
    merged,
    read_keys,
    read_tokens,
    sort_key,
    without_halves,
    write_part,
)
from raygpt.storage import Location

GENERATION, USAGE = "generation.json", "usage.json"
PARKED = "parked.parquet"
JOURNAL_ANSWERS = 4096  # in a journal, some 10 MB, before it is made into a part
FLUSH_ANSWERS, FLUSH_SECONDS = 1000, 5.0
SYNC_SECONDS = 1.0  # a power cut costs this much; a killed process nothing
FAN = 32
SHARD_ANSWERS = 50_000


class AnswerStore:
    """Safe between threads. `recover` once before anything else, `close` at the end."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] = []
        self._journal: TextIO | None = None
        self._journal_path: Path | None = None
        self._attempt = uuid.uuid4().hex[:8]
        self._number = itertools.count(time.time_ns())  # parts sort by when they were written
        self._flushed = self._synced = time.monotonic()

    def recover(self, about: dict[str, Any]) -> None:
        """Make what killed runs left into parts, and write down what the generation is."""
        storage.write_text(self.folder / GENERATION, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        if not self.folder.is_local:
            return
        for path in sorted(Path(self.folder.path).glob("journal-*.jsonl")):
            rows = list(_journal_rows(path))
            if rows:
                self._write_part(0, rows)
            path.unlink()
        for path in Path(self.folder.path).glob(".*.parquet.*"):
            path.unlink()

    def read_usage(self) -> dict[str, Any]:
        """What `write_usage` wrote last, {} for nothing."""
        try:
            return json.loads(storage.read_text(self.folder / USAGE))
        except (FileNotFoundError, ValueError):
            return {}

    def write_usage(self, usage: dict[str, Any]) -> None:
        storage.write_text(self.folder / USAGE, json.dumps(usage) + "\n")

    def stored_tokens(self) -> tuple[int, int]:
        """(prompt tokens, answer tokens) of all that is stored."""
        pairs = [read_tokens(part) for part in self._parts()]
        return sum(read for read, _ in pairs), sum(written for _, written in pairs)

    def known(self) -> Iterator[tuple[list[str], list[str]]]:
        """(keys answered, keys parked) of what is stored, some at a time; a key may come twice."""
        for part in self._parts():
            yield from read_keys(part)

    def add(self, result: Result, through: bool = True) -> None:
        """Keep an answer or a reason. Locally it is in the journal when this returns, or without `through` when
        `write_through` does: answers that come in one moment share a write (one of each costs a fifth of the client's
        speed)."""
        row = as_row(result)
        with self._lock:
            self._rows.append(row)
            if self.folder.is_local:
                self._append(row)
        if through:
            self.write_through()

    def write_through(self) -> None:
        """Have what was added outlive this process, where the folder is local."""
        with self._lock:
            if self._journal is not None:
                try:
                    self._journal.flush()
                except OSError as error:
                    raise storage.explain(error, self.folder) from error

    @property
    def is_due(self) -> bool:
        """Whether `flush` has something to do, which takes a moment."""
        now = time.monotonic()
        if self.folder.is_local:
            return len(self._rows) >= JOURNAL_ANSWERS or (bool(self._rows) and now - self._synced > SYNC_SECONDS)
        return len(self._rows) >= FLUSH_ANSWERS or (bool(self._rows) and now - self._flushed > FLUSH_SECONDS)

    def flush(self, all_of_it: bool = False) -> None:
        """Bring to storage what is due, or everything that was added before this call."""
        with self._lock:
            due = all_of_it or not self.folder.is_local or len(self._rows) >= JOURNAL_ANSWERS
            if self._journal is not None and not due:
                self._journal.flush()
                os.fsync(self._journal.fileno())
                self._synced = time.monotonic()
                return
            rows, self._rows = self._rows, []
            journal, path = self._journal, self._journal_path
            self._journal = self._journal_path = None
            self._flushed = self._synced = time.monotonic()
        if journal is not None:
            journal.close()
        if rows:
            try:
                self._write_part(0, rows)
            except BaseException:
                with self._lock:  # not lost while this process lives
                    self._rows = rows + self._rows
                raise
        if path is not None:
            path.unlink(missing_ok=True)
        self._merge_levels()

    def close(self) -> None:
        self.flush(all_of_it=True)

    def answers(self) -> Iterator[Answer]:
        """All answers by key: the same order whatever order they came in."""
        for row in merged(self._parts()):
            result = from_row(row)
            if isinstance(result, Answer):
                yield result

    def parked(self) -> Iterator[Parked]:
        """What was parked and has not been answered since, by key."""
        for row in merged(self._parts()):
            if row["reason"] is not None:
                result = from_row(row)
                assert isinstance(result, Parked)
                yield result

    def totals(self) -> dict[str, int]:
        """answered, parked, prompt_tokens and answer_tokens of what is stored."""
        found = dict.fromkeys(("answered", "parked", "prompt_tokens", "answer_tokens"), 0)
        for row in merged(self._parts(), ["key", "prompt_tokens", "answer_tokens", "reason"]):
            found["parked" if row["reason"] is not None else "answered"] += 1
            for name in ("prompt_tokens", "answer_tokens"):
                found[name] += row[name] or 0
        return found

    def finish(self) -> dict[str, int]:
        """Make everything into the last files, by key; nothing happens where that is done. Returns `totals`."""
        self.flush(all_of_it=True)
        parts, totals = self._parts(), self.totals()
        final = f"answers-{totals['answered']:09d}-"
        if all(part.name.startswith(final) or part.name == PARKED for part in parts):
            return totals
        rows = (row for row in merged(parts) if row["reason"] is None)
        written: list[str] = []
        while batch := list(itertools.islice(rows, 1)):
            where = self.folder / f"{final}{len(written):05d}.parquet"
            write_part(where, itertools.chain(batch, itertools.islice(rows, SHARD_ANSWERS - 1)))
            written.append(where.name)
        if totals["parked"]:
            write_part(self.folder / PARKED, map(as_row, self.parked()))
            written.append(PARKED)
        for part in self._parts():
            if part.name not in written:
                storage.delete(part)
        return totals

    def _append(self, row: dict[str, Any]) -> None:
        if self._journal_path is None:
            self._journal_path = Path(self.folder.path) / f"journal-{self._attempt}-{next(self._number)}.jsonl"
        try:
            if self._journal is None:
                self._journal = open(self._journal_path, "a", encoding="utf-8")  # noqa: SIM115
            self._journal.write(json.dumps(row, ensure_ascii=True) + "\n")
        except OSError as error:
            raise storage.explain(error, self.folder) from error

    def _write_part(self, level: int, rows: list[dict[str, Any]]) -> None:
        name = f"part-{level}-{next(self._number)}-{self._attempt}.parquet"
        write_part(self.folder / name, sorted(map(without_halves, rows), key=sort_key))

    def _merge_levels(self) -> None:
        for level in range(8):
            parts = [part for part in self._parts() if part.name.startswith(f"part-{level}-")]
            if len(parts) < FAN:
                return
            write_part(self.folder / f"part-{level + 1}-{next(self._number)}-{self._attempt}.parquet", merged(parts))
            for part in parts:
                storage.delete(part)

    def _parts(self) -> list[Location]:
        return [storage.child(self.folder, entry) for entry in storage.list_folder(self.folder) if is_part(entry)]


def _journal_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a journal; its last line may have been cut off by a kill."""
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("key"), str):
                yield row
